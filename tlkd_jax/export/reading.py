"""Exported files read back and run, after what they say of themselves."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from tlkd_jax.evaluation.predictions import softmax
from tlkd_jax.export import formats, hub, preprocessing, sessions
from tlkd_jax.export.student import Student
from tlkd_jax.models import create_model, fused_name
from tlkd_jax.models.functional import Model
from tlkd_jax.models.weights import pretrained, torch_files, twins
from tlkd_jax.runtime import devices
from tlkd_jax.runtime.errors import listed

# What onnxruntime calls the types of inputs that an exported classifier has.
_FLOATS = {'tensor(float)': np.float32, 'tensor(float16)': np.float16}


@dataclasses.dataclass(frozen=True)
class Exported:
  """A file that is run.

  Attributes:
    path: of it.
    runner: what runs it, with its threads.
    whole_images: whether `run` takes uint8 [H, W, 3] of any size; else [S, S,
      3] as the network sees it.
    run: such an image -> logits or probabilities [K].
    probabilities: which of the two.
  """

  path: pathlib.Path
  runner: str
  whole_images: bool
  run: Callable[[np.ndarray], np.ndarray]
  probabilities: bool = False

  def as_probabilities(self, found: np.ndarray) -> np.ndarray:
    """What `run` gave, as float64 [K] that sum to 1."""
    return found.astype(np.float64) if self.probabilities else softmax(found)


def read(path: pathlib.Path, student: Student) -> list[Exported]:
  """Reads a file, or all of a folder for a hub.

  Args:
    path: what `export_run` wrote.
    student: of the run that it should be of, as it was trained.

  Returns:
    What can be run, one or two.

  Raises:
    FileNotFoundError: there is nothing, or nothing that an export writes.
    ValueError: it is damaged, or it is of other classes, of another order of
      them, of another size of images, or of another run; or what runs it is
      not installed.
  """
  if path.is_dir():
    files = [path / name for name in (hub.WEIGHTS, hub.ONNX)]
    files = [file for file in files if file.is_file()]
    if not files:
      raise FileNotFoundError(
        f'{path} holds neither {hub.WEIGHTS} nor {hub.ONNX}; accepted: a file '
        'or a folder that `python -m tlkd_jax.export` wrote'
      )
    lacking = formats.missing('onnx')
    if lacking:
      files = [file for file in files if file.name != hub.ONNX] or files
    about = _read_json(path / hub.CONFIG)
    return [_read(file, about, student) for file in files]
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file or folder')
  beside = path.with_name(f'{path.name}.json')
  return [_read(path, _read_json(beside), student)]


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  """What lies beside a file; {} where nothing does."""
  if not path.is_file():
    return {}
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path} is damaged: {error}') from error
  if not isinstance(found, dict):
    raise ValueError(f'{path} is damaged: it is no object')
  return found


def _read(
  path: pathlib.Path, about: dict[str, Any], student: Student
) -> Exported:
  _check_bytes(path, about)
  suffix = path.suffix.removeprefix('.')
  if suffix not in _READERS:
    raise ValueError(
      f'{path}: accepted are {", ".join(f".{name}" for name in _READERS)} and '
      'folders for a hub'
    )
  lacking = formats.missing(suffix)
  if lacking:
    raise ValueError(
      f'{path}: to run it {" and ".join(lacking)} must be installed: '
      '`pip install -r requirements-export.txt`'
    )
  sizes = about.get('pretrained_cfg', {}).get('input_size')
  check(
    path,
    student,
    about.get('label_names'),
    sizes[-1] if sizes else None,
    about.get('weights_digest'),
  )
  return _READERS[suffix](path, about, student)


def _check_bytes(path: pathlib.Path, about: dict[str, Any]) -> None:
  """Of earlier versions no digest is known; of a folder that of each file."""
  sums = about.get('sha256')
  if not isinstance(sums, dict):
    return
  # A single file may have another name by now.
  alone = next(iter(sums.values())) if len(sums) == 1 else None
  expected = sums.get(path.name, alone)
  if expected and formats.checksums([path])['sha256'][path.name] != expected:
    raise ValueError(
      f'{path} is damaged: its bytes are not those that were exported. Export '
      'it again; if it was changed on purpose, delete its sha256 from the JSON'
    )


def check(
  path: pathlib.Path,
  student: Student,
  names: list[str] | None = None,
  size: int | None = None,
  digest: str | None = None,
) -> None:
  """Raises ValueError where a file is not of this student.

  Args:
    path: of the file, for messages.
    student: of the run.
    names: of classes, in the order of the file; None where it says none.
    size: of its images, likewise.
    digest: of the weights of its run, likewise.
  """
  description = student.description
  own = list(description.class_names)
  if names is not None and names != own:
    if sorted(names) == sorted(own):
      raise ValueError(
        f'{path} has its classes in another order than the run: '
        f'{listed(names)} there, {listed(own)} in the run'
      )
    raise ValueError(
      f'{path} has other classes than the run: {listed(names)} there, '
      f'{listed(own)} in the run'
    )
  if size is not None and size != description.image_size:
    raise ValueError(
      f'{path} takes images of {size} px, and the run has '
      f'{description.image_size} px'
    )
  if digest and student.digest and digest != student.digest:
    raise ValueError(_of_another_run(path))


def _of_another_run(path: pathlib.Path) -> str:
  return (
    f'{path} is of another run: its weights are not those of the best '
    'checkpoint there'
  )


def _check_count(path: pathlib.Path, student: Student, shape: Any) -> None:
  """Of the last axis of what a model gives, where its length is said."""
  count, own = shape[-1], student.model.num_classes
  if isinstance(count, int) and count != own:
    raise ValueError(
      f'{path} has other classes than the run: {count} there, {own} in the run'
    )


def _safetensors(
  path: pathlib.Path, about: dict[str, Any], student: Student
) -> Exported:
  model = student.model
  fused = fused_name(model.name)
  if about.get('fused') and fused:
    model = create_model(fused, num_classes=model.num_classes)
  tensors = {
    key: _as_float32(value)
    for key, value in torch_files.read_state_dict(path).items()
  }
  plain = create_model(model.name, num_classes=model.num_classes)
  try:
    params, state = pretrained.from_torch(plain, twins.adopt(plain, tensors))
  except ValueError as error:
    raise ValueError(
      f'{path} holds no weights of {model.name}, the model of the run: {error}'
    ) from error
  unknown = 'weights_digest' not in about and model is student.model
  if unknown and not _same(student, params, state):
    raise ValueError(_of_another_run(path))
  run = _by_jax(student.normalised, _logits(model, params, state))
  return Exported(path, _jax_runner(), False, run)


def _same(student: Student, params: Any, state: Any) -> bool:
  """Whether weights are a student's, up to what half precision leaves out."""
  pairs = zip(
    jax.tree.leaves((student.params, student.model_state)),
    jax.tree.leaves((params, state)),
    strict=True,
  )
  return all(np.allclose(own, found, 1e-2, 1e-6) for own, found in pairs)


