"""What a frozen backbone says of images: computed once, stored, then read.

A probe's backbone is one that others have too: probes of other strengths, folds
or seeds differ from it in the head alone. So what it says before its last layer
is stored by image and view, under a fingerprint in which the head has no part,
and the head is applied to what is read (Kornblith et al. 2019, arXiv
1805.08974, section 3, fit heads on stored features likewise).

Views are drawn and the backbone is run in batches of the run's size, by the
augmentation and the model code of the step. Stored in float32 a probe, its
predictions and its stored targets are bitwise those without the store where
images fall into batches of one size on devices of one number, which the
fingerprint holds; in float16 features are rounded to 2^-11 of their value.
"""

import dataclasses
import functools
import hashlib
import inspect
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from tlkd_jax.data import Dataset, Split, augment, randaugment, sources
from tlkd_jax.models.functional import Tree
from tlkd_jax.models.network import (
  Network,
  output_shapes,
  with_last_layer,
)
from tlkd_jax.runtime import bars, sharding
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.settings import Settings
from tlkd_jax.training import drawing, inputs, views
from tlkd_jax.training import workdir as workdirs
from tlkd_jax.training.feature_store import KEY, Store, View, image_keys, row_of
from tlkd_jax.training.step import as_int32

# Fits that leave a backbone as it is.
KINDS = ('probed', 'crossfitted')
# To be raised when the meaning of a stored row changes.
_FORMAT = 2
# Of a file, about; what is computed of it is lost when a run is killed.
_ROWS_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class Recipe:
  """All that the features of a split depend on beside the weights.

  Attributes:
    root: folder of this and other features; None keeps them in memory.
    network: the backbone and how it looks at images.
    outputs: names of its outputs that are kept, 'pre_logits' among them.
    augmentation: from drawing.make_augmentation, or drawing.make_clean of it.
    split: the images.
    batch_size: of the run.
    dtype: 'float16' | 'float32', of what is kept.
    in_parts: whether the weights are spread over the devices.
  """

  root: pathlib.Path | None
  network: Network
  outputs: tuple[str, ...]
  augmentation: functools.partial
  split: Split
  batch_size: int
  dtype: str
  in_parts: bool = False

  @property
  def row(self) -> np.dtype:
    """The structured dtype of what is kept of an image."""
    shapes = output_shapes(self.network, self.split.images.shape[1])
    widths = {name: shapes[name].shape[-1] for name in self.outputs}
    return row_of(widths, self.dtype)

  @property
  def is_drawn(self) -> bool:
    """Whether an image has several views, by its number in its data set."""
    return not drawing.is_clean(self.augmentation)

  def fingerprint(self, variables: Tree, mesh: Mesh) -> dict:
    """JSON-able; all but the images, the view and the network's head."""
    network, model = self.network, self.network.model
    options = dict(self.augmentation.keywords)
    if not self.is_drawn:
      options = {name: options[name] for name in drawing.OF_CLEAN}
    code = ''.join(inspect.getsource(m) for m in (augment, randaugment))
    backbone = {
      'params': with_last_layer(model, variables['params'], {}),
      'model_state': variables['model_state'],
    }
    return {
      'format': _FORMAT,
      'jax': jax.__version__,
      'network': model.name,
      'backbone weights': digest(backbone),
      'preprocessing': repr(
        (network.image_size, model.spec.mean, model.spec.std, network.dtype)
      ),
      'views': {k: repr(v) for k, v in options.items()},
      'augmentation code': hashlib.sha256(code.encode()).hexdigest(),
      'images': list(self.split.images.shape[1:]),
      'stored': [list(self.outputs), self.dtype],
      # The order of sums differs with these, in the last bits.
      'batches': [self.batch_size, mesh.size, jax.default_backend()],
    }


class Features:
  """Rows of some views of the images of a split."""

  def __init__(self, outputs: Sequence[str], there: list[tuple]):
    """Takes for each view (the rows, where those of each image are).

    Of views that are one it takes that one.
    """
    self._outputs = outputs
    self._there = there

  def __call__(self, rows: np.ndarray, view: int) -> dict[str, np.ndarray]:
    """{'pre_logits': float32 [B, D], ...} of images by place in the split."""
    found, places = self._there[min(view, len(self._there) - 1)]
    taken = found.take(places[rows])
    return {name: np.asarray(taken[name], np.float32) for name in self._outputs}


