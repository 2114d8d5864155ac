"""Teacher targets computed once, for runs whose views repeat.

With config.targets.views = V an example cycles through V views, each drawn
from (seed, example, view) alone. So the teacher's outputs for them are fixed:
`prepare` computes them before the run, by the augmentation and the model code
of the training step, and the run then reads them and needs no teacher. TL+KD
costs what TL costs; runs with the same teacher, data and views share them.

They are computed in batches of the run's size on the run's devices. With
dtype 'float32' training on them is then bitwise training with the teacher in
the step; with 'float16' it is so to the precision of the targets.

Of a teacher that is a probe the backbone's features are stored beside them
(features.py), and targets are its head on these.
"""

import dataclasses
import functools
import hashlib
import inspect
import pathlib
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from tlkd_jax import losses
from tlkd_jax.data import (
  Dataset,
  Split,
  augment,
  pipeline,
  randaugment,
)
from tlkd_jax.models.functional import Tree
from tlkd_jax.models.network import Network, output_shapes
from tlkd_jax.runtime import bars, sharding
from tlkd_jax.settings import Settings
from tlkd_jax.training import (
  drawing,
  feature_heads,
  features,
  inputs,
  networks,
  shares,
  views,
)
from tlkd_jax.training.objective import Objective
from tlkd_jax.training.step import as_int32
from tlkd_jax.training.target_store import Layout, Store, Targets

# To be raised when the meaning of a stored row changes.
_FORMAT = 2
# What a head says; all other outputs are the backbone's.
_HEADS = ('logits',)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """All that a set of targets depends on beside the teacher's weights.

  Attributes:
    root: folder of this and other sets of targets.
    teacher: the model and how it looks at images.
    outputs: which of its outputs are kept, 'logits' first.
    augmentation: from drawing.make_augmentation.
    split: the training examples.
    num_views: V, of the run.
    batch_size: of the run.
    balanced: whether the run draws classes equally often.
    dtype: a name in target_store.DTYPES.
    top_k: see target_store.Layout.
    shares: how many images of a batch have labels, None where all have.
    backbone: its features, where these are stored for others too.
    in_parts: whether its weights are spread over the devices.
  """

  root: pathlib.Path
  teacher: Network
  outputs: tuple[str, ...]
  augmentation: functools.partial
  split: Split
  num_views: int
  batch_size: int
  balanced: bool
  dtype: str
  top_k: int
  shares: pipeline.Shares | None = None
  backbone: features.Recipe | None = None
  in_parts: bool = False

  def layout(self) -> Layout:
    """How the outputs are stored."""
    shapes = output_shapes(self.teacher, self.split.images.shape[1])
    widths = {name: shapes[name].shape[-1] for name in self.outputs}
    return Layout(widths, self.dtype, self.top_k)

  def fingerprint(self, variables: Tree, mesh: Mesh) -> dict:
    """JSON-able; differs wherever the stored numbers may differ."""
    spec = self.teacher.model.spec
    options = {k: repr(v) for k, v in self.augmentation.keywords.items()}
    code = ''.join(inspect.getsource(m) for m in (augment, randaugment))
    # Of features that are rounded so are the targets.
    kept = 'float32' if self.backbone is None else self.backbone.dtype
    rounded = {} if kept == 'float32' else {'features': kept}
    return {
      'format': _FORMAT,
      'jax': jax.__version__,
      'teacher': self.teacher.model.name,
      'teacher weights': features.digest(variables),
      'preprocessing': repr(
        (self.teacher.image_size, spec.mean, spec.std, self.teacher.dtype)
      ),
      'augmentation': options,
      'augmentation code': hashlib.sha256(code.encode()).hexdigest(),
      'data': self.split.fingerprint(),
      'stored': [list(self.outputs), self.dtype, self.top_k],
      # The order of sums differs with these, in the last bits.
      'batches': [self.batch_size, mesh.size, jax.default_backend()],
    } | rounded


def outputs_read(objective: Objective) -> tuple[str, ...]:
  """The teacher's outputs that the losses of a run need stored.

  Never feature maps, which take thousands of numbers for each view: settings
  refuse losses that read them.
  """
  read = {'logits': None}
  for term in objective.terms:
    if term.guide is None:
      loss = losses.LOSSES[term.name]
      read |= dict.fromkeys(loss.teacher_outputs(term.hyperparameters))
  return tuple(read)


def recipes(
  settings: Settings,
  objective: Objective,
  teachers: Mapping[str, Network],
  dataset: Dataset,
  *,
  in_parts: bool = False,
) -> dict[str, Recipe]:
  """What is to be stored of each teacher; {} where they are online.

  Args:
    settings: of the run.
    objective: of the student.
    teachers: by name.
    dataset: of the run.
    in_parts: from placing.in_parts.
  """
  section = settings.targets
  if section.mode == 'online':
    return {}
  runs = networks.teacher_runs(settings)
  found = {}
  for name, teacher in teachers.items():
    seen = dataset.seen(teacher.look)
    recipe = Recipe(
      pathlib.Path(
        section.dir or pathlib.Path(runs[name]) / 'targets'
      ).expanduser(),
      teacher,
      outputs_read(objective),
      drawing.heard_through(settings, seen),
      seen.splits['train'],
      num_views(section.views, settings.distillation.teacher_view),
      settings.batch_size,
      inputs.is_balanced(settings),
      section.dtype,
      section.top_k,
      shares.of_batch(settings),
      in_parts=in_parts,
    )
    if features.is_probe(runs[name]):
      shared = _of_backbone(settings, recipe, name)
      recipe = dataclasses.replace(recipe, backbone=shared)
    found[name] = recipe
  return found


