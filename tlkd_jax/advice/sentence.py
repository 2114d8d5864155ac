"""The advice in one sentence, from the study's verdict and nothing else."""

import dataclasses
import math
from typing import NamedTuple

from tlkd_jax.advice.choosing import Choice
from tlkd_jax.answer.conclusions import Conclusion, Rival
from tlkd_jax.answer.decision import EQUAL, HELPS, UNKNOWN
from tlkd_jax.answer.words import points
from tlkd_jax.evaluation.sequential import FIRST_LOOK
from tlkd_jax.runtime.texts import duration

COST_MATCHED = 'tl_cost_matched'


class Labels(NamedTuple):
  """What a gain is worth: per cent more labels, with its 95 % interval.

  As label_curves.Efficiency has them.
  """

  percent: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Grounds:
  """What the sentence is made of.

  Attributes:
    conclusion: the study's.
    choice: what its arms had.
    seconds: arm -> of training, its teacher's fitting included; NaN unknown.
    steps: those of TL at TL+KD's cost, as a multiple of TL's; NaN unknown.
    milliseconds: of one prediction of the student.
    worth: in labels; None where it is not known.
    seconds_a_seed: of a further seed.
  """

  conclusion: Conclusion
  choice: Choice
  seconds: dict[str, float]
  steps: float
  milliseconds: float
  worth: Labels | None
  seconds_a_seed: float


def use_teacher(grounds: Grounds) -> bool:
  """Whether the advice is a teacher: it helps, and its time alone does less."""
  if grounds.conclusion.decision.verdict != HELPS:
    return False
  rival = _cost_matched(grounds.conclusion)
  if rival is None or not rival.treatment_against.seeds:
    return True
  return rival.treatment_against.test['mean_difference'] > 0


def num_steps(grounds: Grounds) -> int:
  """Of the advised recipe: more, where a teacher's time is the better use."""
  steps, verdict = grounds.choice.num_steps, grounds.conclusion.decision.verdict
  if use_teacher(grounds) or math.isnan(grounds.steps):
    return steps
  if verdict == HELPS or _gain_of_steps(grounds) is not None:
    return round(steps * grounds.steps)
  return steps


def write(grounds: Grounds) -> str:
  """The sentence; it has the words of the study's verdict."""
  decision = grounds.conclusion.decision
  if use_teacher(grounds):
    return _use(grounds)
  if decision.verdict == HELPS:
    return _its_time(grounds)
  if decision.verdict == UNKNOWN:
    return _unknown(grounds)
  verdict = 'TL+KD hurts'
  if decision.verdict == EQUAL:
    verdict = 'TL+KD and fine-tuning alone are equal within the margin'
  return (
    f'Do not use a teacher: {verdict} ({_found(grounds)}), so {_plain(grounds)}'
  )


def _use(grounds: Grounds) -> str:
  choice = grounds.choice
  return (
    f'Use a teacher, it helps: fine-tune {_model(choice.student)} at '
    f'{choice.image_size} px for {choice.num_steps} steps with '
    f'{_model(choice.teacher)} at {choice.teacher_size} px as its probed '
    f'teacher ({_found(grounds)}, {_labels(grounds.worth)}), '
    f'{_minutes(grounds, "kd")} of training in place of '
    f'{_minutes(grounds, "tl")}, and {_each(grounds)} either way.'
  )


def _its_time(grounds: Grounds) -> str:
  choice, rival = grounds.choice, _cost_matched(grounds.conclusion)
  assert rival is not None
  against = rival.against_reference
  return (
    f'Do not use a teacher but its time: TL+KD helps ({_found(grounds)}), and '
    f'without a teacher as much computation gains '
    f'{points(against.test["mean_difference"])}, so fine-tune '
    f'{_model(choice.student)} alone at {choice.image_size} px for '
    f'{num_steps(grounds)} steps, '
    f'{_minutes(grounds, COST_MATCHED)} of training and {_each(grounds)}.'
  )


