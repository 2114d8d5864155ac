"""Teacher targets computed once, for runs whose views repeat.

With config.targets.views = V an example cycles through V views, each drawn
from (seed, example, view) alone. So the teacher's outputs for them are fixed:
`prepare` computes them before the run, by the augmentation and the model code
of the training step, and the run then reads them and needs no teacher. TL+KD
costs what TL costs; runs with the same teacher, data and views share them.

They are computed in batches of the run's size on the run's devices. With
dtype 'float32' training on them is then bitwise training with the teacher in
the step; with 'float16' it is so to the precision of the targets.
"""

import dataclasses
import hashlib
import inspect
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

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
  progress,
  randaugment,
)
from tlkd_jax.models.functional import Tree
from tlkd_jax.models.network import Network, output_shapes
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.training.objective import Objective
from tlkd_jax.training.step import as_int32, guide
from tlkd_jax.training.target_store import DTYPES, Layout, Store, Targets

MODES = ('online', 'cached')

# To be raised when the meaning of a stored row changes.
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Recipe:
  """All that a set of targets depends on beside the teacher's weights.

  Attributes:
    root: folder of this and other sets of targets.
    teacher: the model and how it looks at images.
    outputs: which of its outputs are kept, 'logits' first.
    augmentation: a functools.partial, from build.make_augmentation.
    split: the training examples.
    num_views: V, of the run.
    batch_size: of the run.
    dtype: a name in target_store.DTYPES.
    top_k: see target_store.Layout.
  """

  root: pathlib.Path
  teacher: Network
  outputs: tuple[str, ...]
  augmentation: Any
  split: Split
  num_views: int
  batch_size: int
  dtype: str
  top_k: int

  def layout(self) -> Layout:
    """How the outputs are stored."""
    shapes = output_shapes(self.teacher, self.split.images.shape[1])
    widths = {name: shapes[name].shape[-1] for name in self.outputs}
    return Layout(widths, self.dtype, self.top_k)

  def fingerprint(self, variables: tuple[Tree, Tree], mesh: Mesh) -> dict:
    """JSON-able; differs wherever the stored numbers may differ."""
    spec = self.teacher.model.spec
    options = {k: repr(v) for k, v in self.augmentation.keywords.items()}
    code = ''.join(inspect.getsource(m) for m in (augment, randaugment))
    return {
      'format': _FORMAT,
      'jax': jax.__version__,
      'teacher': self.teacher.model.name,
      'teacher weights': _digest(variables),
      'preprocessing': repr(
        (self.teacher.image_size, spec.mean, spec.std, self.teacher.dtype)
      ),
      'augmentation': options,
      'augmentation code': hashlib.sha256(code.encode()).hexdigest(),
      'data': self.split.fingerprint(),
      'stored': [list(self.outputs), self.dtype, self.top_k],
      # The order of sums differs with these, in the last bits.
      'batches': [self.batch_size, mesh.size, jax.default_backend()],
    }


def check(config: Any, objective: Objective) -> None:
  """Checks config.targets, before anything is loaded.

  Raises:
    ValueError: a value that is not accepted, or 'cached' with something that
      makes a teacher's outputs differ from step to step or too large to keep.
  """
  section = config.targets
  if section.mode not in MODES:
    raise ValueError(
      f'targets.mode {section.mode!r}; accepted: {", ".join(MODES)}'
    )
  if section.dtype not in DTYPES:
    raise ValueError(
      f'targets.dtype {section.dtype!r}; accepted: {", ".join(DTYPES)}'
    )
  for name in ('views', 'top_k'):
    if section[name] < 0:
      raise ValueError(f'targets.{name} is {section[name]}; 0 is the least')
  if section.mode == 'online':
    return
  if not section.views:
    raise ValueError(
      "targets.mode is 'cached' and targets.views is 0, a new view each epoch: "
      'there is nothing to store; set targets.views, e.g. to 4'
    )
  if max(config.augment.mixup_alpha, config.augment.cutmix_alpha) > 0:
    raise ValueError(
      "targets.mode is 'cached' and augment.mixup_alpha or "
      'augment.cutmix_alpha mixes images anew in every step, so that no stored '
      "target is theirs; set both to 0, or targets.mode to 'online'"
    )
  outputs_read(objective)


