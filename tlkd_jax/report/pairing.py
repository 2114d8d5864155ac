"""Which runs belong together, and the rows that they are to the answer.

A TL and a TL+KD run are paired where their configurations are equal but for
what makes the arm, and the seed. Where TL+KD runs of one configuration differ
in teacher, distillation or targets, each kind of them is an arm of its own, as
are self-training and FixMatch, which are paired with TL likewise; a TL run that
none of them is paired with stands beside them as one more arm.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tlkd_jax.answer.labels import LABELS
from tlkd_jax.answer.rows import Place, Row, make_answers
from tlkd_jax.evaluation import calibration
from tlkd_jax.evaluation.evaluate import Predictions
from tlkd_jax.evaluation.metrics import METRICS
from tlkd_jax.report.runs import RunFolder, is_finished, read_run

REFERENCE = 'tl'

# Kinds of runs that are compared with it, the first of those shown in detail.
_TREATMENTS = ('kd', 'self_training', 'fixmatch')

# What is compared over seeds; all of METRICS for the pair on show.
METRIC_NAMES = (
  'top1',
  'balanced_accuracy',
  'macro_f1',
  'nll',
  'brier',
  'ece',
  'aurc',
)

# Keys in which a TL and a TL+KD run may differ and still be a pair.
_BETWEEN_ARMS = ('arm', 'seed', 'distillation.', 'teacher.', 'targets.')
# Keys that change how a run is done or where it lies, not what it finds.
_INCIDENTAL = (
  'data.cache_dir',
  'data.data_dir',
  'data.memory_budget_mib',
  'log_every_steps',
  'keep_checkpoints',
  'teacher.checkpoint',
  'targets.dir',
  'targets.features_dir',
  'targets.features_mib',
)
_SIZE = ('num_train_per_class', 'train_fraction')


@dataclasses.dataclass(frozen=True)
class Pair:
  """A TL and a TL+KD run of one seed, with the teacher if it is at hand.

  Attributes:
    tl: the run without a teacher.
    kd: the run with it, or of self-training or FixMatch.
    teacher: the teacher's own run.
    treatment: the arm that `kd` is to the answer.
    place: where they are compared.
  """

  tl: RunFolder
  kd: RunFolder
  teacher: RunFolder | None
  treatment: str
  place: Place

  @property
  def runs(self) -> list[RunFolder]:
    """Teacher, if there, TL and TL+KD."""
    first = [self.teacher] if self.teacher else []
    return [*first, self.tl, self.kd]


@dataclasses.dataclass(frozen=True)
class Paired:
  """What a report compares.

  Attributes:
    rows: of TL, of every treatment, and of what stands beside them.
    treatments: arms with a teacher that are paired with TL.
    pairs: of runs, by place and seed.
  """

  rows: list[Row]
  treatments: list[str]
  pairs: list[Pair]


@dataclasses.dataclass(frozen=True)
class _Group:
  """Students whose configurations differ in nothing but what makes the arm."""

  tl: list[RunFolder]
  kd: list[RunFolder]

  @property
  def first(self) -> RunFolder:
    return (self.tl or self.kd)[0]


def pair(runs: Sequence[RunFolder], notes: list[str]) -> Paired:
  """Pairs runs and makes their rows.

  Args:
    runs: finished ones.
    notes: takes up what was left out and why, one sentence each.
  """
  groups = _groups(runs)
  both = [group for group in groups if group.tl and group.kd]
  telling = {kind: _telling_apart(both, kind) for kind in _TREATMENTS}
  rows: list[Row] = []
  pairs: list[Pair] = []
  for group, place in zip(both, _places(both), strict=True):
    by_seed = {run.seed: run for run in _once(group.tl, notes)}
    rows += _rows(by_seed.values(), REFERENCE, place, notes)
    kinds: dict[str, list[RunFolder]] = {}
    for run in sorted(group.kd, key=_in_order):
      name = _named(run.kind, run, telling[run.kind])
      kinds.setdefault(name, []).append(run)
    for arm, members in kinds.items():
      members = _once(members, notes)
      rows += _rows(members, arm, place, notes)
      for run in members:
        tl = by_seed.get(run.seed)
        if tl is None:
          notes.append(f'{run.path} has no TL run of seed {run.seed}.')
        else:
          pairs.append(Pair(tl, run, _teacher_of(run, runs), arm, place))
  alone = [group for group in groups if not (group.tl and group.kd)]
  rows += _beside(alone, both, notes)
  treatments = list(dict.fromkeys(one.treatment for one in pairs))
  return Paired(rows, treatments, pairs)


def _telling_apart(groups: Sequence[_Group], kind: str) -> list[str]:
  """Keys in which treatments of one kind differ within a group."""
  return sorted(
    {
      key
      for group in groups
      for key in _telling(
        [run for run in group.kd if run.kind == kind], ('seed', *_INCIDENTAL)
      )
    }
  )


def _in_order(run: RunFolder) -> tuple[int, int, str]:
  return _TREATMENTS.index(run.kind), run.seed, str(run.path)


def recipe(config: Mapping[str, Any]) -> dict[str, Any]:
  """What runs have in common that are compared: not what makes the arm.

  Args:
    config: of a run, dotted key -> value.

  Returns:
    Key -> value, sorted; what is None is left out, as a key that an older
    version lacked is one that is not set.
  """
  found = {
    key: _shown(config, key)
    for key in sorted(config)
    if not key.startswith((*_BETWEEN_ARMS, *_INCIDENTAL))
  }
  return {key: value for key, value in found.items() if value is not None}


def _groups(runs: Sequence[RunFolder]) -> list[_Group]:
  found: dict[str, _Group] = {}
  for run in runs:
    # A member of an ensemble is a part of it.
    if run.arm != 'teacher' and not run.config.get('student.member'):
      kept = recipe(run.config)
      if run.kind == 'fixmatch':
        kept['student.fit'] = 'finetuned'
      group = found.setdefault(json.dumps(kept), _Group([], []))
      (group.kd if run.kind in _TREATMENTS else group.tl).append(run)
  return list(found.values())


def _places(groups: Sequence[_Group]) -> list[Place]:
  """A place for each group, told apart by a recipe where it must be."""
  found = []
  for group in groups:
    run = group.first
    same_data = [g.first for g in groups if g.first.dataset == run.dataset]
    keys = _telling(same_data, (*_BETWEEN_ARMS, *_SIZE, *_INCIDENTAL))
    if run.size >= 1 and run.fraction < 1:
      keys.append('train_fraction')
    found.append(Place(run.dataset, run.size, _values(run, keys)))
  return found


def _beside(
  alone: Sequence[_Group], both: Sequence[_Group], notes: list[str]
) -> list[Row]:
  """Rows of TL runs without a partner, where one place is theirs."""
  rows: list[Row] = []
  places = _places(both)
  for group in alone:
    run = group.first
    note = (
      f'{run.path} has no partner: a TL and a TL+KD run are paired where their '
      'configurations differ only in the arm.'
    )
    here = [
      (one.first, place)
      for one, place in zip(both, places, strict=True)
      if (place.dataset, place.size) == (run.dataset, run.size)
    ]
    if group.tl and len(here) == 1:
      ((paired, place),) = here
      telling = _telling([run, paired], (*_BETWEEN_ARMS, *_INCIDENTAL))
      if telling:
        arm = _named('tl', run, telling)
        note += f' It stands beside them as {_label(arm, "tl")}.'
        rows += _rows(_once(group.tl, notes), arm, place, notes)
    notes.append(note)
  return rows


def _once(runs: Iterable[RunFolder], notes: list[str]) -> list[RunFolder]:
  """The first run of each seed."""
  found: dict[int, RunFolder] = {}
  for run in runs:
    if found.setdefault(run.seed, run) is not run:
      notes.append(f'{run.path} repeats seed {run.seed} and was left out.')
  return list(found.values())


def _rows(
  runs: Iterable[RunFolder], arm: str, place: Place, notes: list[str]
) -> list[Row]:
  rows: list[Row] = []
  for run in runs:
    stored = run.predictions('test')
    if stored is None:
      notes.append(f'{run.path} has no predictions on test and was left out.')
      continue
    rows.append(
      {
        'dataset': place.dataset,
        'size': place.size,
        'recipe': place.recipe,
        'arm': arm,
        'label': _label(arm, run.kind),
        'kind': run.arm,
        'seed': run.seed,
        'num_train': run.num_train,
        'chosen': True,
        'test': _measured(run, stored),
        'answers': make_answers(stored.logits, stored.labels, stored.indices),
      }
    )
    made = run.made
    if made is not None:
      rows[-1]['made'] = made
    if run.folds:
      rows[-1]['folds'] = run.folds
  return rows


def _measured(run: RunFolder, test: Predictions) -> dict[str, float | None]:
  """METRIC_NAMES on test, and after temperature scaling on validation."""
  own = test.logits, test.labels
  found: dict[str, float | None] = {n: METRICS[n](*own) for n in METRIC_NAMES}
  validation = run.predictions('validation')
  if validation is not None:
    names = [n for n in METRIC_NAMES if n in calibration.SCALED_METRICS]
    found |= calibration.scaled_metrics(
      validation.logits, validation.labels, *own, names
    )
  return found


def _named(kind: str, run: RunFolder, keys: Sequence[str]) -> str:
  """Name of the arm: its kind, and what tells it from others of the kind."""
  return ', '.join([kind, *filter(None, [_values(run, keys)])])


def _label(arm: str, kind: str) -> str:
  return LABELS[kind] + arm.removeprefix(kind)


def _telling(runs: Sequence[RunFolder], ignored: tuple[str, ...]) -> list[str]:
  """Keys in which runs differ, but for those that begin with `ignored`."""
  keys = sorted({key for run in runs for key in run.config})
  return [
    key
    for key in keys
    if not key.startswith(ignored)
    and len({json.dumps(_shown(run.config, key)) for run in runs}) > 1
  ]


def _values(run: RunFolder, keys: Sequence[str]) -> str:
  return ', '.join(f'{key}={_shown(run.config, key)}' for key in keys)


def _shown(config: Mapping[str, Any], key: str) -> Any:
  value = config.get(key)
  # Paths, which are others for every seed and arm: their number tells arms
  # apart, and whether there is one to start from.
  if key == 'distillation.more_teachers':
    return len(value or ())
  if key == 'student.checkpoint':
    return 'set' if value else None
  return value


def _teacher_of(kd: RunFolder, runs: Sequence[RunFolder]) -> RunFolder | None:
  """The teacher's own run: by its stored path, else beside or inside.

  A peer has none: it learned in the run itself. Nor have self-training, whose
  teacher is a TL run, and FixMatch.
  """
  if 'mutual' in kd.summary or kd.kind != 'kd':
    return None
  named = kd.config['teacher.checkpoint']
  places = [kd.path / 'teacher', kd.path.parent / 'teacher']
  if named:
    places.insert(0, pathlib.Path(named))
  known = {run.path.resolve(): run for run in runs if run.arm == 'teacher'}
  for place in places:
    if place.resolve() in known:
      return known[place.resolve()]
    if is_finished(place):
      run = read_run(place)
      if run.arm == 'teacher':
        return run
  return None
