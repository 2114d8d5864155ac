"""What is known of a weight file beside its arrays: Source.

Sought in this order: the name on a hub; FILE.json, which our export writes;
config.json in the same folder, in timm's form or transformers', the latter
with preprocessor_config.json; what the training script wrote into the file.
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tlkd_jax.data import transforms
from tlkd_jax.models import MODELS
from tlkd_jax.models.layers.branches import FUSED
from tlkd_jax.models.weights import hub, huggingface, licences, twins
from tlkd_jax.models.weights.torch_records import WeightsError

# preprocessor_config.json has Pillow's numbers.
_RESAMPLING = {
  int(filter_): name for name, filter_ in transforms.INTERPOLATIONS.items()
}
# timm's options of a model that change no weight's meaning.
_HARMLESS = {
  'dynamic_img_size',
  'drop_path_rate',
  'drop_rate',
  'img_size',
  'in_chans',
  'num_classes',
  'pretrained',
}
# timm's names of before 1.0, and those of other trainings of one network.
_OLD_NAMES = (
  (r'^(tv|gluon|ssl|swsl|ig)_', ''),
  (r'_(ns|ap|miil|dino|in21k|in22k|in21ft1k|in22ft1k|miil_in21k)$', ''),
  (r'_bit(m|_distilled|_teacher|_teacher_384)$', '_bit'),
)


@dataclasses.dataclass(frozen=True)
class Source:
  """What is known of a weight file, each None or () where it is not.

  Attributes:
    said_by: where the network is named: a name on a hub or a file.
    networks: full names that the network goes by, such as 'timm/resnet50';
      any of them may be meant.
    config: of transformers, the content of config.json.
    mean: per channel, of images in 0..255.
    std: per channel, of images in 0..255.
    interpolation: of the preprocessing.
    crop: image side / resized short side of it.
    image_size: side of the images, in pixels.
    classes: names of the head's classes in its order.
    prepared_by: where mean and std are said.
    licence: its terms and who says them, '' where nobody does.
  """

  said_by: str = ''
  networks: tuple[str, ...] = ()
  config: Mapping[str, Any] | None = None
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None
  interpolation: str | None = None
  crop: float | None = None
  image_size: int | None = None
  classes: tuple[str, ...] | None = None
  prepared_by: str = ''
  licence: str = ''

  @property
  def known(self) -> bool:
    """Whether it is said which network it is."""
    return bool(self.networks) or self.config is not None


def find(weights: str, path: pathlib.Path) -> Source:
  """What is known of weights by their name and the files beside them.

  Args:
    weights: as `hub.resolve` takes it.
    path: what it gave for them.

  Raises:
    WeightsError: a file beside them is damaged or contradicts itself.
  """
  found = _find(weights, path)
  if found.licence:
    return found
  card = hub.companion(weights, path, 'README.md')
  said = '' if card is None else licences.of_card(card)
  said = f'{said} (its card)' if said else licences.of_name(weights)
  return dataclasses.replace(found, licence=said)


def _find(weights: str, path: pathlib.Path) -> Source:
  own = path.with_name(f'{path.name}.json')
  if own.is_file():
    found = _of_file(own)
    if found is not None:
      return found
  beside = hub.companion(weights, path, 'config.json')
  found = None if beside is None else _of_file(beside)
  if found is not None and found.config is not None:
    processor = hub.companion(weights, path, 'preprocessor_config.json')
    if processor is not None:
      found = _with_processor(found, processor)
  named = of_name(weights)
  if found is None:
    return named
  if named.networks and not found.known:
    return dataclasses.replace(found, said_by=weights, networks=named.networks)
  return found


def of_name(weights: str) -> Source:
  """What the name says: mean, std and interpolation of a library's variant."""
  kind, _, name = hub.split(weights)[0].partition(':')
  if kind == 'pypi':
    full = name
  elif kind in ('torchvision', 'timm'):
    full = f'{kind}/{name.partition(".")[0]}'
  else:
    return _of_repository(weights)
  return told(weights, (full,))


def _of_repository(weights: str) -> Source:
  """A repository of transformers, where a variant names it as its own."""
  place = hub.split(weights)[0].partition('@')[0]
  own = (n for n, s in MODELS.items() if '/' in n and s.weights == place)
  name = next(own, None)
  return Source() if name is None else told(weights, (name,))


