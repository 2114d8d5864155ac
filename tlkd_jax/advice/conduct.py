"""From a request to a page, in five steps; each says its cost before it begins.

What a step found is in ADVICE/advice.json, the study in ADVICE/study, so that
the same request goes on where it was stopped.
"""

import dataclasses
import math
import pathlib
import time
from typing import Any

from absl import logging
from jax.sharding import Mesh

from tlkd_jax.advice import choosing, looking, pages, probing, request, trial
from tlkd_jax.advice.choosing import Choice
from tlkd_jax.advice.probing import Probe
from tlkd_jax.advice.request import Request
from tlkd_jax.advice.sentence import COST_MATCHED, Grounds, Labels
from tlkd_jax.answer import conclusions, worth
from tlkd_jax.answer import plan as plans
from tlkd_jax.answer import rows as runs
from tlkd_jax.answer.decision import HELPS, Decided
from tlkd_jax.evaluation import records
from tlkd_jax.evaluation.sequential import FIRST_LOOK
from tlkd_jax.runtime import sealed, sharding
from tlkd_jax.runtime.errors import RunError, as_user_errors
from tlkd_jax.runtime.texts import duration
from tlkd_jax.settings import Settings
from tlkd_jax.study import analysis, cells, results, until, workers
from tlkd_jax.study import conduct as studies
from tlkd_jax.study.analysis import CellRow
from tlkd_jax.study.matrix import needed
from tlkd_jax.study.until import Until
from tlkd_jax.training import defaults, forecast, says
from tlkd_jax.training.run import set_up
from tlkd_jax.training.summary import SAYS

FILE = 'advice.json'
_STEPS = 5
# Cells of a seed: the teacher and three students.
_ARMS = 4
# Of the budget, for the probes.
_PROBES = 0.2
# Images that a probe sees of training, and of validation.
_MOST_SEEN, _LEAST_SEEN = 1500, 200
_SIZES_TRIED = 3
# Files with a shorter side are enlarged no further than by this.
_ENLARGED = 2


@dataclasses.dataclass(frozen=True)
class Advice:
  """What came out.

  Attributes:
    sentence: the advice.
    verdict: of the study.
    page: ADVICE/index.html.
    command: that trains the advised recipe.
  """

  sentence: str
  verdict: Decided
  page: pathlib.Path
  command: str

  def __repr__(self) -> str:
    return self.sentence


def run(asked: Request, root: pathlib.Path) -> Advice:
  """Runs all steps, or what is left of them.

  Args:
    asked: the request.
    root: the folder of the advice.

  Raises:
    UserError: data, names or values that are not accepted, or a folder with
      another request.
    RunError: a run failed.
    Interrupted: the process was asked to stop; what is finished stays.
  """
  deadline = time.time() + 60 * asked.budget_minutes
  mesh = sharding.make_mesh()
  with as_user_errors():
    state = _open(asked, root)
    looked = _look(asked, root, state)
    probes = _probe(asked, root, state, looked, mesh)
    choice = _choose(root, state, asked, looked, probes, deadline)
    config = trial.make(asked, looked, choice, state['cores'])
  end = until.make(config, None, deadline, 1)
  study = trial.folder(root)
  with as_user_errors():
    studies.prepare(config, study, end)
  load = cells.Loader()
  said = _says(config, root, end, load, choice, mesh)
  left = [
    cell
    for cell in studies.known(config, study, end)
    if not cells.is_done(study, cell)
  ]
  _announce(
    4,
    'TL, TL+KD and TL at its cost, seed by seed until the answer is sure',
    len(left) / _ARMS * choice.seconds_a_seed,
    f'for the {FIRST_LOOK} seeds of the first look or the next one; at most '
    f'{duration(max(end.seconds_left(), 0))}',
  )
  rows, _ = studies.run(config, study, end)
  rows = results.with_answers(study, rows)
  conclusion = _conclude(config, study, rows)
  found = None
  if conclusion.decision.verdict == HELPS:
    found = _worth(config, root, rows, end, conclusion.decision.seeds)
  _announce(5, 'the page', 2)
  grounds = Grounds(
    conclusion=conclusion,
    choice=choice,
    seconds=_seconds(rows),
    steps=_steps(rows),
    milliseconds=_of(probes, choice.student, choice.image_size).milliseconds,
    worth=found,
    seconds_a_seed=_seconds_a_seed(rows, choice),
  )
  text = pages.write(root, asked, looked, probes, said, grounds, rows)
  return Advice(
    sentence=text,
    verdict=conclusion.decision.verdict,
    page=root / 'index.html',
    command=pages.command(asked, grounds, pages.num_train(looked, choice)),
  )


