"""In and out: a file's ml_collections, plain dicts and JSON; single keys."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from tlkd_jax.runtime.errors import unknown_name
from tlkd_jax.runtime.trees import nest
from tlkd_jax.settings.rules import build, keys_of, refuse
from tlkd_jax.settings.top import Settings, tunable

# Their values are kept with dotted keys, and nested outside.
_DOTTED = ('changes', 'grid')


def from_config(config: ml_collections.ConfigDict | Mapping) -> Settings:
  """The settings that a configuration describes, checked.

  Args:
    config: of a file, or nested dicts such as a config.json; keys that are
      missing, for instance in one of an older version, have their defaults.

  Raises:
    WrongSettings: a ValueError with one line for each key that does not exist
      and each value that is not accepted.
  """
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  made, problems = build(Settings, config, '')
  refuse(problems)
  return made


def to_dict(settings: Settings) -> dict[str, Any]:
  """Nested dicts of plain values; without `study` where there is none."""
  values = _plain(settings)
  if settings.study is None:
    del values['study']
  return values


def to_json(settings: Settings) -> str:
  """The text of a run's config.json; `from_config(json.loads(text))` reads it.

  What was written by an older version differs in keys that came since alone.
  """
  return json.dumps(to_dict(settings), indent=1)


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
  """A copy with other values, checked anew.

  Args:
    settings: stays as it is.
    values: dotted key -> value: {'arm': 'tl', 'optimizer.train_only': 'head'}.

  Raises:
    WrongSettings: as `from_config`.
  """
  nested = to_dict(settings)
  problems = []
  for dotted, value in values.items():
    *sections, last = dotted.split('.')
    place = nested
    for name in sections:
      place = place.setdefault(name, {}) if isinstance(place, dict) else None
    if isinstance(place, dict):
      place[last] = dict(value) if isinstance(value, dict) else value
    else:
      known = keys_of(Settings)
      problems.append(str(unknown_name('configuration key', dotted, known)))
  refuse(problems)
  return from_config(nested)


def to_config_dict(settings: Settings) -> ml_collections.ConfigDict:
  """The locked form that a file of configs/ returns and flags are parsed for.

  A key that may be None knows its type, and every grid of a study has every
  key that a run may try other values of.
  """
  config = _as_config(settings)
  if settings.study is None:
    del config['study']
    return config.lock()
  tried = nest(dict.fromkeys(tunable(), ()))
  study = config.study
  for place in (study, *study.arms.values()):
    own = ml_collections.ConfigDict(tried)
    own.update(place.grid)
    place.grid = own
  return config.lock()


def _plain(value: Any, name: str = '') -> Any:
  if dataclasses.is_dataclass(value):
    return {key: _plain(own, key) for key, own in vars(value).items()}
  if isinstance(value, Mapping):
    value = nest(dict(value)) if name in _DOTTED else value
    return {key: _plain(own) for key, own in value.items()}
  return value


def _untyped(values: dict[str, Any]) -> ml_collections.ConfigDict:
  """None is of no type, so that a command line may give any."""
  config = ml_collections.ConfigDict()
  for key, value in values.items():
    if isinstance(value, dict):
      config[key] = _untyped(value)
    else:
      config[key] = config_dict.placeholder(object) if value is None else value
  return config


def _as_config(record: Any) -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  for field in dataclasses.fields(record):
    value = vars(record)[field.name]
    rule = field.metadata.get('rule')
    if rule is None:
      config[field.name] = None if value is None else _as_config(value)
    elif rule.optional:
      # Of a number's type, a command line could not set None again.
      kind = object if rule.kind in (int, float) else rule.kind
      config[field.name] = config_dict.placeholder(kind)
      config[field.name] = value
    elif isinstance(value, Mapping):
      config[field.name] = _untyped(_plain(value, field.name))
    else:
      config[field.name] = value
  return config