def told(said_by: str, networks: tuple[str, ...]) -> Source:
  """Of names alone: mean, std and interpolation are a single variant's."""
  networks = tuple(_present(name) for name in networks)
  spec = next((MODELS[name] for name in networks if name in MODELS), None)
  if spec is None or len(networks) > 1:
    return Source(said_by, networks)
  return Source(
    said_by,
    networks,
    mean=spec.mean,
    std=spec.std,
    interpolation=spec.interpolation,
    prepared_by=said_by,
  )


def _present(name: str) -> str:
  library, _, bare = name.rpartition('/')
  if library == 'timm' and name not in MODELS:
    for pattern, replacement in _OLD_NAMES:
      bare = re.sub(pattern, replacement, bare)
  return f'{library}/{bare}' if library else bare


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A file beside weights; {} where it is no dict.

  Raises:
    WeightsError: it is damaged.
  """
  try:
    content = json.loads(path.read_text())
  except (ValueError, OSError, RecursionError) as error:
    raise WeightsError(
      f'{path}: damaged ({error!r:.200}); it lies beside weights and would say '
      'which network they are of: mend it, or move it away'
    ) from error
  return content if isinstance(content, dict) else {}


def _of_file(path: pathlib.Path) -> Source | None:
  """None for a config.json of another kind, such as that of a run."""
  content = read_json(path)
  checked = functools.partial(_checked, path)
  if isinstance(content.get('architecture'), str):
    return checked(_of_timm, content)
  if isinstance(content.get('model_type'), str):
    return checked(_of_transformers, content)
  return None


def _checked(path: pathlib.Path, make, *arguments) -> Source:
  try:
    return make(str(path), *arguments)
  except (TypeError, ValueError, KeyError, AttributeError) as error:
    if isinstance(error, WeightsError):
      raise
    raise WeightsError(
      f'{path}: not as timm or transformers write it ({error!r:.200}); mend '
      'it, or move it away'
    ) from error


def _of_timm(path: str, content: dict[str, Any]) -> Source:
  name = content['architecture'].partition('.')[0]
  library = content.get('library', 'timm')
  plain = library == 'efficientnet_lite_pytorch'
  full = name if plain else f'{library}/{name}'
  if content.get('fused') is True:
    full += FUSED
  options = set(content.get('model_args') or {}) - _HARMLESS
  if options:
    raise WeightsError(
      f'{path}: model_args changes the network by {", ".join(sorted(options))}'
      ', which no variant here has'
    )
  # Before 0.9 what is in pretrained_cfg was beside it.
  values = content.get('pretrained_cfg') or content
  mean, std = _pixels(values.get('mean')), _pixels(values.get('std'))
  size = values.get('input_size')
  return Source(
    said_by=path,
    networks=(_present(full),),
    mean=mean,
    std=None if std is None else _positive(std),
    interpolation=_interpolation(values.get('interpolation')),
    crop=_share(values.get('crop_pct')),
    image_size=None if size is None else int(size[-1]),
    classes=_classes(content.get('label_names') or values.get('label_names')),
    prepared_by=path if mean and std else '',
    licence=_said_licence(content),
  )


def _said_licence(content: dict[str, Any]) -> str:
  """Of a file that our export wrote all that went into it, else timm's."""
  lines = content.get('licences')
  if isinstance(lines, list):
    return '; '.join(map(str, lines))
  values = content.get('pretrained_cfg') or content
  said = values.get('license')
  return f'{said} (its config.json)' if isinstance(said, str) and said else ''


def _of_transformers(path: str, content: dict[str, Any]) -> Source:
  labels = content.get('id2label')
  names = None
  if labels:
    by_number = {int(number): name for number, name in labels.items()}
    names = [by_number[number] for number in range(len(by_number))]
  size = content.get('image_size')
  return Source(
    said_by=path,
    config=content,
    classes=_classes(names),
    image_size=size if isinstance(size, int) else None,
  )


def _with_processor(found: Source, path: pathlib.Path) -> Source:
  return _checked(path, _processed, found, read_json(path))