def _open(asked: Request, root: pathlib.Path) -> dict[str, Any]:
  """What earlier calls found.

  Raises:
    ValueError: the folder is of another request, or damaged.
  """
  path = root / FILE
  if not path.exists():
    root.mkdir(parents=True, exist_ok=True)
    return {'request': asked.as_json(), 'cores': trial.cores()}
  state = sealed.read_json(path)
  now = asked.as_json()
  lines = [
    f'{key}: {state["request"].get(key)} there, {value} now'
    for key, value in now.items()
    if state['request'].get(key) != value
  ]
  if lines:
    raise ValueError(
      f'{path} is of another request:\n  '
      + '\n  '.join(lines)
      + '\naccepted: what is there, or another --workdir'
    )
  return state


def _keep(root: pathlib.Path, state: dict[str, Any], **found: Any) -> None:
  state |= found
  records.write_json(root / FILE, state)


def _announce(number: int, what: str, seconds: float, more: str = '') -> None:
  cost = f'about {duration(max(seconds, 1))}'
  logging.info(
    'step %d of %d: %s; %s%s',
    number,
    _STEPS,
    what,
    cost,
    f' {more}' * bool(more),
  )


def _look(
  asked: Request, root: pathlib.Path, state: dict[str, Any]
) -> dict[str, Any]:
  if 'data' not in state:
    settings = request.settings_of(asked, asked.students[0], request.SIZES[0])
    _announce(1, 'look at the data', looking.seconds(settings))
    _keep(root, state, data=looking.look(settings))
  for line in state['data']['lines']:
    logging.info('  %s', line)
  return state['data']


def _probe(
  asked: Request,
  root: pathlib.Path,
  state: dict[str, Any],
  looked: dict[str, Any],
  mesh: Mesh,
) -> list[Probe]:
  """Probes of every candidate at every size."""
  found = [probing.from_json(one) for one in state.get('probes', [])]
  known = {(probe.model, probe.image_size) for probe in found}
  rate, compiling = forecast.measure_rates('float32')
  sizes = asked.image_sizes or sizes_for(asked, looked, rate)
  wanted = [
    (candidate, size)
    for size in sizes
    for candidate in dict.fromkeys((*asked.students, *asked.teachers))
    if (str(candidate), size) not in known
  ]
  if not wanted:
    return found
  each = sum(request.macs(c.name, size) for c, size in wanted)
  most = _PROBES * 60 * asked.budget_minutes * rate / each
  most = int(min(_MOST_SEEN, max(_LEAST_SEEN, most)))
  counts = looked['counts']
  images = looked['images']
  if not looked['folds']:
    images = sum(min(most, counts[name]) for name in ('train', 'validation'))
  # Of compiling a forward pass of some 200 arrays, loading and regression.
  overhead = len(wanted) * (40 * compiling + 5)
  _announce(
    2,
    f'probes of frozen features, {len(wanted)} of them, of up to {images:,} '
    'images',
    images * each / rate + overhead,
  )
  for candidate, size in wanted:
    probe = probing.measure(asked, candidate, size, looked, most, mesh)
    logging.info(
      '  %s at %d px: validation accuracy %.3f, NLL %.3f, %.2g ms a prediction',
      *(probe.model, size, probe.accuracy, probe.nll, probe.milliseconds),
    )
    found.append(probe)
    _keep(root, state, probes=[dataclasses.asdict(one) for one in found])
  return found


def sizes_for(
  asked: Request, looked: dict[str, Any], rate: float
) -> tuple[int, ...]:
  """The largest sizes that files and budget allow, at most three.

  Args:
    asked: the request.
    looked: from looking.look.
    rate: multiply-adds a second.
  """
  side = looked['side'] or request.SIZES[-1]
  able = [size for size in request.SIZES if size <= _ENLARGED * side]
  able = able or [request.SIZES[0]]
  seconds = 60 * asked.budget_minutes
  student = min(asked.students, key=lambda c: request.macs(c.name, able[0]))
  steps = choosing.STEPS[-1]

  def learned(size: int) -> float:
    """Seconds of one student's steps, forward and backward."""
    work = 3 * request.macs(student.name, size) * choosing.BATCH * steps
    return work / rate

  # Three arms, two of them with a teacher's work as large as the student's.
  fits = [s for s in able if 5 * FIRST_LOOK * learned(s) <= seconds]
  count = max(len(fits), 1)
  # One that is too large for the student may be the teacher's.
  return tuple(able[max(0, count - 2) : count + 1])[:_SIZES_TRIED]


