"""The formats, one entry each, and the JSON that lies beside every file."""

import dataclasses
import hashlib
import importlib.util
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from tlkd_jax.data import Dataset
from tlkd_jax.evaluation import records
from tlkd_jax.export import (
  DEFAULT_OPSET,
  FORMAT_NAMES,
  OPSETS,
  half,
  onnx,
  preprocessing,
  qdq,
  quantization,
  stablehlo,
  weights,
)
from tlkd_jax.export import student as students
from tlkd_jax.export.options import Int8
from tlkd_jax.export.student import Student, library_model
from tlkd_jax.models.functional import Model
from tlkd_jax.models.layers.branches import FUSED
from tlkd_jax.models.weights import pretrained, twins
from tlkd_jax.runtime.atomic import replace_text


@dataclasses.dataclass(frozen=True)
class Format:
  """A way out of the package.

  Attributes:
    write: (student, file) -> what to tell the user; the file appears whole and
      compared with the student, or not at all.
    needs: packages that requirements-export.txt installs.
    takes: image size -> what the file takes; None where a library's model
      takes its own, whose names the weights must have.
  """

  write: Callable[[Student, pathlib.Path], str]
  needs: tuple[str, ...] = ()
  takes: Callable[[int], dict[str, Any]] | None = None


FORMATS: dict[str, Format] = {
  'safetensors': Format(weights.write),
  'onnx': Format(onnx.write, ('jax2onnx', 'onnxruntime'), onnx.takes),
  'stablehlo': Format(stablehlo.write, ('flatbuffers',), stablehlo.takes),
}


def check(
  name: str,
  out: pathlib.Path,
  opset: int | None = None,
  int8: Int8 | None = None,
) -> None:
  """Raises ValueError where a file cannot be written, before any work.

  Args:
    name: of the format.
    out: the file.
    opset: of an onnx file; None is the default.
    int8: how it is quantised; None is not at all.
  """
  if name not in FORMATS:
    accepted = ', '.join(FORMAT_NAMES)
    raise ValueError(f'unknown format {name!r}; accepted: {accepted}')
  if out.suffix != f'.{name}':
    raise ValueError(f'{out}: a {name} file needs the suffix .{name}')
  check_opset(name, opset)
  if int8 is not None and name != 'onnx':
    raise ValueError(
      f'--quantize int8: a {name} file is not quantised; accepted with '
      '--format onnx'
    )
  lacking = missing(name)
  if lacking:
    raise ValueError(
      f'export to {name} needs {" and ".join(lacking)}, not installed here: '
      'run `pip install -r requirements-export.txt`'
    )


def missing(name: str) -> list[str]:
  """Packages that a format needs and that are not installed."""
  needs = FORMATS[name].needs
  return [p for p in needs if importlib.util.find_spec(p) is None]


def check_opset(name: str, opset: int | None) -> None:
  """Raises ValueError where a format's file cannot have these operators."""
  if opset is None:
    return
  if name not in ('onnx', 'hub'):
    raise ValueError(
      f'--opset {opset}: a {name} file has no operator set; accepted with '
      '--format onnx'
    )
  if opset not in OPSETS:
    raise ValueError(f'--opset {opset}; accepted: {OPSETS[0]} to {OPSETS[-1]}')


def check_size(name: str, student: Student) -> None:
  """Raises ValueError where a file cannot hold the student's weights."""
  if name == 'onnx':
    onnx.check_size(student)


def write(
  student: Student,
  name: str,
  out: pathlib.Path,
  opset: int | None = None,
  with_preprocessing: bool = False,
) -> str:
  """Writes `out` and `out`.json; returns what to tell the user.

  Args:
    student: to write.
    name: of the format.
    out: the file.
    opset: of an onnx file; None is the default.
    with_preprocessing: of the same, see onnx.write.

  Raises:
    RuntimeError: the written model does not give the student's logits.
  """
  out.parent.mkdir(parents=True, exist_ok=True)
  config = configuration(student, name)
  if student.rounds:
    result = qdq.write(student, out, opset or DEFAULT_OPSET)
  elif name == 'onnx':
    opset = opset or DEFAULT_OPSET
    result = onnx.write(student, out, opset, with_preprocessing)
  else:
    result = FORMATS[name].write(student, out)
  if with_preprocessing:
    config['input'] = preprocessing.takes()
    config['output'] = preprocessing.gives(student.description.class_names)
  return f'{result}\n{_describe(out, config)}'


