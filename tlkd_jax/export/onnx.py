"""ONNX through jax2onnx, run by onnxruntime; both are optional packages."""

import contextlib
import json
import logging
import pathlib
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np

from tlkd_jax.export import DEFAULT_OPSET, preprocessing, sessions
from tlkd_jax.export.student import Student, checked
from tlkd_jax.models.layers.convolutions import lax_convolutions
from tlkd_jax.runtime.atomic import replacing

# A protocol buffer cannot be longer than 2 GB; the rest is for the graph.
MOST_BYTES = 2**31 - 2**24

INPUT = 'images'
OUTPUT = 'logits'


def convert(
  function: Callable, image_size: int, opset: int = DEFAULT_OPSET
) -> bytes:
  """Converts a classifier to a serialised ONNX model, weights inside.

  Args:
    function: traceable, normalised float32 images [B, H, W, 3] -> logits.
    image_size: H and W.
    opset: version of the operators, one of OPSETS.

  Returns:
    A model that takes `images` float32 [batch, 3, H, W] and gives `logits`
    float32 [batch, K], with any batch.
  """
  import jax2onnx
  import onnx

  with _quiet('jax2onnx', 'onnx_ir'):
    model = jax2onnx.to_onnx(
      function,
      [('batch', image_size, image_size, 3)],
      model_name='student',
      inputs_as_nchw=[0],
      input_names=[INPUT],
      output_names=[OUTPUT],
      opset=opset,
    )
  # A runtime that is as old as the operators knows no newer file format.
  oldest = onnx.helper.find_min_ir_version_for(model.opset_import)
  model.ir_version = min(model.ir_version, oldest)
  return model.SerializeToString()


def convert_student(student: Student, opset: int = DEFAULT_OPSET) -> bytes:
  """The student as `convert` makes it, its convolutions those of ONNX."""
  with lax_convolutions():
    return convert(student.logits, student.image_size, opset)


@contextlib.contextmanager
def _quiet(*names: str) -> Generator[None]:
  """Holds back reports of plugins for other libraries and of lacking types."""
  loggers = [logging.getLogger(name) for name in names]
  levels = [logger.level for logger in loggers]
  for logger in loggers:
    logger.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    for logger, level in zip(loggers, levels, strict=True):
      logger.setLevel(level)


def check_size(student: Student) -> None:
  """Raises ValueError where the weights are more than an ONNX file holds."""
  trees = student.params, student.model_state
  found = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(trees))
  if found > MOST_BYTES:
    raise ValueError(
      f'{student.model.name} has {found / 1e9:.2f} GB of weights, and an onnx '
      f'file, which is one protocol buffer, holds {MOST_BYTES / 1e9:.2f} GB; '
      'export to safetensors or stablehlo'
    )


def load(
  path: pathlib.Path, out: pathlib.Path | None = None
) -> Callable[[np.ndarray], np.ndarray]:
  """The file's model as a function of NHWC images, on the CPU.

  Args:
    path: the file.
    out: what it is called in messages; None is path.

  Raises:
    RuntimeError: onnxruntime does not take it.
  """
  session = sessions.session(path, out=out)

  def run(images: np.ndarray) -> np.ndarray:
    nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return session.run([OUTPUT], {INPUT: nchw})[0]

  return run


def write(
  student: Student,
  out: pathlib.Path,
  opset: int = DEFAULT_OPSET,
  with_preprocessing: bool = False,
) -> str:
  """Writes the model and runs it; returns what to tell the user.

  Args:
    student: to write.
    out: the file.
    opset: as of `convert`.
    with_preprocessing: the model takes an image of any size, and says
      probabilities; see `preprocessing.add`.

  Raises:
    RuntimeError: it does not give the student's logits, or probabilities.
  """
  with replacing(out) as unfinished:
    content = described(convert_student(student, opset), student)
    unfinished.write_bytes(content)
    said = checked(student, load(unfinished, out), out, 'onnxruntime')
    if with_preprocessing:
      spec, description = student.model.spec, student.description
      content = preprocessing.add(content, description, spec.mean, spec.std)
      unfinished.write_bytes(content)
      said += f'\n{preprocessing.checked(student, unfinished, out)}'
  return said


def described(content: bytes, student: Student) -> bytes:
  """A serialised model with the names of its classes and its weights' digest.

  Args:
    content: of a model.
    student: that it is of.
  """
  import onnx

  model = onnx.load_model_from_string(content)
  names = list(student.description.class_names)
  about = {preprocessing.NAMES: json.dumps(names), 'student': student.digest}
  onnx.helper.set_model_props(model, {k: v for k, v in about.items() if v})
  return model.SerializeToString()


def takes(image_size: int) -> dict[str, Any]:
  """What the model takes, for the JSON beside it."""
  return {
    'name': INPUT,
    'dtype': 'float32',
    'layout': 'NCHW',
    'shape': ['batch', 3, image_size, image_size],
    'values': '(pixel / 255 - mean) / std',
  }
