"""Configurations that earlier versions have recorded, in today's keys."""

from collections.abc import Mapping
from typing import Any

# Section -> a key that it had -> the keys that took its place, with its value.
_REPLACED = {
  'data': {
    'num_eval_per_class': ('num_validation_per_class', 'num_test_per_class')
  }
}


def in_todays_keys(config: Mapping[str, Any]) -> dict[str, Any]:
  """A recorded configuration, nested dicts, with the keys that it has now."""
  found = dict(config)
  for section, replaced in _REPLACED.items():
    inner = found.get(section)
    if not isinstance(inner, Mapping):
      continue
    for old, keys in replaced.items():
      if old in inner:
        rest = {key: value for key, value in inner.items() if key != old}
        inner = rest | dict.fromkeys(keys, inner[old])
    found[section] = dict(inner)
  return _with_one_temperature(found)


def _with_one_temperature(config: dict[str, Any]) -> dict[str, Any]:
  """That of the loss's options, which took the place of the key."""
  section = config.get('distillation')
  if not isinstance(section, Mapping):
    return config
  options = section.get('options')
  if not isinstance(options, Mapping) or 'temperature' not in options:
    return config
  rest = {k: v for k, v in options.items() if k != 'temperature'}
  changed = {'temperature': options['temperature'], 'options': rest}
  return config | {'distillation': dict(section) | changed}