def is_probe(run: str | pathlib.Path) -> bool:
  """Whether a finished run left its backbone as it was."""
  folder = pathlib.Path(run).expanduser()
  if not (folder / 'config.json').exists():
    return False
  config = workdirs.read(folder)
  section = config['teacher' if config['arm'] == 'teacher' else 'student']
  return section.get('fit') in KINDS


def root_of(settings: Settings, size: int, what: str) -> pathlib.Path | None:
  """Where features of a run lie; None, with why in the log, where nowhere.

  Args:
    settings: of the run.
    size: in bytes, of all that the run would store.
    what: is stored, for the message.
  """
  section = settings.targets
  if not section.features_mib or jax.process_count() > 1:
    return None
  if size > section.features_mib * 2**20:
    logging.info(
      'features of %s would take %s, more than targets.features_mib, %d MiB: '
      'they are not stored',
      *(what, in_words(size), section.features_mib),
    )
    return None
  return folder_of(settings)


def folder_of(settings: Settings) -> pathlib.Path:
  """The folder of all stored features."""
  place = settings.targets.features_dir
  if place is not None:
    return pathlib.Path(place).expanduser()
  cache = settings.data.cache_dir or sources.default_cache_dir()
  return pathlib.Path(cache).expanduser() / 'features'


def in_words(size: float) -> str:
  """Bytes for people: '3.1 MB'."""
  return f'{size / 1e6:.3g} MB' if size < 1e9 else f'{size / 1e9:.3g} GB'


def bytes_of(num_images: int, num_views: int, row: np.dtype) -> int:
  """What so many views of so many images take."""
  return num_images * num_views * row.itemsize


def as_evaluated(settings: Settings, dataset: Dataset, split: str):
  """The views of a split as it is evaluated: one of each image."""
  clean = drawing.make_clean(drawing.make_augmentation(settings, dataset))
  if split == 'train':
    return clean
  # Stored as they are seen.
  return functools.partial(clean, square=dataset.image_size)


def prepare(
  recipe: Recipe,
  variables: Tree,
  num_views: int,
  mesh: Mesh,
  say: Callable | None = None,
) -> Features:
  """The features of the first views of each image; computes what is missing.

  Args:
    recipe: what they are of.
    variables: of the network, {'params', 'model_state'}, on the host.
    num_views: V; they are one where nothing of them is drawn.
    mesh: devices.
    say: from `make_say`; None makes it if need be.

  Raises:
    ValueError: features that are not finite or that the dtype cannot hold.
  """
  several = range(num_views if recipe.is_drawn else 1)
  if recipe.root is None:
    keys = np.arange(len(recipe.split), dtype=np.uint64)
    there = [View([]) for _ in several]
    return _filled(recipe, variables, keys, None, there, mesh, say)
  keys = image_keys(recipe.split, by_index=recipe.is_drawn)
  store = Store(recipe.root, recipe.fingerprint(variables, mesh), recipe.row)
  with store.claimed():
    there = [store.read(view) for view in several]
    return _filled(recipe, variables, keys, store, there, mesh, say)


def _filled(recipe, variables, keys, store, there, mesh, say) -> Features:
  missing = [np.flatnonzero(view.find(keys) < 0) for view in there]
  number = sum(rows.size for rows in missing)
  if store is not None:
    logging.info(
      'features: %d of %d are computed, the others are read; %s, in %s',
      number,
      keys.size * len(there),
      in_words(bytes_of(keys.size, len(there), recipe.row)),
      store.folder,
    )
  if number:
    compute = make_compute(recipe, mesh, say)
    new = _computed(recipe, variables, keys, missing, compute, mesh)
    more: list[list[np.ndarray]] = [[] for _ in there]
    for view, rows in new:
      more[view].append(rows if store is None else store.write(view, rows))
    there = [
      View([*old.files, *files]) if files else old
      for old, files in zip(there, more, strict=True)
    ]
  places = [view.find(keys) for view in there]
  return Features(recipe.outputs, list(zip(there, places, strict=True)))