def _processed(path: str, found: Source, values: dict[str, Any]) -> Source:
  """Images as an image processor of transformers prepares them."""
  scale = values.get('rescale_factor', 1 / 255)
  scale = scale if values.get('do_rescale', True) else 1.0
  offset = 1.0 if values.get('rescale_offset') else 0.0
  mean, std = (0.0,) * 3, (1.0,) * 3
  if values.get('do_normalize', True):
    mean, std = _three(values['image_mean']), _three(values['image_std'])
  if found.config and found.config['model_type'] == 'efficientnet':
    # Its processor divides by the standard deviation twice.
    twice = values.get('include_top', True)
    std = tuple(s * s for s in std) if twice else std
  size, crop = _sides(values)
  return dataclasses.replace(
    found,
    mean=tuple((m + offset) / scale for m in mean),
    std=_positive(tuple(s / scale for s in std)),
    interpolation=_RESAMPLING.get(values.get('resample', -1)),
    crop=crop,
    image_size=size or found.image_size,
    prepared_by=path,
  )


def _sides(values: dict[str, Any]) -> tuple[int | None, float | None]:
  """(side of the images, share of the short side that is cropped)."""
  side, cropped = _side(values.get('size')), _side(values.get('crop_size'))
  if cropped and values.get('do_center_crop'):
    return cropped, _share(cropped / side) if side else None
  share = values.get('crop_pct')
  # ConvNeXt's processor, ResNet's too: above 384 nothing is cropped.
  if share and side and side < 384:
    return side, _share(share)
  return side, 1.0 if side else None


def _side(value: Any) -> int | None:
  if isinstance(value, dict):
    value = value.get('height') or value.get('shortest_edge')
  return value if isinstance(value, int) else None


def _three(value: Any) -> tuple[float, ...]:
  numbers = tuple(float(number) for number in value)
  if len(numbers) != 3 or not np.all(np.isfinite(numbers)):
    raise ValueError(f'{numbers} for 3 channels')
  return numbers


def _positive(std: tuple[float, ...]) -> tuple[float, ...]:
  if min(std) <= 0:
    raise ValueError(f'a standard deviation of {min(std)}')
  return std


def _pixels(value: Any) -> tuple[float, ...] | None:
  return None if value is None else tuple(255 * v for v in _three(value))


def _interpolation(value: Any) -> str | None:
  return value if value in transforms.INTERPOLATIONS else None


def _share(value: Any) -> float | None:
  if value is None:
    return None
  return float(value) if 0 < float(value) <= 1 else None


def _classes(names: Any) -> tuple[str, ...] | None:
  """None for the names that transformers invents, LABEL_0 and so on."""
  if not names or not isinstance(names, list | tuple):
    return None
  names = tuple(str(name) for name in names)
  invented = all(name == f'LABEL_{i}' for i, name in enumerate(names))
  return None if invented else names


def same_networks(name: str) -> list[str]:
  """Full names of a variant and its twins."""
  return [twins.full_name(name), *twins.of(name)]


def _keeper(name: str) -> str:
  """The variant under whose name timm keeps the weights of another.

  CLIP's are kept once for both activations, and the one that is asked for by
  name is computed.
  """
  return name.replace('_clip_quickgelu_', '_clip_')


def check(name: str, source: Source) -> None:
  """Raises ValueError where weights are known to be another network's.

  Args:
    name: of the variant that is to have them.
    source: of the weights.
  """
  if not source.known:
    return
  own = same_networks(name)
  if source.config is not None:
    found = huggingface.differences(source.config, own)
    if not found:
      return
    others = huggingface.variants_of(source.config, MODELS)
    what = f'a {source.config.get("model_type")} of transformers'
    why = f': {"; ".join(found)}'
  else:
    if set(source.networks) & {*own, *map(_keeper, own)}:
      return
    others = [n for n in source.networks if n in MODELS]
    what = ' or '.join(source.networks)
    why = ''
  shown = ' or '.join(sorted(others)[:8])
  advice = f'choose {shown}' if shown else 'it is none of the variants'
  raise ValueError(
    f'{source.said_by} says that these weights are of {what}, another network '
    f'than {twins.full_name(name)}, whose names and shapes they may have{why}; '
    f'{advice} (`python -m tlkd_jax.models` lists all)'
  )