def _as_float32(value: np.ndarray) -> np.ndarray:
  floating = jax.numpy.issubdtype(value.dtype, np.floating)
  return value.astype(np.float32) if floating else value


def _logits(model: Model, params: Any, state: Any) -> Callable:
  def logits(images):
    outputs, _ = model.apply(params, state, images)
    return outputs['logits']

  return jax.jit(logits)


def _by_jax(normalised: Callable, logits: Callable) -> Callable:
  return lambda square: np.asarray(logits(normalised(square)[None]))[0]


def _jax_runner() -> str:
  cores, kind = devices.cores(), jax.devices()[0].device_kind
  return f'JAX on {kind}, {cores} core{"s" * (cores > 1)}'


def _stablehlo(
  path: pathlib.Path, about: dict[str, Any], student: Student
) -> Exported:
  del about
  try:
    exported = jax_export.deserialize(bytearray(path.read_bytes()))
    taken, given = exported.in_avals[0].shape, exported.out_avals[0].shape
  # What a damaged buffer raises depends on where the damage is.
  except Exception as error:
    raise ValueError(f'{path} is no program of jax.export: {error}') from error
  check(path, student, size=taken[1])
  _check_count(path, student, given)
  run = _by_jax(student.normalised, jax.jit(exported.call))
  return Exported(path, _jax_runner(), False, run)


def _onnx(
  path: pathlib.Path, about: dict[str, Any], student: Student
) -> Exported:
  del about
  threads = devices.cores()
  try:
    session = sessions.session(path, threads)
  # onnxruntime has an exception of its own for each of its codes.
  except Exception as error:
    first = str(error).strip().splitlines()[0]
    raise ValueError(f'{path}: onnxruntime cannot read it: {first}') from error
  metadata = session.get_modelmeta().custom_metadata_map
  names = preprocessing.names_of(metadata)
  check(path, student, names=names, digest=metadata.get('student'))
  (taken, *_), (given, *_) = session.get_inputs(), session.get_outputs()
  runner = f'onnxruntime, {threads} thread{"s" * (threads > 1)}'
  if taken.type == 'tensor(uint8)' and len(taken.shape) == 3:
    _check_count(path, student, given.shape)

    def answer(image: np.ndarray) -> np.ndarray:
      return session.run([given.name], {taken.name: image})[0]

    return Exported(path, runner, True, answer, probabilities=True)
  if taken.type not in _FLOATS or len(taken.shape) != 4:
    raise ValueError(
      f'{path} takes {taken.type} {taken.shape}; accepted: float [batch, 3, S, '
      'S], or uint8 [height, width, 3]'
    )
  size = taken.shape[2]
  check(path, student, size=size if isinstance(size, int) else None)
  _check_count(path, student, given.shape)
  dtype = _FLOATS[taken.type]

  def run(square: np.ndarray) -> np.ndarray:
    nchw = student.normalised(square).transpose(2, 0, 1)[None].astype(dtype)
    return session.run([given.name], {taken.name: nchw})[0][0]

  return Exported(path, runner, False, run)


_READERS: dict[str, Callable[..., Exported]] = {
  'safetensors': _safetensors,
  'onnx': _onnx,
  'stablehlo': _stablehlo,
}