def _of_backbone(
  settings: Settings, recipe: Recipe, name: str
) -> features.Recipe | None:
  """The features that targets of a probe are made of; None if not stored."""
  others = [one for one in recipe.outputs if one not in _HEADS]
  found = features.Recipe(
    None,
    recipe.teacher,
    tuple(dict.fromkeys(('pre_logits', *others))),
    recipe.augmentation,
    recipe.split,
    recipe.batch_size,
    settings.targets.features_dtype,
    recipe.in_parts,
  )
  views_of_each = recipe.num_views if found.is_drawn else 1
  size = features.bytes_of(len(recipe.split), views_of_each, found.row)
  root = features.root_of(settings, size, name)
  return None if root is None else dataclasses.replace(found, root=root)


def num_views(views: int, teacher_view: str) -> int:
  """Views of which a teacher's outputs are stored: targets.views, or one."""
  return 1 if teacher_view == 'clean' else views


def images_seen(
  images: int, num_train: int, *, mode: str, views: int, balanced: bool
) -> int:
  """Images that each teacher of a run sees.

  Args:
    images: that the student has learned from until then, counted each time.
    num_train: training images, with and without labels.
    mode: targets.mode.
    views: from `num_views`.
    balanced: whether classes are drawn equally often.
  """
  if mode == 'online':
    return images
  stored = views * num_train
  # Of a small class all views may be drawn before others have been seen once.
  return stored if balanced else min(images, stored)


def prepare(
  recipe: Recipe,
  variables: Tree,
  num_steps: int,
  mesh: Mesh,
) -> Targets:
  """Opens the targets of the views that a run draws; computes what is missing.

  What is found is used only if its fingerprint and checksums are right. Every
  process must call this; the lead writes, so the folder must be shared by all.

  Args:
    recipe: what the targets are of.
    variables: the teacher's, on the host; from run.constants.
    num_steps: batches of the run.
    mesh: devices.

  Raises:
    ValueError: outputs that are not finite or that the dtype cannot hold.
    OSError: the files cannot be written.
  """
  size = len(recipe.split)
  drawn = pipeline.most_views(
    recipe.split,
    recipe.batch_size,
    num_steps,
    balanced=recipe.balanced,
    shares=recipe.shares,
  )
  num_views = min(recipe.num_views, drawn)
  layout = recipe.layout()
  store = Store(recipe.root, recipe.fingerprint(variables, mesh), layout, size)
  if sharding.is_lead():
    with store.claimed():
      first = _agreed(store.missing(num_views))
      _fill(store, recipe, variables, first, layout, mesh)
  else:
    first = _agreed([0] * num_views)
    _fill(None, recipe, variables, first, layout, mesh)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('teacher targets')
  return store.open(num_views)


def _agreed(first: list[int]) -> list[int]:
  """The lead's list, in every process."""
  if jax.process_count() == 1:
    return first
  return multihost_utils.broadcast_one_to_all(np.asarray(first)).tolist()


def _fill(store, recipe, variables, first, layout, mesh) -> None:
  """Computes views from the rows `first` on; `store` is the lead's."""
  size, batch_size = len(recipe.split), recipe.batch_size
  # A kill may have torn a row, so the batch before is done again.
  starts = [
    start if start == size else max(0, start // batch_size - 1) * batch_size
    for start in first
  ]
  total = sum(-(-(size - start) // batch_size) for start in starts)
  if not total:
    return
  if recipe.backbone is None:
    said = _computed(recipe, variables, starts, mesh)
  else:
    said = _by_the_head(recipe, variables, starts, mesh)
  batches = bars.track(inputs.ahead(said), total, 'targets')
  for view, start, outputs in batches:
    if store is None:
      continue
    host = jax.device_get(outputs)
    count = min(batch_size, size - start)
    rows = {name: value[:count] for name, value in host.items()}
    store.write(view, start, layout.encode(rows))
    if start + count == size:
      store.commit(view)


def _computed(
  recipe, variables, starts, mesh
) -> Iterator[tuple[int, int, dict[str, jax.Array]]]:
  """(view, first row, outputs on the devices)."""
  compute = make_compute(recipe, mesh)
  seed = as_int32(recipe.augmentation.keywords['seed'])
  constants = (
    sharding.place(variables, mesh, parts=recipe.in_parts),
    sharding.replicate(seed, mesh),
  )
  for view, start in enumerate(starts):
    if start == len(recipe.split):
      continue
    rest = recipe.split.take(slice(start, None))
    said = views.of_view(
      compute, constants, rest, view, recipe.batch_size, mesh
    )
    for number, outputs in enumerate(said):
      yield view, start + number * recipe.batch_size, outputs


def _by_the_head(recipe, variables, starts, mesh) -> Iterator[tuple]:
  """The same of stored features; the backbone is run where they lack."""
  found = features.prepare(recipe.backbone, variables, len(starts), mesh)
  head = feature_heads.make_head(recipe.teacher, mesh)
  constants = sharding.replicate(
    feature_heads.of_head(recipe.teacher, variables), mesh
  )
  for view, start in enumerate(starts):
    said = feature_heads.batches(
      *(found, head, constants, recipe.split, view),
      *(start, recipe.batch_size, mesh),
    )
    for number, outputs in enumerate(said):
      kept = {name: outputs[name] for name in recipe.outputs}
      yield view, start + number * recipe.batch_size, kept


def make_compute(recipe: Recipe, mesh: Mesh) -> Callable:
  """Builds compute(constants, seed, batch) -> what is stored."""
  return views.make_compute(
    recipe.teacher, recipe.augmentation, recipe.outputs, mesh
  )
