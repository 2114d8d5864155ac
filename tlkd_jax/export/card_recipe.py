"""What a run was told, for a model card; of paths the last part alone."""

import pathlib
from collections.abc import Mapping
from typing import Any

from tlkd_jax.answer import labels
from tlkd_jax.data import DATASETS
from tlkd_jax.export.student import Student
from tlkd_jax.report.markdown import row
from tlkd_jax.runtime.texts import duration
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.settings import Settings, origins
from tlkd_jax.training import preparation, workdir

# Where weights are that anyone finds again.
_SOURCES = ('pypi', 'timm', 'torchvision', 'hf-hub')
# Of settings: data; and what lies where on this machine.
_DATA = ('dataset', 'distillation.unlabelled')
_PRIVATE = ('data.data_dir', 'data.cache_dir', 'targets.dir')


def lines(
  student: Student, settings: Settings, summary: Mapping[str, Any], steps: int
) -> list[str]:
  """Tables of what a run was told.

  Args:
    student: of the run.
    settings: of it.
    summary: of it, {} of one that was stopped.
    steps: its length.
  """
  section, look = settings.optimizer, student.description.look
  pairs = {
    'arm': labels.LABELS.get(settings.arm, settings.arm),
    'student': f'{settings.student.name}, from {_start(settings)}',
    'images': f'{look}',
    'steps': f'{steps}, batches of {settings.batch_size}; the weights are of '
    f'step {student.description.step}, the best on validation',
    'optimizer': f'{section.name}, learning rate {section.learning_rate:g}, '
    f'weight decay {section.weight_decay:g}',
    'label smoothing': f'{settings.label_smoothing:g}',
    'seed': str(settings.seed),
  }
  if settings.arm == 'kd':
    pairs |= _teaching(settings)
  if 'device' in summary:
    pairs['device'] = f'{summary["device"]}, {duration(summary["seconds"])}'
  lines = [row(['', '']), '| --- | --- |']
  lines += [row(pair) for pair in pairs.items()]
  lines += ['', 'Settings that are not the defaults of the package:', '']
  changed = _changed(settings)
  lines += [row(['key', 'value']), '| --- | --- |']
  return lines + [row([key, value]) for key, value in changed.items()]


def _teaching(settings: Settings) -> dict[str, str]:
  section, teacher = settings.distillation, settings.teacher
  losses = '+'.join([section.loss, *section.extra])
  found = {
    'teacher': f'{teacher.name} at {teacher.image_size or "the same"} px, '
    f'fit: {teacher.fit}',
    'loss': f'{section.hard_weight:g} cross-entropy + '
    f'{section.soft_weight:g} {losses}, temperature {section.temperature:g}',
  }
  if section.more_teachers:
    found['teacher'] += f', and {len(section.more_teachers)} more'
  if section.sham != 'off':
    found['sham of the teacher'] = section.sham
  return found


def _start(settings: Settings) -> str:
  if settings.student.checkpoint:
    return 'another run'
  return named(preparation.weights_of(settings.student) or 'scratch')


def named(place: str) -> str:
  """Weights by name; of a path on this machine the last part alone."""
  source, colon, _ = place.partition(':')
  if colon and source in _SOURCES:
    return place
  return pathlib.PurePath(place).name


def named_data(place: str) -> str:
  """Likewise a data set."""
  kind, colon, path = place.partition(':')
  if not colon or kind not in DATASETS:
    return place
  return f'{kind}:{pathlib.PurePath(path).name}'


def _changed(settings: Settings) -> dict[str, str]:
  """Dotted key -> value, where a run's settings are not the defaults."""
  own = flatten(workdir.as_json(settings))
  defaults = flatten(workdir.as_json(Settings()))
  found = {}
  for key, value in sorted(own.items()):
    if value == defaults.get(key) or key in _PRIVATE:
      continue
    if key in origins.PLACES:
      places = value if isinstance(value, list) else [value]
      value = ', '.join(named(place) for place in places if place)
    elif key in _DATA:
      value = named_data(value)
    found[key] = f'{value}'
  return found
