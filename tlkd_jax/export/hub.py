"""A folder as the Hugging Face Hub has them: weights, configuration, card."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Generator
from typing import Any

from PIL import Image

from tlkd_jax.data import transforms
from tlkd_jax.evaluation import records
from tlkd_jax.export import (
  DEFAULT_OPSET,
  card,
  formats,
  onnx,
  preprocessing,
  weights,
)
from tlkd_jax.export.student import Student
from tlkd_jax.models.layers.branches import FUSED
from tlkd_jax.runtime import atomic, interrupts

WEIGHTS = 'model.safetensors'
ONNX = 'model.onnx'
CONFIG = 'config.json'
_PREPROCESSOR = 'preprocessor_config.json'
_CARD = 'README.md'
_ATTRIBUTES = '.gitattributes'
FILES = (WEIGHTS, ONNX, CONFIG, _PREPROCESSOR, _CARD, _ATTRIBUTES)

# Of config.json: that an export wrote the folder, and what the ONNX file takes.
_MARK = 'tlkd_jax_export'
ONNX_INPUT = 'onnx_input'
_LARGE = '{} filter=lfs diff=lfs merge=lfs -text\n'


def check(out: pathlib.Path, fold_norm: bool, opset: int | None) -> None:
  """Raises ValueError where a folder cannot be written, before any work.

  Args:
    out: the folder.
    fold_norm: whether folded norms are asked for.
    opset: of its ONNX file; None is the default.
  """
  if fold_norm:
    raise ValueError(
      '--fold-norm fits no folder for a hub, whose weights timm loads by the '
      'names of the model with its norms; accepted with the other formats'
    )
  formats.check_opset('hub', opset)
  if out.name in ('', '.', '..'):
    raise ValueError(
      f'--out {out}: the folder is replaced as a whole; give it by its name'
    )
  if not out.exists() and not out.is_symlink():
    return
  if not out.is_dir():
    raise ValueError(f'{out} is a file; --format hub writes a folder')
  found = sorted(path.name for path in out.iterdir())
  other = [name for name in found if name not in FILES]
  if other or (found and not _is_own(out)):
    raise ValueError(
      f'{out} holds what no export wrote ({", ".join((other or found)[:3])}); '
      'accepted: a new or empty folder, or one of an earlier --format hub'
    )


def _is_own(folder: pathlib.Path) -> bool:
  try:
    return _MARK in json.loads((folder / CONFIG).read_text(encoding='utf-8'))
  except (OSError, ValueError, TypeError):
    return False


def read_run(student: Student, workdir: pathlib.Path) -> card.Run:
  """What a run says of its student, for the card.

  Raises:
    FileNotFoundError: the run has no config.json.
    ValueError: a record of it is damaged; or its network is a fused one, which
      timm makes by no name.
  """
  if student.model.name.endswith(FUSED):
    raise ValueError(
      f'{student.model.name}: timm makes no fused network by its name, so that '
      'no folder for a hub can hold it; accepted: the other formats'
    )
  return card.read_run(workdir)


def write(
  student: Student,
  run: card.Run,
  out: pathlib.Path,
  opset: int | None = None,
  with_preprocessing: bool = False,
  name: str | None = None,
) -> str:
  """Writes the folder, whole or not at all; returns what to tell the user.

  Args:
    student: to write.
    run: from `read_run`.
    out: the folder.
    opset: of its ONNX file; None is the default.
    with_preprocessing: of the same, see onnx.write.
    name: ORGANISATION/NAME that it will have; None is the folder's.

  Raises:
    RuntimeError: a file that was written does not give the student's answers.
  """
  out.parent.mkdir(parents=True, exist_ok=True)
  missing = formats.missing('onnx')
  with replacing_folder(out) as unfinished:
    said = [weights.write(student, unfinished / WEIGHTS)]
    if not missing:
      opset = opset or DEFAULT_OPSET
      place = unfinished / ONNX
      said.append(onnx.write(student, place, opset, with_preprocessing))
    config = configuration(student, bool(missing), with_preprocessing)
    config |= formats.checksums(sorted(unfinished.iterdir()))
    _write_json(unfinished / CONFIG, config)
    _write_json(unfinished / _PREPROCESSOR, image_processor(student))
    large = [_LARGE.format(f'*{pathlib.Path(n).suffix}') for n in FILES[:2]]
    (unfinished / _ATTRIBUTES).write_text(''.join(large))
    files = [path.name for path in unfinished.iterdir()]
    text = card.write(student, run, config, name or out.name, files)
    (unfinished / _CARD).write_text(text, encoding='utf-8')
    said = [line.replace(f'{unfinished}', f'{out}') for line in said]
  if missing:
    said.append(
      f'{out / ONNX} is left out: it needs {" and ".join(missing)}, not '
      'installed here (`pip install -r requirements-export.txt`)'
    )
  return '\n'.join([*said, f'{out}: ready for the Hugging Face Hub'])


def configuration(
  student: Student, without_onnx: bool, with_preprocessing: bool
) -> dict[str, Any]:
  """config.json, as timm and transformers' TimmWrapper read it."""
  config = formats.configuration(student, 'safetensors')
  config[_MARK] = 1
  if not without_onnx:
    own = preprocessing.takes() if with_preprocessing else None
    config[ONNX_INPUT] = own or onnx.takes(student.image_size)
  return config


def image_processor(student: Student) -> dict[str, Any]:
  """preprocessor_config.json, for transformers' image processors.

  Short side and centre crop are those of BitImageProcessor, which works on
  tensors, so that single pixels are rounded otherwise than by Pillow.
  """
  description, spec = student.description, student.model.spec
  size, crop = description.image_size, description.crop
  return {
    'image_processor_type': 'BitImageProcessor',
    'do_convert_rgb': True,
    'do_resize': True,
    'size': {'shortest_edge': transforms.resize_size(size, crop)},
    'resample': int(
      Image.Resampling(transforms.INTERPOLATIONS[description.interpolation])
    ),
    'do_center_crop': True,
    'crop_size': {'height': size, 'width': size},
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': [value / 255 for value in spec.mean],
    'image_std': [value / 255 for value in spec.std],
  }


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  path.write_text(records.dumps(value, indent=2) + '\n', encoding='utf-8')


def _remove_stale(path: pathlib.Path) -> None:
  name = re.compile(rf'\.{re.escape(path.name)}\.\d+\.(tmp|old)')
  for left in path.parent.iterdir():
    match = name.fullmatch(left.name)
    # Between two renames the former folder is all that there is.
    if match is None or (match[1] == 'old' and not path.exists()):
      continue
    with contextlib.suppress(OSError):
      if time.time() - left.stat().st_ctime > atomic.STALE_SECONDS:
        shutil.rmtree(left)


@contextlib.contextmanager
def replacing_folder(path: pathlib.Path) -> Generator[pathlib.Path]:
  """A new folder that becomes `path` unless something is raised.

  What was there before is removed once the new one is in its place. What a
  kill left beside it a later export removes, as `atomic.replacing` does.
  """
  _remove_stale(path)
  unfinished = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  before = path.with_name(f'.{path.name}.{os.getpid()}.old')

  def remove():
    shutil.rmtree(unfinished, ignore_errors=True)

  remove()
  unfinished.mkdir()
  try:
    with interrupts.undone(remove):
      yield unfinished
      if path.exists():
        path.rename(before)
      try:
        unfinished.rename(path)
      except OSError:
        if before.exists():
          before.rename(path)
        raise
  finally:
    remove()
    shutil.rmtree(before, ignore_errors=True)
