"""Files in float16 or bfloat16: half the size, and what that costs.

A safetensors file has its weights rounded; whoever loads it computes as they
like. An onnx file computes in float16 too, between a float32 input and float32
logits, where the runtime can; onnxruntime on a CPU widens what it must.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlkd_jax.data import Dataset
from tlkd_jax.export import graphs, onnx, run_data, weights
from tlkd_jax.export.student import Student, max_difference
from tlkd_jax.runtime.atomic import replacing
from tlkd_jax.runtime.errors import listed
from tlkd_jax.runtime.trees import flatten

# Largest difference of logits of a float16 graph, as a share of the largest:
# some fifty layers whose activations are rounded by up to 2**-11.
TOLERANCE = 2e-2


def round_to(array: np.ndarray, dtype: str) -> np.ndarray:
  """A float array in another dtype; integers as they are."""
  if not jnp.issubdtype(array.dtype, jnp.floating):
    return array
  # What overflows is found by `check_rounding`.
  with np.errstate(over='ignore'):
    return np.asarray(array).astype(jnp.dtype(dtype))


def bound(dtype: str) -> float:
  """Half the distance of neighbours, as a share of a number that is normal."""
  return float(jnp.finfo(dtype).eps) / 2


def check_rounding(
  out: pathlib.Path, entries: dict[str, np.ndarray], dtype: str
) -> float:
  """Compares rounded weights with what they were.

  Args:
    out: the file, for the message.
    entries: name -> float32 array.
    dtype: that they were rounded to.

  Returns:
    The largest error, as a share of its weight; of normal numbers.

  Raises:
    RuntimeError: a weight is off by more than `bound`, and by more than the
      smallest number of the dtype: it is beyond its range.
  """
  tiny, most = float(jnp.finfo(dtype).tiny), bound(dtype)
  smallest = float(jnp.finfo(dtype).smallest_subnormal)
  worst, bad = 0.0, []
  for name, array in entries.items():
    if not jnp.issubdtype(array.dtype, jnp.floating):
      continue
    size = np.abs(array).astype(np.float64)
    error = np.abs(round_to(array, dtype).astype(np.float64) - array)
    if not (error <= np.maximum(most * size, smallest)).all():
      bad.append(name)
    normal = size >= tiny
    worst = max(worst, (error[normal] / size[normal]).max(initial=0.0))
  if bad:
    raise RuntimeError(
      f'{out} is not written: {dtype} cannot hold the values of {listed(bad)}; '
      'accepted: float32, or bfloat16 for a wider range than that of float16'
    )
  return worst


def rounded(student: Student, dtype: str) -> Student:
  """The student with the weights that a file of this dtype has, as float32."""

  def there_and_back(array):
    array = np.asarray(array)
    return round_to(array, dtype).astype(array.dtype)

  params, state = jax.tree.map(
    there_and_back, (student.params, student.model_state)
  )
  return dataclasses.replace(student, params=params, model_state=state)


def write_safetensors(
  student: Student, out: pathlib.Path, dtype: str, dataset: Dataset
) -> tuple[str, dict[str, Any]]:
  """Writes rounded weights; returns what to tell the user, and the record.

  Raises:
    RuntimeError: the dtype cannot hold a weight, or what was read back is not
      what was written.
  """
  entries = weights.state_dict(student)
  worst = check_rounding(out, entries, dtype)
  narrow = {name: round_to(array, dtype) for name, array in entries.items()}
  said = weights.write_entries(student, out, narrow)
  accuracy = _accuracy(
    dataset,
    student,
    jax.jit(student.logits),
    jax.jit(rounded(student, dtype).logits),
  )
  lines = (
    f'{said}, {dtype}',
    f'{out}: weights differ by at most {worst:.2e} of their own size (bound '
    f'{bound(dtype):.2e})',
    accuracy.said(out, dtype),
  )
  record = {
    'weights': worst,
    'bound': bound(dtype),
    'validation': accuracy.record(dtype),
  }
  return '\n'.join(lines), record


def write_onnx(
  student: Student,
  out: pathlib.Path,
  dtype: str,
  dataset: Dataset,
  opset: int,
) -> tuple[str, dict[str, Any]]:
  """Writes a float16 graph with float32 images and logits; as the other.

  Raises:
    RuntimeError: float16 cannot hold a weight, or logits differ by more than
      TOLERANCE.
  """
  trees = flatten(student.params) | flatten(student.model_state)
  check_rounding(out, trees, dtype)
  with replacing(out) as unfinished:
    content = onnx.convert_student(student, opset)
    # Constants are computed before they are rounded.
    content = graphs.simplified(content, student.params, out)
    content = onnx.described(as_float16(content), student)
    unfinished.write_bytes(content)
    run = onnx.load(unfinished, out)
    difference, largest = max_difference(student, run)
    # Written so that NaN is refused.
    if not difference <= TOLERANCE * max(largest, 1.0):
      raise RuntimeError(
        f'{out} is not written: in float16 logits of up to {largest:.3g} '
        f'differ from the student by {difference:.3g}, by more than '
        f'{TOLERANCE:g} of the largest'
      )
    accuracy = _accuracy(dataset, student, jax.jit(student.logits), run)
  lines = (
    f'{out}: float16 between float32 images and logits; onnxruntime differs '
    f'from the student by at most {difference:.2e} (largest logit '
    f'{largest:.3g}; bound {TOLERANCE:g} of it; batches of 1 and 3)',
    accuracy.said(out, dtype),
  )
  record = {
    'logits': difference,
    'largest_logit': largest,
    'bound': TOLERANCE,
    'validation': accuracy.record(dtype),
  }
  return '\n'.join(lines), record


def as_float16(content: bytes) -> bytes:
  """A serialised onnx model that computes in float16 inside."""
  import onnx as onnx_package
  from onnxruntime.transformers import float16, onnx_model

  model = float16.convert_float_to_float16(
    onnx_package.load_from_string(content), keep_io_types=True
  )
  # The casts of the input come last, which runtimes allow and ONNX does not.
  onnx_model.OnnxModel.graph_topological_sort(model.graph)
  return model.SerializeToString()


def _accuracy(
  dataset: Dataset, student: Student, before: Callable, after: Callable
) -> run_data.Accuracy:
  split = dataset.splits['validation']
  expected, logits = (
    run_data.predictions(student, split, run) for run in (before, after)
  )
  return run_data.compare(expected, logits, split.labels)
