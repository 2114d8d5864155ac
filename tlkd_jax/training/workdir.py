"""A run's folder and its record of the settings.

config.json        every setting
origins.json       the runs that it was made from, to find them again
data.json.gz       the files, classes and splits that it began with
cost.json          what a teacher would take, of TL at the cost of TL+KD
summary.json       written when the run is finished
metrics.jsonl      the course of training, tensorboard/ beside it
predictions/       logits, labels, indices of validation and test
checkpoints/       latest: to resume; best: the run's own network
.sums/             digests of JSON and .npz, see runtime.sealed
NAME/checkpoints/  best of another network that learned (a peer)
"""

import json
import os
import pathlib
from typing import Any

from absl import logging

from tlkd_jax import settings as settings_
from tlkd_jax.models.weights import hub
from tlkd_jax.runtime import sealed, sharding
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.settings import Settings, origins
from tlkd_jax.settings.networks import OPEN, ZERO_SHOT
from tlkd_jax.training import defaults, preparation

_COST = 'cost.json'


def check(workdir: pathlib.Path, settings: Settings) -> None:
  """Checks that a run's folder is new or holds the same configuration.

  Keys that an earlier version lacked have their defaults there. What is left
  open until the data are known is not compared.

  Raises:
    ValueError: the folder holds a run of another configuration; the message
      lists the differing keys, and says what becomes of a longer run. Or what
      it was made from has changed.
  """
  if not (workdir / 'config.json').exists():
    return
  defaults = flatten(as_json(Settings()))
  old = comparable(defaults | flatten(read(workdir)))
  own = flatten(as_json(settings))
  new = comparable(own)
  changed = [
    key
    for key in sorted((old | new).keys() - left_open(own))
    if not _alike(workdir, key, old.get(key, '-'), new.get(key, '-'))
  ]
  if changed:
    error = another_configuration(workdir, old, new, changed, 'that one')
    longer = _length(new) > _length(old)
    if longer and set(changed) <= {'num_steps', 'teacher.num_steps'}:
      raise ValueError(f'{error}\n{_how_to_go_on(workdir, settings)}')
    raise error
  check_origins(workdir, settings)


def check_origins(workdir: pathlib.Path, settings: Settings) -> None:
  """Checks that a run goes on with the teachers and weights that it began with.

  Of a finished run it is a warning.

  Raises:
    ValueError: names what is another now.
  """
  changed = origins.changed(workdir, as_json(settings))
  if not changed:
    return
  what = (
    f'others are there now than what {workdir} was made from:\n  '
    + '\n  '.join(changed)
  )
  if (workdir / 'summary.json').exists():
    logging.warning('%s', what)
    return
  raise ValueError(
    f'{what}\nput them back as they were, use another --workdir, or delete '
    'that one'
  )


def _how_to_go_on(workdir: pathlib.Path, settings: Settings) -> str:
  """What to do for a run of more steps than the one that is there."""
  if not (workdir / 'summary.json').exists():
    return (
      'its learning rate falls to the end of its own steps, so that it cannot '
      'be made longer; the number it was begun with finishes it'
    )
  section = 'teacher' if settings.arm == 'teacher' else 'student'
  own = settings.arm == 'teacher' and settings.teacher.num_steps
  steps = f'{"teacher." if own else ""}num_steps={num_steps(settings)}'
  state, start = 'best state', f'--config.{section}.checkpoint={workdir} '
  if settings.quantize.mode == 'qat':
    # It goes on from a student in float, which its configuration names.
    state, start = 'start', ''
  elif section == 'student':
    # No head but its own goes with the backbone that it has now.
    on = [n for n in ('lwf', 'co_tuning') if vars(settings.transfer)[n]]
    start += ''.join(f'--config.transfer.{name}=0 ' for name in on)
  return (
    'it is finished, and its learning rate has fallen to its end. More steps '
    'are a run of their own, with a schedule of their own, from its '
    f'{state}:\n  --config={workdir}/config.json --config.{steps} '
    f'{start}--workdir=ANOTHER'
  )


def another_configuration(
  workdir: pathlib.Path, old: dict, new: dict, keys: list[str], what: str
) -> ValueError:
  """The error for a folder that holds a run of other settings.

  Args:
    workdir: the folder.
    old: dotted key -> value there.
    new: dotted key -> value now.
    keys: those that differ.
    what: that may be deleted instead.
  """
  lines = [f'  {k}: {old.get(k)!r} there, {new.get(k)!r} now' for k in keys]
  return ValueError(
    f'{workdir} holds a run of another configuration:\n'
    + '\n'.join(lines)
    + f'\nuse another --workdir, or delete {what}'
  )


def write(workdir: pathlib.Path, settings: Settings) -> None:
  """Makes a run's folder with its config.json.

  One that is there already is only told where the runs lie that it names.
  """
  path = workdir / 'config.json'
  if not sharding.is_lead():
    return
  config = as_json(settings)
  if path.exists():
    old, new = flatten(read(workdir)), flatten(config)
    if all(_by_path(old.get(k)) == _by_path(new[k]) for k in origins.PLACES):
      return
  workdir.mkdir(parents=True, exist_ok=True)
  origins.write(workdir, config)
  sealed.write_text(path, json.dumps(config, indent=1))


