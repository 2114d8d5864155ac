"""Reads the tower of texts of a CLIP or a SigLIP from a file of both towers."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from absl import logging

from tlkd_jax.models import MODELS
from tlkd_jax.models.families import text_tower
from tlkd_jax.models.functional import Model, Tree, to_functional
from tlkd_jax.models.spec import TextDesign
from tlkd_jax.models.weights import hub, pretrained, sources, torch_files
from tlkd_jax.runtime.trees import flatten, nest

# What transformers calls activations.
_ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'quick_gelu': 'quick_gelu',
}
# Of its CLIP, where a config.json does not say; before its pull request 24773
# it said 2 and read the token of the largest number.
_END, _LARGEST = 49407, 2


@dataclasses.dataclass(frozen=True)
class Texts:
  """A tower of texts with its weights.

  Attributes:
    design: its numbers.
    model: its function, see text_tower.TextTower.
    params: nested dicts of float32 numpy arrays, logit_scale among them.
    end: number of the token that is read; None for the largest of a text. Of a
      tower that reads the last one it means nothing.
    source: as it was given.
    path: of the file.
    licence: under which terms it is, after a name that gives it again.
  """

  design: TextDesign
  model: Model
  params: Tree
  end: int | None
  source: str
  path: pathlib.Path
  licence: str


def read(name: str, source: str) -> Texts:
  """The tower of texts that goes with an image tower.

  Accepted are the whole models of transformers (CLIPModel, SiglipModel,
  Siglip2Model) and those of open_clip and OpenAI, by the names of their
  entries. Every entry is used once; the image tower's are passed over.

  Args:
    name: of the image tower's variant, a key of MODELS.
    source: a file, a folder or a name that `hub.resolve` knows.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the variant has no texts, the file has none, or those of
      another network.
  """
  design = MODELS[name].texts
  if design is None:
    raise ValueError(f'{name} was not trained with texts')
  path = hub.resolve(source)
  state_dict = torch_files.read(path).tensors
  style = text_tower.style_of(state_dict)
  if style is None:
    raise ValueError(
      f'{path}: it has no tower of texts (no text_model.*, as transformers '
      'names it, no token_embedding.weight, as open_clip does); accepted as '
      f'config.teacher.text_weights is a file of both towers of {name}, such '
      f'as {_example(name)}'
    )
  config = hub.companion(source, path, 'config.json')
  said = sources.read_json(config) if config is not None else {}
  try:
    _check(name, design, said)
    design = text_tower.sized(design, style, state_dict)
    model = create(design, style, np.shape(state_dict.get('logit_scale', 0.0)))
    params, _ = pretrained.from_torch(model, state_dict)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  params = nest({k: np.float32(v) for k, v in flatten(params).items()})
  licence = sources.find(source, path).licence or 'not stated'
  licence = f'{hub.pinned(source, path)}: {licence}'
  logging.info(
    '%s: texts of %s, in the names of %s; licence of %s',
    *(path, name, style.removesuffix('_apart'), licence),
  )
  end = _end(design, style, said)
  return Texts(design, model, params, end, source, path, licence)


def create(
  design: TextDesign, style: str, scalar: tuple[int, ...] = ()
) -> Model:
  """Describes a tower of texts without its weights; see text_tower.spec."""
  spec = text_tower.spec(design, style, scalar)
  return to_functional(f'texts in {style}', spec, design.embedding)


def _example(name: str) -> str:
  """Published weights of both towers, of this size or of the kind."""
  texts = MODELS[name].texts
  return next(
    (
      str(spec.weights)
      for other, spec in MODELS.items()
      if other.startswith('transformers/') and spec.texts == texts
    ),
    'hf-hub:openai/clip-vit-base-patch32',
  )


def _of_texts(said: dict[str, Any]) -> dict[str, Any]:
  """What a config.json of transformers says of the texts; {} where nothing."""
  # Both are there in CLIP's older files, and the second counts.
  parts = [said.get('text_config'), said.get('text_config_dict')]
  found: dict[str, Any] = {}
  for part in parts:
    found |= part if isinstance(part, dict) else {}
  return found


def _check(name: str, design: TextDesign, said: dict[str, Any]) -> None:
  """Raises ValueError where config.json speaks of another network.

  No shape shows these.
  """
  own = _of_texts(said)
  activation = own.get('hidden_act')
  differences = []
  if activation and _ACTIVATIONS.get(activation) != design.activation:
    differences.append(f'hidden_act {activation!r} for {design.activation!r}')
  for field, here in (
    ('num_attention_heads', design.heads),
    ('layer_norm_eps', design.epsilon),
  ):
    if own.get(field, here) != here:
      differences.append(f'{field} {own[field]} for {here}')
  if differences:
    raise ValueError(
      f'the config.json beside it says of its tower of texts that it is not '
      f'that of {name}: {"; ".join(differences)}; choose the variant that it '
      'is of'
    )


def _end(design: TextDesign, style: str, said: dict[str, Any]) -> int | None:
  if style != 'transformers' or not said:
    return None
  end = _of_texts(said).get('eos_token_id', _END)
  return None if end == _LARGEST or not isinstance(end, int) else end
