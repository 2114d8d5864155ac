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

from tlkd_jax import sharding
from tlkd_jax.data import Split, augment, pipeline, progress, randaugment
from tlkd_jax.models.functional import Tree
from tlkd_jax.models.pretrained import flatten
from tlkd_jax.target_store import Layout, Store, Targets
from tlkd_jax.train_step import View, guide, output_shapes

# To be raised when the meaning of a stored row changes.
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Recipe:
  """All that a set of targets depends on beside the teacher's weights.

  Attributes:
    teacher: the model and how it looks at images.
    outputs: which of its outputs are kept, 'logits' first.
    augmentation: a functools.partial, from build.make_augmentation.
    split: the training examples.
    batch_size: of the run.
    dtype: a name in target_store.DTYPES.
    top_k: see target_store.Layout.
  """

  teacher: View
  outputs: tuple[str, ...]
  augmentation: Any
  split: Split
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


def views_needed(
  num_views: int, num_steps: int, batch_size: int, num_examples: int
) -> int:
  """How many of V views the batches of a run draw."""
  epochs = -(-num_steps * batch_size // num_examples)
  return min(num_views, epochs)


def prepare(
  recipe: Recipe,
  variables: tuple[Tree, Tree],
  num_views: int,
  root: pathlib.Path,
  mesh: Mesh,
) -> Targets:
  """Opens the targets of views 0 .. num_views - 1; computes what is missing.

  What is found is used only if its fingerprint and checksums are right. Every
  process must call this; the lead writes, so `root` must be shared by all.

  Args:
    recipe: what the targets are of.
    variables: the teacher's (params, model_state), on the host.
    num_views: V.
    root: folder of this and other sets of targets.
    mesh: devices.

  Raises:
    ValueError: outputs that are not finite or that the dtype cannot hold.
    OSError: the files cannot be written.
  """
  size = len(recipe.split)
  layout = recipe.layout()
  store = Store(root, recipe.fingerprint(variables, mesh), layout, size)
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
  on_device = sharding.replicate(variables, mesh)
  batches = progress.track(
    _computed(compute, on_device, recipe, starts, mesh), total, 'targets'
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
  compute, variables, recipe, starts, mesh
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
      outputs = compute(variables, sharding.shard_batch(batch, mesh))
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
  """Builds compute(variables, batch) -> the recipe's outputs, replicated."""

  def compute(variables, batch):
    images = recipe.augmentation(batch['image'], batch['index'], batch['view'])
    outputs = guide(recipe.teacher, variables, images)['outputs']
    return {name: outputs[name] for name in recipe.outputs}

  copied, split = sharding.replicated(mesh), sharding.batch_sharded(mesh)
  return jax.jit(compute, in_shardings=(copied, split), out_shardings=copied)


def _digest(variables: tuple[Tree, Tree]) -> str:
  digest = hashlib.blake2b(digest_size=16)
  for tree in variables:
    for name, value in sorted(flatten(tree).items()):
      value = np.asarray(value)
      digest.update(f'{name} {value.dtype} {value.shape}'.encode())
      digest.update(value.tobytes())
  return digest.hexdigest()