def write_cost(workdir: pathlib.Path, cost: dict[str, Any]) -> None:
  """Writes what the further steps of a run were counted from."""
  if sharding.is_lead():
    sealed.write_text(workdir / _COST, json.dumps(cost, indent=1))


def read_cost(workdir: pathlib.Path) -> dict[str, Any] | None:
  """What `write_cost` wrote; None of a run without further steps."""
  path = workdir / _COST
  return sealed.read_json(path) if path.exists() else None


def length(workdir: pathlib.Path, settings: Settings) -> int:
  """Steps of a run that was begun, those for its cost among them."""
  cost = read_cost(workdir) or {'further_steps': 0}
  return num_steps(settings) + cost['further_steps']


def num_steps(settings: Settings) -> int:
  """The length of a run; 0 of a teacher that is used as it is."""
  return 0 if stays_as_it_is(settings) else _length(flatten(as_json(settings)))


def _length(flat: dict[str, Any]) -> int:
  own = flat['teacher.num_steps'] if flat['arm'] == 'teacher' else 0
  return own or flat['num_steps']


def comparable(flat: dict[str, Any]) -> dict[str, Any]:
  """Settings by dotted key; what was left open is as if it had been said."""
  crop, interpolation = preparation.cut(
    flat['dataset'],
    flat['data.crop'],
    flat['data.interpolation'],
    flat['student.name'],
    flat['student.weights'],
  )
  said = {
    key: value
    for key, value in flat.items()
    # What earlier versions compared with, and did not say.
    if not (key.endswith('options.embedding') and value == 'pooled')
  }
  return said | {
    'data.crop': crop,
    'data.interpolation': interpolation,
    # Of a run that was not told: earlier versions fine-tuned every teacher.
    'teacher.fit': (
      'finetuned' if flat['teacher.fit'] == OPEN else flat['teacher.fit']
    ),
    'image_size': preparation.side(
      flat['dataset'],
      flat['image_size'],
      flat['student.name'],
      flat['student.weights'],
    ),
    'num_train_per_class': defaults.per_class(
      flat['dataset'], flat['num_train_per_class'], flat['train_fraction']
    ),
  }


def left_open(flat: dict[str, Any]) -> set[str]:
  """Dotted keys of settings, as they are, that the data will settle."""
  keys = {k for k in ('num_steps', 'eval_every_steps') if not flat[k]}
  if flat['teacher.fit'] == OPEN:
    # Which a probe sees more of.
    keys |= {'teacher.fit', 'teacher.image_size'}
  return keys


def is_adopted(settings: Settings) -> bool:
  """Whether a run's network was fine-tuned elsewhere: weights, no run."""
  place = settings.teacher.checkpoint
  return settings.arm == 'teacher' and bool(place) and hub.is_weights(place)


def stays_as_it_is(settings: Settings) -> bool:
  """Whether a run's network learns nothing: that, or a zero-shot one."""
  zero_shot = settings.arm == 'teacher' and settings.teacher.fit == ZERO_SHOT
  return zero_shot or is_adopted(settings)


def as_json(settings: Settings) -> dict[str, Any]:
  """What config.json holds: plain nested dicts, lists and numbers."""
  return json.loads(settings_.to_json(settings))


def read(workdir: pathlib.Path) -> dict[str, Any]:
  """The configuration that `write` wrote, as plain nested dicts.

  The runs that it names are where they lie now.

  Raises:
    FileNotFoundError: the folder is not a run.
    ValueError: the file is damaged.
  """
  path = workdir / 'config.json'
  if not path.exists():
    raise FileNotFoundError(f'{workdir} holds no config.json: not a run')
  return origins.located(workdir, sealed.read_json(path))


def _alike(workdir: pathlib.Path, key: str, old: Any, new: Any) -> bool:
  """A run that is named by another path is the same run."""
  if key not in origins.PLACES:
    return old == new
  if _by_path(old) == _by_path(new) or origins.same(workdir, key, new):
    return True
  gone = key in origins.KEYS and _is_gone(old, new)
  gone = gone and not origins.has_record(workdir)
  if gone:
    logging.warning(
      '%s is of a version that did not record its runs; %s %s is gone, and %s '
      'is taken for it',
      *(workdir, key, old, new),
    )
  return gone


def _is_gone(old: Any, new: Any) -> bool:
  """Whether places of runs no longer exist, where as many others do."""
  before, now = ([v] if isinstance(v, str) else v or [] for v in (old, new))
  return 0 < len(before) == len(now) and not any(map(os.path.exists, before))


def _by_path(value: Any) -> Any:
  if isinstance(value, list):
    return [_by_path(place) for place in value]
  return os.path.realpath(value) if isinstance(value, str) else value
