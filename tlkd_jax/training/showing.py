"""What the networks of a step see of a batch: their images, and the labels.

All see the same view, each in pixels that were cut from the files for it. Where
guides speak of other images than those that the labels are judged on (mixed
ones, strong views, a part of the batch), a learner sees both, one behind the
other, in one forward pass.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tlkd_jax.data import Look
from tlkd_jax.models.functional import Tree
from tlkd_jax.models.network import Network
from tlkd_jax.training import guides

Array = jax.Array
# (uint8 images, index, view, seed=) -> float images in 0..255.
Draw = Callable[..., Array]
# (images, soft labels [B, K], key of the step) -> both, mixed.
Mixing = Callable[[Array, Array, Array], tuple[Array, Array]]
# Sets the keys of mixing apart from those of dropout.
_MIXING = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Views:
  """How the images of a batch are drawn.

  Attributes:
    plain: the random view of the run's own network.
    others: the same of the looks of networks that have images of their own in
      the batch.
    mixing: None without.
    mixed_apart: only guides' terms are of mixed images; the hard loss is of the
      images as they are.
    taught_from: guides' terms are of the batch's images from this one on.
    strong: in place of `plain`, for the terms of the guide 'itself'; None
      without such terms.
    clean: by look, None for that of the run's own, what frozen guides see in
      place of the learners' views; {} for the same views.
  """

  plain: Draw
  others: Mapping[Look, Draw] = dataclasses.field(default_factory=dict)
  mixing: Mixing | None = None
  mixed_apart: bool = False
  taught_from: int = 0
  strong: Draw | None = None
  clean: Mapping[Look | None, Draw] = dataclasses.field(default_factory=dict)

  @property
  def apart(self) -> bool:
    """Whether guides' terms have images of their own."""
    return self.mixed_apart or self.strong is not None


@dataclasses.dataclass(frozen=True)
class Shown:
  """What is seen in one step.

  Attributes:
    learners: name -> float images; `split` parts what is said of them.
    frozen: name -> float images.
    soft_labels: [B, K], of the hard loss.
    taught_labels: [N, K], of the images that guides speak of.
  """

  learners: dict[str, Array]
  frozen: dict[str, Array]
  soft_labels: Array
  taught_labels: Array


def show(
  views: Views,
  batch: Mapping[str, Any],
  learners: Mapping[str, Network],
  frozen: Mapping[str, Network],
  teachers: Collection[str],
  soft_labels: Array,
  root: Array,
  step: Array,
) -> Shown:
  """Draws what each network sees.

  Args:
    views: how.
    batch: as in data.pipeline.
    learners: name -> network.
    frozen: name -> network.
    teachers: the frozen ones that guide; others, such as the start, go with the
      hard loss.
    soft_labels: [B, K], rows of zeros for unlabelled images.
    root: seed of the run.
    step: int32 scalar.

  Raises:
    ValueError: stored targets with mixed images.
  """
  plain = draw_views(batch, views.plain, views.others, root)
  taught, taught_labels = plain, soft_labels
  if views.mixing is not None:
    if batch.get('targets'):
      raise ValueError('stored targets are not those of mixed images')
    key = jax.random.fold_in(jax.random.key(root), _MIXING)
    key = jax.random.fold_in(key, step)
    mixed = {
      look: views.mixing(images, soft_labels, key)
      for look, images in plain.items()
    }
    taught = {look: images for look, (images, _) in mixed.items()}
    _, taught_labels = mixed[None]
    if not views.mixed_apart:
      plain, soft_labels = taught, taught_labels
  if views.strong is not None:
    taught = draw_views(batch, views.strong, {}, root)
  heard = taught
  if views.clean:
    clean = {look: draw for look, draw in views.clean.items() if look}
    heard = draw_views(batch, views.clean[None], clean, root)
  images = {name: _seen(plain, network) for name, network in learners.items()}
  if views.apart:
    for name, network in learners.items():
      more = _seen(taught, network)[views.taught_from :]
      images[name] = jnp.concatenate([images[name], more])
  shown = {
    name: _seen(heard if name in teachers else plain, network)
    for name, network in frozen.items()
  }
  taught_labels = taught_labels[views.taught_from :]
  return Shown(images, shown, soft_labels, taught_labels)


def split(views: Views, outputs: Tree, size: int) -> tuple[Tree, Tree]:
  """Learners' outputs for the batch, and for what guides' terms are of."""
  if not views.apart:
    return outputs, guides.rows_from(outputs, views.taught_from)
  return (
    jax.tree.map(lambda x: x[:size], outputs),
    jax.tree.map(lambda x: x[size:], outputs),
  )


def draw_views(
  batch: Mapping[str, Any],
  plain: Draw,
  others: Mapping[Look, Draw],
  seed: Array,
) -> dict[Look | None, Array]:
  """One view of each example, for each look; None is that of the run's own."""

  def draw(augmentation, images):
    return augmentation(images, batch['index'], batch['view'], seed=seed)

  views: dict[Look | None, Array] = {None: draw(plain, batch['image'])}
  for look, other in others.items():
    views[look] = draw(other, batch['others'][str(look)])
  return views


def _seen(views: Mapping[Look | None, Array], network: Network) -> Array:
  return views.get(network.look, views[None])