def _computed(
  recipe, variables, keys, missing, compute, mesh
) -> Iterator[tuple[int, np.ndarray]]:
  """(view, rows for a file) of the images that are missing of each view."""
  size = recipe.batch_size
  at_once = max(1, _ROWS_AT_ONCE // size) * size
  chunks = [
    (view, rows[start : start + at_once])
    for view, rows in enumerate(missing)
    for start in range(0, rows.size, at_once)
  ]
  total = sum(-(-rows.size // size) for _, rows in chunks)
  seed = as_int32(recipe.augmentation.keywords['seed'])
  weights = {name: variables[name] for name in ('params', 'model_state')}
  weights = sharding.place(weights, mesh, parts=recipe.in_parts)
  given = weights, sharding.replicate(seed, mesh)
  said = itertools.chain.from_iterable(
    views.of_view(compute, given, _taken(recipe.split, rows), view, size, mesh)
    for view, rows in chunks
  )
  shown = bars.track(inputs.ahead(said), total, 'features')
  for view, rows in chunks:
    batches = itertools.islice(shown, -(-rows.size // size))
    host = jax.device_get(list(batches))
    found = np.zeros(rows.size, recipe.row)
    found[KEY] = keys[rows]
    for name in recipe.outputs:
      values = np.concatenate(
        [np.asarray(one[name], np.float32) for one in host]
      )
      _check_range(name, values[: rows.size], recipe.dtype)
      found[name] = values[: rows.size]
    yield view, found


def _taken(split: Split, rows: np.ndarray) -> Split:
  """Images at rows, without a copy where they are neighbours."""
  if rows[-1] - rows[0] + 1 == rows.size:
    return split.take(slice(int(rows[0]), int(rows[-1]) + 1))
  return split.take(rows)


def _check_range(name: str, values: np.ndarray, dtype: str) -> None:
  if not np.isfinite(values).all():
    raise ValueError(f"a frozen network's {name} are not finite")
  largest = float(np.max(np.abs(values), initial=0.0))
  if largest > float(np.finfo(dtype).max):
    raise ValueError(
      f"a frozen network's {name} reach {largest:.4g}, more than {dtype} "
      'holds; set targets.features_dtype to "float32"'
    )


def make_compute(
  recipe: Recipe, mesh: Mesh, say: Callable | None = None
) -> Callable:
  """Builds compute(constants, seed, batch) -> the outputs, replicated.

  Views are drawn by a program of their own, so that the network's is compiled
  once for all kinds of views.

  Args:
    recipe: of what.
    mesh: devices.
    say: from `make_say`; None makes it.
  """
  say = say or make_say(recipe.network, recipe.outputs, mesh)
  drawn = _make_draw(drawing.unseeded(recipe.augmentation), mesh)

  def compute(constants, seed, batch):
    return say(constants, drawn(seed, batch))

  return compute


@functools.lru_cache(maxsize=16)
def _make_draw(augmentation: functools.partial, mesh: Mesh) -> Callable:
  """Builds draw(seed, batch) -> images, once; from drawing.unseeded."""
  copied, split = sharding.replicated(mesh), sharding.batch_sharded(mesh)

  def draw(seed, batch):
    given = batch['image'], batch['index'], batch['view']
    return augmentation(*given, seed=seed)

  return jax.jit(draw, in_shardings=(copied, split), out_shardings=split)


@functools.lru_cache(maxsize=16)
def make_say(
  network: Network, outputs: tuple[str, ...], mesh: Mesh
) -> Callable:
  """Builds say(constants, images) -> the outputs, replicated, once.

  Args:
    network: the backbone.
    outputs: names.
    mesh: devices.

  Returns:
    A jitted function of {'params', 'model_state'} and float [B, S, S, 3] in
    0..255.
  """
  copied, split = sharding.replicated(mesh), sharding.batch_sharded(mesh)

  def say(constants, images):
    constants = sharding.gather(constants, mesh)
    said, _ = network.model.apply(
      constants['params'], constants['model_state'], network.prepare(images)
    )
    return {name: said[name] for name in outputs}

  return jax.jit(say, in_shardings=(None, split), out_shardings=copied)


def digest(variables: Mapping[str, Tree]) -> str:
  """Of weights: values, shapes, names, and which are parameters."""
  found = hashlib.blake2b(digest_size=16)
  for kind, tree in variables.items():
    for name, value in sorted(flatten(tree).items()):
      value = np.asarray(value)
      head = f'{kind} {name} {value.dtype} {value.shape}'
      found.update(head.encode() + value.tobytes())
  return found.hexdigest()
