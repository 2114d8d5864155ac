"""Takes a fine-tuned student out of the package.

    python -m tlkd_jax.export --checkpoint RUN --format safetensors --out FILE

Formats: `safetensors` (timm's key names where timm has the network, else those
of the variant's own library), `onnx` (images NCHW), `stablehlo` (jax.export,
images NHWC). FILE.json beside it says what a user of the weights must know:
architecture, classes, preprocessing. Every file is read
back and compared before the command succeeds. See docs/export.md.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import export as jax_export

from tlkd_jax.export import onnx as export_onnx
from tlkd_jax.models import create_model
from tlkd_jax.models.functional import Array, Model, Tree
from tlkd_jax.models.layers.convolutions import lax_convolutions
from tlkd_jax.models.weights import folding, pretrained, torch_files, twins
from tlkd_jax.runtime.errors import UserError, as_user_errors
from tlkd_jax.training import checkpoints, networks
from tlkd_jax.training.checkpoints import Description

# Largest difference of logits that a converted model may have, as a share of
# the largest logit (or of 1 where all are smaller).
TOLERANCE = 1e-4
# Packages that requirements-export.txt installs.
_NEEDS = {'onnx': ('jax2onnx', 'onnxruntime'), 'stablehlo': ('flatbuffers',)}
_PLATFORMS = ('cpu', 'cuda', 'tpu')


@dataclasses.dataclass(frozen=True)
class Student:
  """What is exported.

  Attributes:
    model: as it was trained, or with folded norms.
    params: its parameters, numpy arrays.
    model_state: its BatchNorm statistics, numpy arrays.
    description: of the run, see networks.describe.
    folded: whether norms were folded.
  """

  model: Model
  params: Tree
  model_state: Tree
  description: Description
  folded: bool = False

  @property
  def image_size(self) -> int:
    """Side of the images, in pixels."""
    return self.description.image_size

  def logits(self, images: Array) -> Array:
    """Normalised float32 images [B, H, W, 3] -> logits [B, K]."""
    outputs, _ = self.model.apply(self.params, self.model_state, images)
    return outputs['logits']


def load_student(
  checkpoint: str | os.PathLike, *, fold_norm: bool = False
) -> Student:
  """The best student of a run.

  Args:
    checkpoint: workdir of a TL or TL+KD run.
    fold_norm: fold every BatchNorm into the convolution before it.

  Raises:
    FileNotFoundError: no run with a checkpoint lies there.
    ValueError: it is a teacher's run or corrupt, or there is no norm to fold.
  """
  description = checkpoints.read_description(checkpoint)
  if description.arm == 'teacher':
    raise ValueError(
      f'{checkpoint} is the run of a teacher, and students are exported: give '
      'the workdir of a TL or TL+KD run'
    )
  loaded = networks.restore(str(checkpoint), description)
  model = loaded.network.model
  params, state = jax.device_get((loaded.params, loaded.model_state))
  if fold_norm:
    model, params, state = folding.fold_norms(model, params, state)
  return Student(model, params, state, description, fold_norm)


def export_run(
  checkpoint: str | os.PathLike,
  format: str,
  out: str | os.PathLike,
  *,
  fold_norm: bool = False,
) -> str:
  """Writes a run's student to `out` and its configuration beside it.

  Args:
    checkpoint: workdir of a TL or TL+KD run.
    format: a key of FORMATS.
    out: the file; its suffix must be the format's name.
    fold_norm: fold every BatchNorm into the convolution before it.

  Returns:
    What was written and how it compares with the student, for the user.

  Raises:
    UserError: an unknown format, a wrong suffix, folded norms as safetensors,
      no student there, or a converter that is not installed.
    RuntimeError: the written model does not give the student's logits.
  """
  out = pathlib.Path(out)
  with as_user_errors():
    if format not in FORMATS:
      raise ValueError(
        f'unknown format {format!r}; accepted: {", ".join(FORMATS)}'
      )
    if out.suffix != f'.{format}':
      raise ValueError(f'{out}: a {format} file needs the suffix .{format}')
    if fold_norm and format == 'safetensors':
      raise ValueError(
        'folded norms fit no safetensors file: the models of timm and '
        'torchvision have their norms, and could not load it. Leave '
        '--fold-norm out, or export to onnx or stablehlo'
      )
    _check_installed(format)
    student = load_student(checkpoint, fold_norm=fold_norm)
  out.parent.mkdir(parents=True, exist_ok=True)
  result = FORMATS[format](student, out)
  path = out.with_name(f'{out.name}.json')
  path.write_text(json.dumps(configuration(student, format), indent=2) + '\n')
  return f'{result}\n{path}: architecture, classes and preprocessing'


def configuration(student: Student, format: str) -> dict[str, Any]:
  """The content of the JSON beside the file, as timm's config.json has it.

  Mean and standard deviation hold for images in 0..1. They are those that the
  student was trained with, which need not be the architecture's own.
  """
  target = _library_model(student)
  library, _, architecture = twins.full_name(target.name).rpartition('/')
  spec, description = student.model.spec, student.description
  size = student.image_size
  table = pretrained.leaf_table(target)
  heads = [_module(table, head) for head in target.spec.head]
  classes = student.model.num_classes
  result = {
    'architecture': architecture,
    'library': library or 'efficientnet_lite_pytorch',
    'num_classes': classes,
    'num_features': _pre_logits(student),
    'label_names': list(description.class_names),
    'pretrained_cfg': {
      'num_classes': classes,
      'input_size': [3, size, size],
      'interpolation': description.interpolation,
      'crop_pct': description.crop,
      'crop_mode': 'center',
      'mean': [value / 255 for value in spec.mean],
      'std': [value / 255 for value in spec.std],
      'first_conv': _module(table, target.spec.stem),
      'classifier': heads[0] if len(heads) == 1 else heads,
    },
  }
  if 'position' in table:
    # Positions are stored for the native grid and interpolated at run time.
    result['model_args'] = {'dynamic_img_size': True}
  if format != 'safetensors':
    result['input'] = _INPUTS[format](size)
    result['folded_norms'] = student.folded
  return result


def state_dict(student: Student) -> dict[str, np.ndarray]:
  """The student's weights under the names of `configuration`'s library."""
  model = create_model(
    student.model.name, num_classes=student.model.num_classes
  )
  own = pretrained.to_torch(model, student.params, student.model_state)
  target = _library_model(student)
  return own if target is model else twins.rename(model, target, own)


def to_stablehlo(student: Student) -> jax_export.Exported:
  """The student as a StableHLO program, weights inside.

  Its `call` takes float32 [B, H, W, 3] with any B, on CPU, CUDA and TPU.
  """
  (batch,) = jax_export.symbolic_shape('batch')
  size = student.image_size
  images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
  with lax_convolutions():
    function = jax.jit(student.logits)
    return jax_export.export(function, platforms=_PLATFORMS)(images)


def sample_images(student: Student, count: int) -> np.ndarray:
  """Normalised noise [count, H, W, 3], always the same."""
  size = student.image_size
  shape = (count, size, size, 3)
  return np.random.default_rng(count).normal(size=shape).astype(np.float32)


def max_difference(
  student: Student, converted: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, float]:
  """Compares logits on batches of one and of three images.

  Args:
    student: the reference.
    converted: normalised float32 images [B, H, W, 3] -> logits [B, K].

  Returns:
    (largest absolute difference, largest absolute logit of the student).
  """
  apply = jax.jit(student.logits)
  differences, largest = [], []
  for count in (1, 3):
    images = sample_images(student, count)
    expected = np.asarray(apply(images))
    differences.append(np.abs(np.asarray(converted(images)) - expected).max())
    largest.append(np.abs(expected).max())
  return float(np.max(differences)), float(np.max(largest))


def _check_installed(format: str) -> None:
  packages = _NEEDS.get(format, ())
  missing = [p for p in packages if importlib.util.find_spec(p) is None]
  if missing:
    raise ValueError(
      f'export to {format} needs {" and ".join(missing)}, not installed here: '
      'run `pip install -r requirements-export.txt`'
    )


def _write_safetensors(student: Student, out: pathlib.Path) -> str:
  entries = state_dict(student)
  with _replacing(out) as unfinished:
    torch_files.write_safetensors(unfinished, entries, {'format': 'pt'})
    back = torch_files.read_state_dict(unfinished)
    if back.keys() != entries.keys() or any(
      not np.array_equal(back[key], entries[key]) for key in entries
    ):
      raise RuntimeError(f'{out}: what was read back is not what was written')
  target = _library_model(student)
  return f'{out}: {len(entries)} entries, keys of {target.name}'


def _write_onnx(student: Student, out: pathlib.Path) -> str:
  with _replacing(out) as unfinished:
    with lax_convolutions():
      content = export_onnx.convert(student.logits, student.image_size)
    unfinished.write_bytes(content)
    run = export_onnx.load(unfinished)
    return _checked(student, run, out, 'onnxruntime')


def _write_stablehlo(student: Student, out: pathlib.Path) -> str:
  with _replacing(out) as unfinished:
    unfinished.write_bytes(to_stablehlo(student).serialize())
    exported = jax_export.deserialize(bytearray(unfinished.read_bytes()))
    return _checked(student, exported.call, out, 'the deserialised function')


def _checked(
  student: Student, converted, out: pathlib.Path, runner: str
) -> str:
  difference, largest = max_difference(student, converted)
  if not difference <= TOLERANCE * max(largest, 1.0):
    raise RuntimeError(
      f'{out} is not written: {runner} differs from the student by '
      f'{difference:.3g} in logits of up to {largest:.3g}'
    )
  return (
    f'{out}: {runner} differs from the student by at most {difference:.2e} '
    f'(largest logit {largest:.3g}; batches of 1 and 3)'
  )


@contextlib.contextmanager
def _replacing(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """A temporary file that becomes `out` unless something is raised."""
  unfinished = out.with_name(f'.{os.getpid()}.{out.name}')
  try:
    yield unfinished
    unfinished.replace(out)
  finally:
    unfinished.unlink(missing_ok=True)


def _library_model(student: Student) -> Model:
  """The variant whose keys are written: timm's, else the student's own."""
  name = twins.timm_name(student.model.name) or student.model.name
  return create_model(name, num_classes=student.model.num_classes)


def _module(table: dict, path: str) -> str:
  return table[f'{path}.kernel'][1].key.rpartition('.')[0]


def _pre_logits(student: Student) -> int:
  size = student.image_size
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  outputs, _ = jax.eval_shape(
    student.model.apply, student.params, student.model_state, images
  )
  return outputs['pre_logits'].shape[-1]


_INPUTS: dict[str, Callable[[int], dict[str, Any]]] = {
  'onnx': lambda size: {
    'name': export_onnx.INPUT,
    'dtype': 'float32',
    'layout': 'NCHW',
    'shape': ['batch', 3, size, size],
    'values': '(pixel / 255 - mean) / std',
  },
  'stablehlo': lambda size: {
    'dtype': 'float32',
    'layout': 'NHWC',
    'shape': ['batch', size, size, 3],
    'values': '(pixel / 255 - mean) / std',
    'platforms': list(_PLATFORMS),
  },
}

FORMATS: dict[str, Callable[[Student, pathlib.Path], str]] = {
  'safetensors': _write_safetensors,
  'onnx': _write_onnx,
  'stablehlo': _write_stablehlo,
}


def main(argv: list[str] | None = None) -> None:
  """The command; exits with 2 on a user's mistake, 1 on a failed check."""
  parser = argparse.ArgumentParser(
    prog='python -m tlkd_jax.export', description="Exports a run's student."
  )
  parser.add_argument('--checkpoint', required=True, help='workdir of a run')
  parser.add_argument('--format', required=True, choices=FORMATS)
  parser.add_argument('--out', required=True, help='the file, e.g. a.onnx')
  parser.add_argument(
    '--fold-norm',
    action='store_true',
    help='fold BatchNorm into the convolutions (onnx, stablehlo)',
  )
  flags = parser.parse_args(argv)
  try:
    result = export_run(
      flags.checkpoint, flags.format, flags.out, fold_norm=flags.fold_norm
    )
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  except (OSError, RuntimeError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(1)
  print(result)


if __name__ == '__main__':
  # Here, so that callers of `main` keep their own log level.
  logging.set_verbosity(logging.ERROR)
  main()
