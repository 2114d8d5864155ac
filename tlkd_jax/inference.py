"""A finished run's model used on images."""

import dataclasses
import itertools
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from PIL import Image

from tlkd_jax.data import facts, transforms
from tlkd_jax.data.builders import walk
from tlkd_jax.evaluation import labelled_files
from tlkd_jax.evaluation.predictions import softmax
from tlkd_jax.models.network import make_eval_step
from tlkd_jax.runtime import devices, sharding
from tlkd_jax.runtime.atomic import replace_text
from tlkd_jax.runtime.errors import UserError, as_user_errors
from tlkd_jax.runtime.paths import expanded
from tlkd_jax.runtime.texts import visible
from tlkd_jax.training import (
  checkpoints,
  finished,
)
from tlkd_jax.training.descriptions import Description

# Of a longer list the rest is counted.
_SHOWN = 20


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Labelled:
  """Images with the probabilities of their classes.

  Attributes:
    names: N, what each image is called: its file, else 'image 0', 'image 1'.
    class_names: K.
    probabilities: float64[N, K], each row sums to 1.
  """

  names: list[str]
  class_names: tuple[str, ...]
  probabilities: np.ndarray

  @property
  def labels(self) -> list[str]:
    """The most probable class of each image."""
    return [self.class_names[k] for k in self.probabilities.argmax(-1)]

  def __len__(self) -> int:
    return len(self.names)

  def __repr__(self) -> str:
    lines = []
    for name, row in zip(
      self.names[:_SHOWN], self.probabilities[:_SHOWN], strict=True
    ):
      best = np.argsort(-row, kind='stable')[:3]
      shown = ', '.join(f'{self.class_names[k]} {row[k]:.3f}' for k in best)
      lines.append(f'{name}: {shown}')
    if len(self) > _SHOWN:
      lines.append(f'... {len(self) - _SHOWN} more')
    return '\n'.join(lines) or 'no images'


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Predictor:
  """A finished run's network, called with images; see `load_predictor`.

  Attributes:
    workdir: of the run.
    description: of its best checkpoint.
    variables: (params, model_state), on the devices.
    eval_step: from network.make_eval_step.
    mesh: devices.
  """

  workdir: str
  description: Description
  variables: Any
  eval_step: Callable[..., Any]
  mesh: Mesh

  def __call__(self, images: Any) -> Labelled:
    """The probabilities of the classes of some images.

    Args:
      images: one image or a list of images, each the path of a file, a Pillow
        image or an array uint8[H, W, 3] in RGB; or an array uint8[N, H, W, 3].
        All are resized and cropped as in the run's evaluation.

    Raises:
      UserError: no such file, a file that cannot be decoded, an array of
        another form; the image is named.
    """
    with as_user_errors():
      each = _each(images)
      names = [_name_of(image, number) for number, image in enumerate(each)]
      squares = map(self._square, each, names)
      return Labelled(
        names, self.description.class_names, self.probabilities(squares)
      )

  def __repr__(self) -> str:
    about = self.description
    return (
      f'Predictor of {self.workdir}: {about.model}, {about.num_classes} '
      f'classes, {about.image_size} px'
    )

  def probabilities(self, squares: Iterable[np.ndarray]) -> np.ndarray:
    """Images as the network sees them -> their classes' probabilities.

    Args:
      squares: N of uint8[S, S, 3] with S pixels, description.image_size; read
        batch by batch.

    Returns:
      float64[N, K].
    """
    size, found = self.description.image_size, []
    waiting = iter(squares)
    batch_size = 8 * self.mesh.size
    while some := list(itertools.islice(waiting, batch_size)):
      images = np.zeros((batch_size, size, size, 3), np.uint8)
      images[: len(some)] = some
      batch = sharding.shard_batch({'image': images}, self.mesh)
      outputs = self.eval_step(self.variables, batch['image'])
      logits = jax.device_get(outputs['logits'])
      found.append(softmax(logits[: len(some)]))
    return np.concatenate([np.zeros((0, self.description.num_classes)), *found])

  def square(self, image: Image.Image) -> np.ndarray:
    """An RGB image -> uint8[S, S, 3], as in the run's evaluation."""
    size, crop = self.description.image_size, self.description.crop
    return transforms.to_square(
      image,
      short_side=transforms.resize_size(size, crop),
      size=size,
      interpolation=self.description.interpolation,
    )

  def _square(self, image: Any, name: str) -> np.ndarray:
    try:
      return self.square(_as_image(image))
    except transforms.BadImageError as error:
      raise ValueError(f'{name}: {error}') from error