def _choose(
  root: pathlib.Path,
  state: dict[str, Any],
  asked: Request,
  looked: dict[str, Any],
  probes: list[Probe],
  deadline: float,
) -> Choice:
  if 'choice' not in state:
    counts = looked['counts']
    students, teachers = (
      [one for one in probes if one.candidate in candidates]
      for candidates in (asked.students, asked.teachers)
    )
    choice = choosing.choose(
      students,
      teachers,
      choosing.Sizes(
        train=counts['train'],
        evaluated=min(counts['validation'], trial.MOST_VALIDATION)
        + min(counts['test'], trial.MOST_TEST),
      ),
      deadline - time.time(),
    )
    _keep(root, state, choice=choosing.as_json(choice))
  choice = Choice(**state['choice'])
  logging.info(
    '  student %s at %d px, teacher %s at %d px, %d steps: about %s a seed',
    *(choice.student, choice.image_size, choice.teacher, choice.teacher_size),
    *(choice.num_steps, duration(choice.seconds_a_seed)),
  )
  return choice


def _says(
  config: Settings,
  root: pathlib.Path,
  end: Until,
  load: cells.Loader,
  choice: Choice,
  mesh: Mesh,
) -> dict[str, Any]:
  """What the first seed's teacher says; its fit is the study's own cell."""
  folder, study = root / 'targets', trial.folder(root)
  if (folder / SAYS).exists():
    return sealed.read_json(folder / SAYS)
  matrix = studies.known(config, study, end)
  student = next(cell for cell in matrix if cell.arm == 'kd')
  _announce(3, "what the teacher's targets say", 30 + choice.seconds_a_seed / 6)
  workers.work(
    needed(student, matrix),
    study,
    lambda cell: cells.run(config, cell, matrix, study, load, mesh),
    lambda: None,
  )
  for cell in needed(student, matrix):
    if not cells.is_done(study, cell):
      raise RunError(f'{cell.name}: {cells.failure(study, cell) or "not done"}')
  with as_user_errors():
    own = cells.configure(config, student, matrix, study)
    dataset = load(own)
    made = set_up(defaults.for_data(own, dataset), folder, dataset, mesh)
    folder.mkdir(exist_ok=True)
    return says.measure(made, {}, says.on_validation(made))


def _conclude(config: Settings, study: pathlib.Path, rows: list[CellRow]):
  assert config.study is not None
  return conclusions.draw(
    rows,
    config.study.treatment,
    config.study.reference,
    config.study.metrics,
    plans.read(study),
  )


def _worth(
  config: Settings,
  root: pathlib.Path,
  rows: list[CellRow],
  end: Until,
  seeds: int,
) -> Labels | None:
  """The gain in labels, by the same arms with half of the training images."""
  if end.is_over():
    logging.info('  the budget is spent: what it is worth in labels is open')
    return None
  logging.info('  the same with half of the labels: what is the gain worth?')
  half = trial.half(config)
  place = root / 'half'
  few, _ = studies.run(half, place, until.make(half, seeds, end.deadline, 1))
  few = results.with_answers(place, few)
  found = worth.in_labels([*rows, *few], 'kd', 'tl')
  if not found:
    return None
  over = found[0].over_curve
  return Labels(over.percent, over.low, over.high)


def _seconds(rows: list[CellRow]) -> dict[str, float]:
  """Arm -> seconds of training with its teacher's; NaN where none ran."""
  arms = ('tl', 'kd', COST_MATCHED)
  places = runs.places(rows)
  if not places:
    return dict.fromkeys(arms, math.nan)
  return {arm: analysis.cost(rows, places[0], arm)['seconds'] for arm in arms}


def _steps(rows: list[CellRow]) -> float:
  """Of TL at TL+KD's cost, as a multiple of TL's."""
  places = runs.places(rows)
  if not places:
    return math.nan
  longer, plain = (
    analysis.cost(rows, places[0], arm)['train_images']
    for arm in (COST_MATCHED, 'tl')
  )
  return longer / plain


def _seconds_a_seed(rows: list[CellRow], choice: Choice) -> float:
  """Of a further seed, as measured; a forecast where nothing is."""
  by_seed: dict[int, list[float]] = {}
  for row in rows:
    by_seed.setdefault(row['seed'], []).append(row['wall_seconds'])
  if not by_seed:
    return choice.seconds_a_seed
  last = max(by_seed.values(), key=len)
  # The arms that are left take as long as the others, or as was forecast.
  if len(last) < _ARMS:
    return max(sum(last) / len(last) * _ARMS, choice.seconds_a_seed)
  whole = [found for found in by_seed.values() if len(found) == _ARMS]
  return sum(whole[-1])


def _of(probes: list[Probe], model: str, size: int) -> Probe:
  return next(
    one for one in probes if (one.model, one.image_size) == (model, size)
  )