def _unknown(grounds: Grounds) -> str:
  decision = grounds.conclusion.decision
  if not decision.seeds:
    why = 'no seed has finished all arms; the same command goes on'
  else:
    why = f'{_found(grounds)}; {_more(grounds)}'
  return (
    'Do not use a teacher for now, as whether it helps is not yet known '
    f'({why}): {_plain(grounds)}'
  )


def _more(grounds: Grounds) -> str:
  """What it would take to know."""
  decision = grounds.conclusion.decision
  if decision.seeds < FIRST_LOOK:
    left = FIRST_LOOK - decision.seeds
    time = duration(left * grounds.seconds_a_seed)
    return f'the first look is after {FIRST_LOOK} seeds, about {time} more'
  if not decision.images:
    return 'the answers to single test images are not at hand'
  if decision.more is None and decision.fragile:
    return 'two test images of one run, answered otherwise, would change it'
  if decision.more is None:
    return (
      'no number of seeds would tell with these images, whose choice alone '
      f'leaves {100 * decision.floor:.1f} points to either side'
    )
  time = duration(decision.more * grounds.seconds_a_seed)
  seeds = f'{decision.more} more seed{"s" * (decision.more != 1)}'
  return f'about {seeds}, {time}, would tell'


def _found(grounds: Grounds) -> str:
  """'+1.20 points of test accuracy, 95 % interval +0.30 to +2.10, ...'."""
  decision = grounds.conclusion.decision
  text = f'{points(decision.mean)} points of test accuracy'
  low, high, level = decision.low, decision.high, 95
  if decision.verdict == EQUAL:
    low, high, level = decision.inner_low, decision.inner_high, 90
  if not math.isnan(low):
    text += f', {level} % interval {points(low)} to {points(high)}'
  seeds = f'{decision.seeds} seed{"s" * (decision.seeds != 1)}'
  images = f' and {decision.images:,} test images' * bool(decision.images)
  return f'{text}, {seeds}{images}'


def _plain(grounds: Grounds) -> str:
  choice, gain, arm = grounds.choice, _gain_of_steps(grounds), 'tl'
  text = (
    f'fine-tune {_model(choice.student)} alone at {choice.image_size} px for '
    f'{num_steps(grounds)} steps'
  )
  if gain is not None:
    arm = COST_MATCHED
    text += (
      f" (TL+KD's computation, {points(gain['mean_difference'])} points over "
      f'{choice.num_steps} steps, {points(gain["ci_low"])} to '
      f'{points(gain["ci_high"])})'
    )
  if not math.isnan(grounds.seconds[arm]):
    text += f', {_minutes(grounds, arm)} of training'
    if gain is None and not math.isnan(grounds.seconds['kd']):
      text += f' in place of {_minutes(grounds, "kd")}'
  return f'{text}, {_each(grounds)}.'


def _labels(worth: Labels | None) -> str:
  if worth is None or math.isnan(worth.percent):
    return 'worth a number of labels that is not known'
  text = f'worth {worth.percent:+.0f} % labels'
  if math.isnan(worth.low) or math.isnan(worth.high):
    return text
  low = 'fewer' if worth.low <= -100 else f'{worth.low:+.0f}'
  high = 'more' if math.isinf(worth.high) else f'{worth.high:+.0f}'
  return f'{text} ({low} to {high})'


def _minutes(grounds: Grounds, arm: str) -> str:
  return duration(grounds.seconds[arm])


def _each(grounds: Grounds) -> str:
  return f'{grounds.milliseconds:.2g} ms a prediction'


def _model(text: str) -> str:
  return text.partition('=')[0]


def _gain_of_steps(grounds: Grounds) -> dict[str, float] | None:
  """TL at TL+KD's cost minus TL, where its 95 % interval is above zero."""
  rival = _cost_matched(grounds.conclusion)
  if rival is None or math.isnan(grounds.steps):
    return None
  longer = rival.against_reference
  if len(longer.seeds) < 2 or longer.test['ci_low'] <= 0:
    return None
  return longer.test


def _cost_matched(conclusion: Conclusion) -> Rival | None:
  """TL at TL+KD's cost, where it is an arm."""
  return next(
    (
      one
      for one in conclusion.rivals
      if one.against_reference.arm == COST_MATCHED
    ),
    None,
  )
