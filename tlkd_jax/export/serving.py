"""`--mode=evaluate --suite=cost`: what predictions cost in every runtime here.

JAX, ONNX Runtime in float32 where its packages are installed, and in int8 where
a run has such a file. Of a folder of runs each network is measured once.
"""

import dataclasses
import importlib.util
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from tlkd_jax import evaluating
from tlkd_jax.export import formats, onnx
from tlkd_jax.models import create_model, serving
from tlkd_jax.models.layers.convolutions import lax_convolutions
from tlkd_jax.models.serving import BATCHES, Figures, Serving, Timing
from tlkd_jax.runtime import devices, timing
from tlkd_jax.runtime.errors import as_user_errors
from tlkd_jax.runtime.paths import expanded
from tlkd_jax.training import serving as measured

FLOAT = 'ONNX Runtime'
INT8 = 'ONNX Runtime, int8'
# Of a run: its own network, as `tlkd_jax.export` quantised it.
INT8_FILE = 'int8.onnx'


def measure_runs(workdir: str | os.PathLike) -> str:
  """Measures the networks of runs; writes each run's evaluation/cost.json.

  Neither data nor weights are read, but for a file in int8.

  Args:
    workdir: a run, or a folder of runs.

  Returns:
    The text to print, a line for each network, then what was not measured.

  Raises:
    UserError: no run with a checkpoint lies there.
  """
  known: dict[Figures, Serving] = {}
  lines: dict[str, None] = {}
  devices.available()
  with as_user_errors():
    for folder in evaluating.runs_in(expanded(workdir)):
      logging.info('%s', folder)
      found = measured.measure_run(folder, known, everything)
      if 'student' in found:
        # Teachers are not exported.
        found['student'] = _with_int8(found['student'], folder / INT8_FILE)
      measured.write(folder, found)
      for one in found.values():
        lines |= dict.fromkeys([measured.line(one), *one.missing])
  return '\n'.join(lines)


def everything(known: Figures) -> Serving:
  """A network in JAX and, where that can be, in ONNX Runtime."""
  found = serving.measure(known)
  needs = formats.FORMATS['onnx'].needs
  lacking = [name for name in needs if importlib.util.find_spec(name) is None]
  if lacking:
    return _missing(
      found,
      f'{FLOAT}: not measured: {" and ".join(lacking)} not installed here '
      '(`pip install -r requirements-export.txt`)',
    )
  return _with(found, FLOAT, lambda: _in_onnx(known))


def in_session(
  path: pathlib.Path, runtime: str, image_size: int
) -> tuple[Timing, ...]:
  """Times an ONNX file on all cores of this process.

  Args:
    path: the file; it takes float32 [batch, 3, H, W].
    runtime: what its timings are called.
    image_size: H and W.
  """
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = devices.cores()
  session = onnxruntime.InferenceSession(
    str(path), options, providers=['CPUExecutionProvider']
  )
  name, size = session.get_inputs()[0].name, path.stat().st_size
  found = []
  for batch in BATCHES:
    images = np.zeros((batch, 3, image_size, image_size), np.float32)
    taken = timing.take(lambda fed={name: images}: session.run(None, fed))
    found.append(serving.timed(taken, runtime, batch, 'cpu', file=size))
  return tuple(found)


def _in_onnx(known: Figures) -> tuple[Timing, ...]:
  model = create_model(known.model, num_classes=known.num_classes)
  # What is multiplied takes no part in how long that takes.
  params, state = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype),
    (model.params_shape, model.model_state_shape),
  )

  def logits(images: Any) -> Any:
    return model.apply(params, state, images)[0]['logits']

  with tempfile.TemporaryDirectory() as folder, lax_convolutions():
    path = pathlib.Path(folder) / 'float.onnx'
    path.write_bytes(onnx.convert(logits, known.image_size))
    return in_session(path, FLOAT, known.image_size)


def _with_int8(found: Serving, path: pathlib.Path) -> Serving:
  """Adds what a run's quantised file takes, where it has one."""
  name = found.figures.model
  if not path.exists():
    return _missing(
      found,
      f'{INT8}: {name} not measured: no {INT8_FILE} lies in the run '
      '(docs/export.md says how one is made)',
    )
  if importlib.util.find_spec('onnxruntime') is None:
    return _missing(
      found, f'{INT8}: {name} not measured: onnxruntime is not installed here'
    )
  size = found.figures.image_size
  return _with(found, INT8, lambda: in_session(path, INT8, size))


def _with(
  found: Serving, runtime: str, measure: Callable[[], tuple[Timing, ...]]
) -> Serving:
  try:
    timings = measure()
  # Converters and runtimes fail in ways of their own, and one network must not
  # cost the others.
  except Exception as error:
    reason = str(error).partition('\n')[0] or type(error).__name__
    name = found.figures.model
    return _missing(found, f'{runtime}: {name} not measured: {reason}')
  return dataclasses.replace(found, timings=(*found.timings, *timings))


def _missing(found: Serving, why: str) -> Serving:
  return dataclasses.replace(found, missing=(*found.missing, why))