def load_predictor(workdir: str | os.PathLike, mesh: Mesh) -> Predictor:
  """The best network of a finished run.

  Raises:
    UserError: no run there, or its checkpoint cannot be read.
  """
  with as_user_errors():
    workdir = expanded(workdir)
    description = checkpoints.read_description(workdir)
    loaded = finished.restore(str(workdir), description)
    finished.say_if_unfinished(workdir)
  return Predictor(
    workdir=str(workdir),
    description=description,
    variables=sharding.replicate((loaded.params, loaded.model_state), mesh),
    eval_step=make_eval_step(loaded.network, mesh),
    mesh=mesh,
  )


def _each(images: Any) -> list[Any]:
  """The images one by one."""
  if isinstance(images, list | tuple):
    return list(images)
  if isinstance(images, str | os.PathLike | Image.Image):
    return [images]
  array = np.asarray(images)
  return list(array) if array.ndim == 4 else [array]


def _name_of(image: Any, number: int) -> str:
  if isinstance(image, str | os.PathLike):
    return os.fspath(image)
  return f'image {number}'


def _as_image(image: Any) -> Image.Image:
  if isinstance(image, str | os.PathLike):
    return transforms.decode_image(pathlib.Path(image).read_bytes())
  if isinstance(image, Image.Image):
    return transforms.as_rgb(image)
  array = np.asarray(image)
  plain = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3
  if not plain or 0 in array.shape:
    raise transforms.BadImageError(
      f'{type(image).__name__} of {array.dtype}{list(array.shape)}; accepted: '
      'a path, a Pillow image, uint8[H, W, 3]'
    )
  return Image.fromarray(array)


def predict_images(
  workdir: str, source: str, output: str | None, mesh: Mesh
) -> None:
  """Writes the class and the probabilities of each image of a file or folder.

  What cannot be read is named with its reason, counted and left out.

  Args:
    workdir: a finished run.
    source: an image file, or a folder that is searched for images.
    output: a .csv or .jsonl file, see `labelled_files`; None prints CSV.
    mesh: devices.

  Raises:
    UserError: no run there, no image that can be read, or an unknown output
      format.
  """
  with as_user_errors():
    if output:
      output = str(expanded(output))
      _check_output(pathlib.Path(output))
    tree, files = _image_files(expanded(source))
  predictor = load_predictor(workdir, mesh)
  devices.say(mesh)
  read: list[str] = []
  bad: list[str] = []

  def squares() -> Iterator[np.ndarray]:
    for file in files:
      name = _as_utf8(file.origin)
      try:
        image = transforms.decode_image(walk.read_image(tree, file))
        square = predictor.square(image)
      except (transforms.BadImageError, OSError) as error:
        bad.append(f'{visible(name)}: {error}')
        logging.warning('left out, %s', bad[-1])
        continue
      read.append(name)
      yield square

  probabilities = predictor.probabilities(squares())
  if not read:
    raise UserError(_nothing_read(source, bad))
  names = predictor.description.class_names
  if sharding.is_lead():
    rows = labelled_files.make_rows(read, names, probabilities)
    _write_rows(rows, output)
  if bad:
    logging.warning('%d of %d images could not be read', len(bad), len(files))


def _nothing_read(source: str, bad: list[str]) -> str:
  shown = '\n  '.join(bad[:_SHOWN])
  more = f'\n  ... {len(bad) - _SHOWN} more' if len(bad) > _SHOWN else ''
  return f'--input {source}: no image could be read:\n  {shown}{more}'


def _image_files(source: pathlib.Path) -> tuple[walk.Tree, list[walk.File]]:
  """The images of a folder, or the one file, and the tree that reads them."""
  if source.is_file():
    return walk.single(source)
  if not source.is_dir():
    there = source.exists() or source.is_symlink()
    kind = 'neither a file nor a folder' if there else 'no such file or folder'
    raise FileNotFoundError(f'--input {source}: {kind}')
  with walk.open_folder(source) as tree:
    files, left_out = walk.images(tree)
  for line in facts.left_out_lines(walk.count_left_out(left_out)):
    logging.info('--input: left out %s', line)
  if not files:
    raise ValueError(f'--input {source} holds no image ({transforms.ENDINGS})')
  return tree, files


def _as_utf8(path: str) -> str:
  r"""A path as it is; bytes of it that are no UTF-8 as \xNN."""
  return os.fsencode(path).decode('utf-8', 'backslashreplace')


def _check_output(path: pathlib.Path) -> None:
  if path.suffix not in ('.csv', '.jsonl'):
    raise ValueError(f'--output {path}: accepted are .csv and .jsonl')
  if not path.parent.is_dir():
    raise FileNotFoundError(f'--output {path}: no such folder {path.parent}')
  if path.is_dir():
    raise IsADirectoryError(f'--output {path} is a folder')


def _write_rows(rows: list[labelled_files.Row], output: str | None) -> None:
  if output is None:
    sys.stdout.write(labelled_files.as_csv(rows))
    return
  path = pathlib.Path(output)
  jsonl = path.suffix == '.jsonl'
  write = labelled_files.as_json_lines if jsonl else labelled_files.as_csv
  replace_text(path, write(rows))
