"""An image tower under a head of texts: cosines, scaled as in its training.

Radford et al. 2021, arXiv 2103.00020, section 3.1.4: the embeddings of the
classes' names are the weights of a linear layer on the normalised embedding of
the image. That embedding is `pre_logits` here, so that the head is a linear
layer like others. Zhai et al. 2023, arXiv 2303.15343, section 3 (SigLIP): its
logits have a bias too, the same for all classes.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from tlkd_jax.models.functional import Tree
from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.spec import ModelSpec

_SUFFIX = ' zero-shot'


def name_of(variant: str) -> str:
  """What a variant is called under a head of texts."""
  return variant + _SUFFIX


def is_name(name: str) -> bool:
  """Whether a name is of a variant under a head of texts."""
  return name.endswith(_SUFFIX)


def variant_of(name: str) -> str:
  """The variant of such a name; other names stay as they are."""
  return name.removesuffix(_SUFFIX)


class ZeroShot(nnx.Module):
  """Image tower, projection as far as it has one, norm 1, linear head.

  The last two are computed in float32 at least: a scale of 100 would make
  bfloat16's rounding of a cosine an error of 0.4 in the logits.
  """

  def __init__(self, tower, width: int, num_classes: int, rngs: layers.Rngs):
    # Its logits are the image's embedding among the texts.
    self.tower = tower
    self.head = layers.Linear(width, num_classes, rngs=rngs)

  def __call__(self, images: jax.Array, mode: layers.Mode) -> dict:
    said = self.tower(images, mode)
    x = said['logits']
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    pre_logits = x.astype(said['pre_logits'].dtype)
    return said | {'pre_logits': pre_logits, 'logits': self.head(x)}


def spec_of(single: ModelSpec) -> ModelSpec:
  """Of an image tower that was trained with texts.

  Raises:
    ValueError: it was not.
  """
  texts = single.texts
  if texts is None:
    raise ValueError('only CLIP and SigLIP are computed under a head of texts')

  def build(num_classes, *, rngs, **options):
    width = texts.embedding
    # SigLIP's images have no projection.
    tower = single.build(width if texts.causal else 0, rngs=rngs, **options)
    return ZeroShot(tower, width, num_classes, rngs)

  return dataclasses.replace(
    single,
    build=build,
    head=('head',),
    stem=f'tower.{single.stem}',
    more_stems=(),
    torch_modules=dict,
    torch_leaves=dict,
    weights=None,
  )


def join(tower: Tree, head: Tree) -> Tree:
  """Parameters of an image tower and {'kernel', 'bias'} of texts as one."""
  return {'tower': tower, 'head': head}