def write_quantized(
  student: Student,
  out: pathlib.Path,
  int8: Int8,
  dataset: Dataset,
  opset: int | None = None,
) -> str:
  """Writes an onnx file in int8 and `out`.json; as `write`.

  Args:
    student: to write; its norms are folded first, where there are any.
    out: the file.
    int8: how it is quantised.
    dataset: of its run.
    opset: version of the operators; None is the default.

  Raises:
    RuntimeError: the float model does not give the student's logits, or the
      quantised one not its accuracy.
  """
  out.parent.mkdir(parents=True, exist_ok=True)
  folded = students.folded(student)
  result, record = quantization.write(
    folded, out, int8, dataset, opset or DEFAULT_OPSET
  )
  config = configuration(folded, 'onnx') | {'quantization': record}
  return f'{result}\n{_describe(out, config)}'


def write_half(
  student: Student,
  name: str,
  out: pathlib.Path,
  dtype: str,
  dataset: Dataset,
  opset: int | None = None,
) -> str:
  """Writes a file in float16 or bfloat16 and `out`.json; as `write`.

  Args:
    student: to write.
    name: of the format.
    out: the file.
    dtype: a key of options.DTYPES that has the format.
    dataset: of its run; validation images tell what rounding costs.
    opset: of an onnx file; None is the default.

  Raises:
    RuntimeError: the dtype cannot hold a weight, or logits differ too much.
  """
  out.parent.mkdir(parents=True, exist_ok=True)
  given = student, out, dtype, dataset
  if name == 'onnx':
    result, record = half.write_onnx(*given, opset or DEFAULT_OPSET)
  else:
    result, record = half.write_safetensors(*given)
  config = configuration(student, name) | {'dtype': dtype, 'rounding': record}
  return f'{result}\n{_describe(out, config)}'


def _describe(out: pathlib.Path, config: dict[str, Any]) -> str:
  path = out.with_name(f'{out.name}.json')
  config = config | checksums([out])
  replace_text(path, records.dumps(config, indent=2) + '\n')
  return f'{path}: architecture, classes and preprocessing'


def checksums(files: Iterable[pathlib.Path]) -> dict[str, Any]:
  """Of files, for the JSON beside them: {'sha256': {name: digits}}."""
  found = {}
  for path in files:
    with path.open('rb') as file:
      found[path.name] = hashlib.file_digest(file, 'sha256').hexdigest()
  return {'sha256': found}


def configuration(student: Student, name: str) -> dict[str, Any]:
  """The content of the JSON beside the file, as timm's config.json has it.

  Mean and standard deviation hold for images in 0..1. They are those that the
  student was trained with, which need not be the architecture's own.

  Args:
    student: that was written.
    name: of the format.
  """
  target = library_model(student)
  library, _, architecture = twins.full_name(target.name).rpartition('/')
  fused = architecture.endswith(FUSED)
  architecture = architecture.removesuffix(FUSED)
  spec, description = student.model.spec, student.description
  size = student.image_size
  table = pretrained.leaf_table(target)
  heads = [_module(table, head) for head in target.spec.head]
  first = (target.spec.stem, *target.spec.more_stems)
  stems = [_module(table, path) for path in first]
  classes = student.model.num_classes
  result = {
    'architecture': architecture,
    'library': library or 'efficientnet_lite_pytorch',
    'num_classes': classes,
    'num_features': _pre_logits(student),
    'label_names': list(description.class_names),
    'licences': list(description.licences),
    'pretrained_cfg': {
      'num_classes': classes,
      'input_size': [3, size, size],
      'interpolation': description.interpolation,
      'crop_pct': description.crop,
      'crop_mode': 'center',
      'mean': [value / 255 for value in spec.mean],
      'std': [value / 255 for value in spec.std],
      'first_conv': stems[0] if len(stems) == 1 else stems,
      'classifier': heads[0] if len(heads) == 1 else heads,
    },
  }
  if student.digest:
    result['weights_digest'] = student.digest
  if fused:
    result['fused'] = True
  if 'position' in table:
    # Positions are stored for one grid and interpolated at run time.
    own = _stored_side(student, target, table)
    result['model_args'] = {'dynamic_img_size': True, **own}
  takes = FORMATS[name].takes
  if takes is not None:
    result['input'] = takes(size)
    result['folded_norms'] = student.folded
  if student.rounds:
    result['quantized'] = 'int8'
  return result


def _stored_side(
  student: Student, target: Model, table: dict
) -> dict[str, int]:
  """Where positions are not of the native grid: of which images they are."""
  shape, count = table['position'][0], student.params['position'].shape[1]
  if count == shape[1]:
    return {}
  patches = count - pretrained.prefix_positions(target, table)
  patch = table[f'{target.spec.stem}.kernel'][0][0]
  return {'img_size': patch * math.isqrt(patches)}


def _module(table: dict, path: str) -> str:
  return table[f'{path}.kernel'][1].key.rpartition('.')[0]


def _pre_logits(student: Student) -> int:
  size = student.image_size
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  outputs, _ = jax.eval_shape(
    student.model.apply, student.params, student.model_state, images
  )
  return outputs['pre_logits'].shape[-1]