def outputs_read(objective: Objective) -> tuple[str, ...]:
  """The teacher's outputs that the losses of a run need stored.

  Raises:
    ValueError: a loss reads feature maps, which take thousands of numbers for
      each view and are not stored.
  """
  reads = set()
  for term in objective.terms:
    read = losses.LOSSES[term.name].reads_of(term.hyperparameters)
    if read not in ('logits', 'embedding'):
      raise ValueError(
        f"targets.mode is 'cached' and {term.name!r} compares feature maps, "
        "which are not stored; set targets.mode to 'online', or choose a loss "
        'on logits or pre_logits'
      )
    reads.add(read)
  return ('logits', 'pre_logits') if 'embedding' in reads else ('logits',)


def recipes(
  config: Any,
  objective: Objective,
  teachers: tuple[Network, ...],
  augmentation: Any,
  dataset: Dataset,
) -> tuple[Recipe, ...]:
  """What is to be stored of each teacher; () where they are online."""
  section = config.targets
  if section.mode == 'online':
    return ()
  runs = (config.teacher.checkpoint, *config.distillation.more_teachers)
  return tuple(
    Recipe(
      pathlib.Path(section.dir or pathlib.Path(run) / 'targets').expanduser(),
      teacher,
      outputs_read(objective),
      augmentation,
      dataset.splits['train'],
      section.views,
      config.batch_size,
      section.dtype,
      section.top_k,
    )
    for run, teacher in zip(runs, teachers, strict=False)
  )


def prepare(
  recipe: Recipe,
  variables: tuple[Tree, Tree],
  num_steps: int,
  mesh: Mesh,
) -> Targets:
  """Opens the targets of the views that a run draws; computes what is missing.

  What is found is used only if its fingerprint and checksums are right. Every
  process must call this; the lead writes, so the folder must be shared by all.

  Args:
    recipe: what the targets are of.
    variables: the teacher's (params, model_state), on the host.
    num_steps: batches of the run.
    mesh: devices.

  Raises:
    ValueError: outputs that are not finite or that the dtype cannot hold.
    OSError: the files cannot be written.
  """
  size = len(recipe.split)
  epochs = -(-num_steps * recipe.batch_size // size)
  num_views = min(recipe.num_views, epochs)
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
  compute = make_compute(recipe, mesh)
  seed = as_int32(recipe.augmentation.keywords['seed'])
  constants = sharding.replicate((variables, seed), mesh)
  batches = progress.track(
    _computed(compute, constants, recipe, starts, mesh), total, 'targets'
  )
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
  compute, constants, recipe, starts, mesh
) -> Iterator[tuple[int, int, dict[str, jax.Array]]]:
  """(view, first row, outputs on the devices), one batch ahead."""
  ahead = None
  for view, start in enumerate(starts):
    if start == len(recipe.split):
      continue
    batches = pipeline.eval_batches(
      _from_row(recipe.split, start),
      recipe.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    for number, batch in enumerate(batches):
      batch['view'] = np.full_like(batch['view'], view)
      outputs = compute(*constants, sharding.shard_batch(batch, mesh))
      if ahead is not None:
        yield ahead
      ahead = view, start + number * recipe.batch_size, outputs
  if ahead is not None:
    yield ahead


def _from_row(split: Split, start: int) -> Split:
  return Split(
    split.images[start:],
    split.labels[start:],
    split.indices[start:],
    split.names[start:],
  )


def make_compute(recipe: Recipe, mesh: Mesh) -> Callable:
  """Builds compute(variables, seed, batch) -> the outputs, replicated."""

  def compute(variables, seed, batch):
    views = batch['image'], batch['index'], batch['view']
    images = recipe.augmentation(*views, seed=seed)
    outputs = guide(recipe.teacher, variables, images)['outputs']
    return {name: outputs[name] for name in recipe.outputs}

  copied, split = sharding.replicated(mesh), sharding.batch_sharded(mesh)
  return jax.jit(
    compute, in_shardings=(copied, copied, split), out_shardings=copied
  )


def _digest(variables: tuple[Tree, Tree]) -> str:
  digest = hashlib.blake2b(digest_size=16)
  for kind, tree in zip(('params', 'model_state'), variables, strict=True):
    for name, value in sorted(flatten(tree).items()):
      value = np.asarray(value)
      head = f'{kind} {name} {value.dtype} {value.shape}'
      digest.update(head.encode() + value.tobytes())
  return digest.hexdigest()
