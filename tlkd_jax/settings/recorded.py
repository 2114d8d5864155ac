"""The configuration that a run has recorded: `--config RUN/config.json`.

A file for `--config` like those of `configs/`; its argument is the record.
"""

import pathlib

import ml_collections

from tlkd_jax.runtime import sealed
from tlkd_jax.settings import origins
from tlkd_jax.settings.door import from_config, to_config_dict


def get_config(arg: str) -> ml_collections.ConfigDict:
  """The configuration in a config.json, its runs where they lie now.

  Args:
    arg: the file.

  Raises:
    ValueError: it is damaged, or holds no configuration.
  """
  recorded = sealed.read_json(pathlib.Path(arg))
  if not isinstance(recorded, dict) or 'arm' not in recorded:
    raise ValueError(f"{arg} is no run's config.json: it names no arm")
  found = origins.located(pathlib.Path(arg).parent, recorded)
  return to_config_dict(from_config(found))
