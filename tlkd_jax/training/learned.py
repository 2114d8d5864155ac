"""What a finished run has learned from, in images that went through it.

A study's cells and the page of a report count alike, by what the run recorded:
its configuration, its summary and the rows of its training.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from tlkd_jax.runtime.trees import nest
from tlkd_jax.settings import Settings
from tlkd_jax.training import crossfit, ensemble, networks, probes, shares
from tlkd_jax.training.metric_writers import METRICS, read_rows


def of_record(config: Mapping[str, Any]) -> Settings:
  """The settings that a finished run recorded, as they are: nothing is checked.

  A page is made of runs of other versions too, and of variants that this one
  does not know.

  Args:
    config: of its config.json, dotted key -> value; keys that are missing have
      their defaults.
  """
  return _unchecked(Settings, nest(config))


def steps(settings: Settings, folder: pathlib.Path) -> int:
  """Updates that a run took, those of its folds or members together.

  Args:
    settings: of the run.
    folder: its workdir.

  Raises:
    ValueError: the rows of its training are damaged.
  """
  return sum(map(_last_step, _places(settings, folder)))


def images(
  settings: Settings, folder: pathlib.Path, summary: Mapping[str, Any]
) -> int:
  """Images that a finished run has learned from, counted each time.

  Args:
    settings: of the run.
    folder: its workdir.
    summary: its summary.json.

  Raises:
    ValueError: as `steps`.
  """
  if settings.fit in probes.KINDS:
    name, *_ = networks.learner_names(settings)
    section = settings.network(networks.role(name))
    return summary['num_train'] * (1 + section.probe_views)
  return steps(settings, folder) * shares.images_per_step(settings)


def _places(settings: Settings, folder: pathlib.Path) -> list[pathlib.Path]:
  """Where the updates of a run are recorded."""
  if settings.fit == crossfit.KIND:
    return crossfit.folders(folder, settings.teacher.probe_folds)
  if settings.fit == ensemble.KIND:
    return ensemble.folders(folder, settings.student.members)
  return [folder]


def _last_step(folder: pathlib.Path) -> int:
  rows = read_rows(folder / METRICS)
  return max(
    (row['step'] for row in rows if row['split'] == 'train'), default=0
  )


def _unchecked(kind: type, values: Mapping[str, Any]) -> Any:
  made = object.__new__(kind)
  for field in dataclasses.fields(kind):
    inner, name = field.metadata.get('section'), field.name
    if name in values:
      value = values[name]
    elif field.default is not dataclasses.MISSING:
      value = field.default
    else:
      assert field.default_factory is not dataclasses.MISSING
      value = field.default_factory()
    if inner is not None and isinstance(value, Mapping):
      value = _unchecked(inner, value)
    object.__setattr__(made, name, value)
  return made
