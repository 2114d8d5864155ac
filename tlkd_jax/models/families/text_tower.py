"""Towers of texts of CLIP and SigLIP, and what their weights are called.

Radford et al. 2021, arXiv 2103.00020, section 2.4; Zhai et al. 2023, arXiv
2303.15343. Only what names classes to an image tower needs them: they are no
variants that a run fits. Scale and bias of the logits of image and text, which
are learned beside both towers, are kept with this one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tlkd_jax.models.families import vit, vit_keys
from tlkd_jax.models.families.clip import BLOCK
from tlkd_jax.models.families.vit_keys import in_blocks, plain_leaf
from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers.core import Mode
from tlkd_jax.models.spec import ModelSpec, TextDesign, TorchLeaf

Array = jax.Array
_token_init = nnx.initializers.normal(0.02)

# A key that only files of a style have -> the style.
_MARKERS = {
  'text_model.embeddings.token_embedding.weight': 'transformers',
  'token_embedding.weight': 'open_clip',
  'text.token_embedding.weight': 'open_clip_apart',
}
_PREFIXES = {'open_clip': '', 'open_clip_apart': 'text.'}
_OPEN_CLIP_BLOCK = {
  'norm1': 'ln_1',
  'attention.project': 'attn.out_proj',
  'norm2': 'ln_2',
  'expand': 'mlp.c_fc',
  'project': 'mlp.c_proj',
}
# The other tower, and numbers that are no weights.
_BESIDE = (
  r'^(vision_model|visual)\.',
  r'^visual_projection\.',
  r'(^|\.)(position_ids|attn_mask)$',
  r'^(input_resolution|context_length|vocab_size)$',
)


class TextTower(nnx.Module):
  """Tokens and positions, blocks, LayerNorm, one token, a linear projection.

  Takes (tokens int [B, N], position of the token that is read int [B]); the
  `logits` are the embeddings of the texts, [B, E], not normalised.
  """

  def __init__(
    self, design: TextDesign, embedding: int, *, fused: bool, rngs: layers.Rngs
  ):
    width = design.width
    of_blocks = vit.Design(
      width,
      design.heads,
      hidden=design.hidden,
      activation=design.activation,
      epsilon=design.epsilon,
      fused=fused,
    )

    def table(count):
      return nnx.Param(rngs.draw(_token_init, (count, width)))

    self.tokens = table(design.vocabulary)
    # Not `position`, which is that of patches.
    self.positions = table(design.length)
    self.blocks = nnx.List(
      [vit.Block(of_blocks, rate=0.0, rngs=rngs) for _ in range(design.depth)]
    )
    self.norm = layers.LayerNorm(width, epsilon=design.epsilon)
    self.project = layers.Linear(
      width, embedding, use_bias=not design.causal, rngs=rngs
    )
    self.logit_scale = nnx.Param(jnp.zeros(()))
    self.logit_bias = None if design.causal else nnx.Param(jnp.zeros(()))
    self.causal = design.causal

  def __call__(self, texts: tuple[Array, Array], mode: Mode) -> dict:
    tokens, read = texts
    count = tokens.shape[1]
    x = self.tokens[...][tokens] + self.positions[...][None, :count]
    bias = None
    if self.causal:
      seen = jnp.tril(jnp.ones((1, 1, count, count), bool))
      bias = jnp.where(seen, 0.0, jnp.finfo(jnp.float32).min)
    for block in self.blocks:
      x = block(x, mode, bias)
    x = self.norm(x)[jnp.arange(len(x)), read]
    return {'logits': self.project(x)}


def style_of(keys) -> str | None:
  """How the entries of a file are named; None where it has no tower of texts.

  'transformers': of CLIPModel, SiglipModel and Siglip2Model. 'open_clip': of
  open_clip and of OpenAI's own code. 'open_clip_apart': of open_clip's models
  whose tower of texts is a module of its own, as in SigLIP.
  """
  return next((style for key, style in _MARKERS.items() if key in keys), None)


def sized(design: TextDesign, style: str, state_dict) -> TextDesign:
  """The design with a file's own vocabulary and length of texts.

  Args:
    design: of the variant.
    style: of the file.
    state_dict: name -> array of two axes, for the tables of both.
  """
  found = {}
  table = {'tokens': 'vocabulary', 'positions': 'length'}
  for path, field in table.items():
    key = _leaves(design, style, ())[path].key
    if key in state_dict and np.ndim(state_dict[key]) == 2:
      found[field] = len(state_dict[key])
  return TextDesign(**{**vars(design), **found})


def spec(
  design: TextDesign, style: str, scalar: tuple[int, ...] = ()
) -> ModelSpec:
  """A tower of texts with the keys of a style.

  Args:
    design: its numbers.
    style: as `style_of` calls it.
    scalar: shape of the scale and the bias in its files, () or (1,).

  Returns:
    What models.functional.to_functional builds with `design.embedding` as the
    number of classes; of a ModelSpec's fields those of images mean nothing.
  """

  def build(embedding, *, rngs):
    fused = style != 'transformers'
    return TextTower(design, embedding, fused=fused, rngs=rngs)

  return ModelSpec(
    build=build,
    image_size=0,
    head=(),
    torch_modules=functools.partial(_modules, design, style),
    torch_leaves=functools.partial(_leaves, design, style, scalar),
    beside=_BESIDE,
  )


def _modules(design: TextDesign, style: str) -> dict[str, str]:
  """Submodule -> prefix of its entries."""
  if style == 'transformers':
    project = 'text_projection' if design.causal else 'text_model.head'
    table = {'norm': 'text_model.final_layer_norm', 'project': project}
    blocks = 'text_model.encoder.layers.{}'
    return table | in_blocks(design, BLOCK, blocks)
  prefix = _PREFIXES[style]
  table = {
    'norm': f'{prefix}ln_final',
    'project': f'{prefix}text_projection',
  }
  blocks = prefix + 'transformer.resblocks.{}'
  return table | in_blocks(design, _OPEN_CLIP_BLOCK, blocks)


def _leaves(
  design: TextDesign, style: str, scalar: tuple[int, ...]
) -> dict[str, TorchLeaf]:
  """Parameter -> its entry, where no submodule's prefix gives it."""

  def number(key):
    return TorchLeaf(key, lambda x: x.reshape(()), lambda x: x.reshape(scalar))

  table = {name: number(name) for name in ('logit_scale', 'logit_bias')}
  if style == 'transformers':
    prefix = 'text_model.embeddings'
    return table | {
      'tokens': plain_leaf(f'{prefix}.token_embedding.weight'),
      'positions': plain_leaf(f'{prefix}.position_embedding.weight'),
    }
  prefix = _PREFIXES[style]
  table |= {
    'tokens': plain_leaf(f'{prefix}token_embedding.weight'),
    'positions': plain_leaf(f'{prefix}positional_embedding'),
  }
  if design.causal:
    # A parameter, [width, embedding], and no layer.
    table['project.kernel'] = plain_leaf(f'{prefix}text_projection')
  for i in range(design.depth):
    ours = f'blocks.{i}.attention.qkv'
    theirs = f'{prefix}transformer.resblocks.{i}.attn.in_proj'
    table[f'{ours}.kernel'] = vit_keys.linear_leaf(f'{theirs}_weight')
    table[f'{ours}.bias'] = plain_leaf(f'{theirs}_bias')
  return table
