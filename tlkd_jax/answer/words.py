"""Effects in sentences, with their numbers and their uncertainty."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tlkd_jax.answer.decision import (
  EQUAL,
  HELPS,
  HURTS,
  UNKNOWN,
  Decided,
  Decision,
)
from tlkd_jax.answer.effects import Effect
from tlkd_jax.answer.plan import POWER, Plan
from tlkd_jax.answer.rows import Row
from tlkd_jax.answer.verdicts import JUDGED, is_apart_over_images
from tlkd_jax.answer.worth import Worth
from tlkd_jax.evaluation import statistics
from tlkd_jax.evaluation.label_curves import Needed
from tlkd_jax.evaluation.sequential import FIRST_LOOK
from tlkd_jax.evaluation.statistics import ALPHA

Labels = Mapping[str, str]
# Verdict -> how an answer with it begins.
OPENINGS: dict[Decided, str] = {
  HELPS: 'Yes, it helps',
  HURTS: 'No, it hurts',
  EQUAL: 'Equal within the margin',
  UNKNOWN: 'Not yet known',
}


def sentence(
  overall: Effect,
  decision: Decision,
  plan: Plan,
  alone: Sequence[Effect],
  labels: Labels,
) -> str:
  """The answer.

  Args:
    overall: the effect on accuracy over all places.
    decision: the verdict on it.
    plan: how it was judged.
    alone: the effect at each place.
    labels: of the arms.
  """
  name, base = labels[overall.arm], labels[overall.reference]
  if not overall.seeds:
    return (
      f'There is no answer yet: no seed has finished both {name} and {base} at '
      'every place.'
    )
  if len(overall.seeds) == 1:
    text = _one_seed(overall, alone, name, base)
  else:
    text = _several_seeds(overall, decision, plan, alone, name, base)
  if overall.left_out:
    missing = '; '.join(map(str, overall.left_out))
    text += f' With fewer pairs, and left out of the mean: {missing}.'
  return text


def _several_seeds(
  overall: Effect,
  decision: Decision,
  plan: Plan,
  alone: Sequence[Effect],
  name: str,
  base: str,
) -> str:
  text = (
    f'{OPENINGS[decision.verdict]}: {_means(overall, name, base)}, '
    f'{_interval(overall, decision)} over {decision.seeds} paired seeds'
  )
  if decision.images:
    text += f' and {decision.images:,} test images'
  if not math.isnan(decision.low):
    text += f', wide enough for a look after every seed up to {plan.max_seeds}'
  text += '.'
  if decision.verdict in (HELPS, HURTS) and decision.within:
    text += f' It is less than the margin of {_size(plan.margin)} points.'
  if decision.verdict == EQUAL:
    text += (
      f' The margin is {_size(plan.margin)} points, the 90 % interval '
      f'{points(decision.inner_low)} to {points(decision.inner_high)}.'
    )
  if decision.verdict == UNKNOWN:
    text += ' ' + ' '.join(unknown_why(decision, plan))
  if len(overall.seeds) > decision.seeds:
    text += (
      f' The mean is over {len(overall.seeds)} seeds; no more than '
      f'{decision.seeds} of them were planned, and count.'
    )
  if len(alone) > 1:
    found = [effect.verdict for effect in alone]
    counts = ', '.join(f'{kind} at {found.count(kind)}' for kind in JUDGED)
    text += f' Each place alone, p corrected by Holm: {counts}.'
  return text


def _interval(overall: Effect, decision: Decision) -> str:
  low, high = decision.low, decision.high
  if math.isnan(low):
    low, high = overall.test['ci_low'], overall.test['ci_high']
    if overall.both is not None:
      low, high = overall.both.low, overall.both.high
  return f'95 % interval {points(low)} to {points(high)}'


def unknown_why(decision: Decision, plan: Plan) -> list[str]:
  """Why nothing is known yet, and what it would take, a sentence each."""
  found = []
  if not decision.images:
    found.append(
      'The answers to single test images are not at hand, so that what the '
      'choice of test images adds is not known, and nothing is called sure; '
      f'over seeds alone it would be "{decision.alone}".'
    )
  if decision.seeds < FIRST_LOOK:
    found.append(f'The first look is after {FIRST_LOOK} seeds.')
  if decision.fragile:
    found.append(
      'Two test images of one cell, answered otherwise, would change the '
      'verdict.'
    )
  if decision.more:
    total = decision.seeds + decision.more
    text = (
      f'About {_counted(decision.more, "more seed")} would tell (power '
      f'{POWER:g}, if the difference is {points(decision.mean)} points and '
      f'seeds spread by {_size(decision.spread)})'
    )
    if total > plan.max_seeds:
      text += (
        f': more than the {plan.max_seeds} that were planned (study.max_seeds '
        'of a new study)'
      )
    found.append(f'{text}.')
  # Of a fragile one the number that would do was not found; some may.
  elif (
    decision.images and decision.seeds >= FIRST_LOOK and not decision.fragile
  ):
    what, more = 'the choice of these test images', 'test images'
    if decision.folds:
      what, more = 'that training sets of folds share their images', 'images'
    found.append(
      f'No number of seeds would tell: {what} alone leaves '
      f'{_size(decision.floor)} points to either side; it takes more {more}.'
    )
  return found


def plan_of(plan: Plan) -> list[str]:
  """What was stated before the runs, a sentence each."""
  found = [
    'The question: is the mean difference in test accuracy, each data set '
    'weighing the same, above or below 0 (two-sided 5 %), or within '
    f'{_size(plan.margin)} points of it (two one-sided tests of 5 %); looked '
    f'at after every seed from {FIRST_LOOK} to {plan.max_seeds}. All else is '
    'secondary.'
  ]
  if plan.after is None:
    found[0] += ' Nothing was stated before the runs: these are the defaults.'
  elif plan.after:
    found[0] += (
      f' It was stated when {_counted(plan.after, "run")} had finished.'
    )
  else:
    found[0] += ' It was stated before the first run.'
  if plan.words:
    stated = '; '.join(f'{what}: {value}' for what, value in plan.words)
    found.append(f'Stated with it: {stated}.')
  return found


def _counted(count: int, noun: str) -> str:
  return f'{count:,} {noun}{"s" * (count != 1)}'


def _size(value: float) -> str:
  """A share as points, without a sign."""
  return f'{100 * value:.2f}'


def _one_seed(
  overall: Effect, alone: Sequence[Effect], name: str, base: str
) -> str:
  images = alone[0].images if len(alone) == 1 else None
  if images is None or images.mcnemar_p is None:
    text = f'Not yet known: one seed. With it {_means(overall, name, base)}'
  else:
    apart = is_apart_over_images(images.low, images.high, images.mcnemar_p)
    text = (
      f'Not yet known: one seed. This {name} model got '
      f'{percent(overall.x.mean())} of the {images.count:,} test images right '
      f'and this {base} model {percent(overall.y.mean())}, a difference of '
      f'{points(overall.test["mean_difference"])} points (95 % interval over '
      f'images {points(images.low)} to {points(images.high)}, McNemar p = '
      f'{images.mcnemar_p:.2g}), which is {"" if apart else "no "}more than '
      'the choice of test images explains'
    )
  return f'{text}; whether the method helps is seen only over several seeds.'


def _means(overall: Effect, name: str, base: str) -> str:
  over = f'over {_places(overall)} (data set and train size)'
  if len(overall.places) == 1:
    over = f'on {overall.places[0]}'
  return (
    f'the mean test accuracy was {percent(overall.x.mean())} for {name} and '
    f'{percent(overall.y.mean())} for {base}, a difference of '
    f'{points(overall.test["mean_difference"])} points {over}'
  )


def what_can_be_seen(overall: Effect, alone: Sequence[Effect]) -> list[str]:
  """What so few seeds cannot decide at places alone, whatever the numbers."""
  count = len(overall.seeds)
  floors = statistics.holm([effect.test['smallest_p'] for effect in alone])
  if count < 2 or min(floors) < ALPHA:
    return []
  return [
    f'With {count} seeds no place alone can be decided: corrected for '
    f'{_counted(len(alone), "place")} no exact p gets below {min(floors):.3g}, '
    f'whatever the numbers; {_seeds_needed(len(alone))} seeds are the least. '
    'The answer over all places is another test.'
  ]


def _seeds_needed(tests: int) -> int:
  """The least seeds with which the smallest of so many p can be significant."""
  seeds = 1
  while tests * statistics.smallest_p(seeds) >= ALPHA:
    seeds += 1
  return seeds


def rival(
  against_reference: Effect, treatment_against: Effect, labels: Labels
) -> str:
  """How an arm without a teacher does, against both arms in question; or ''."""
  parts = []
  for effect in (against_reference, treatment_against):
    if len(effect.seeds) < 2:
      continue
    test = effect.test
    parts.append(
      f'{labels[effect.arm]} minus {labels[effect.reference]} '
      f'{points(test["mean_difference"])} points ({points(test["ci_low"])} to '
      f'{points(test["ci_high"])}; {_places(effect)}, {len(effect.seeds)} '
      f'seeds, p = {effect.p:.3g})'
    )
  return f'Without a teacher: {"; ".join(parts)}.' if parts else ''


def worth(found: Worth, labels: Labels) -> str:
  """What an arm is worth in labels, or why that is not known."""
  where = ', '.join(part for part in found.series if part)
  name, base = labels[found.arm], labels[found.reference]
  over, span = found.over_curve, 100 * (found.sizes[-1] / found.sizes[0] - 1)
  if math.isnan(over.percent):
    text = (
      f'On {where} the curves over train sizes share no accuracy, so that what '
      f'{name} is worth in labels, on average, cannot be said.'
    )
  else:
    which = 'seeds and test images' if found.images else 'seeds'
    bounds = 'unknown with these seeds'
    if not math.isnan(over.low + over.high) or math.isinf(over.high):
      bounds = f'{_percent(over.low, span)} to {_percent(over.high, span)}'
    text = (
      f'On {where} {name} is worth {over.percent:+.0f} % labels (95 % interval '
      f'over {which}: {bounds}): so many more would {base} need for the same '
      'accuracy, averaged over the accuracies that both reach.'
    )
  if found.outside:
    sizes = ', '.join(f'{size:,}' for size in found.outside)
    text += (
      f' At {sizes} training images its accuracy lies beyond the ends of '
      f"{base}'s curve, in which more labels never hurt, and how many labels "
      'that is cannot be said.'
    )
  return text


def _percent(value: float, span: float) -> str:
  """A bound as per cent; what the sizes do not span is said to be beyond."""
  if math.isinf(value):
    return f'beyond {span:+.0f} %, all that the sizes span'
  if value <= -100:
    least = -100 * span / (100 + span)
    return f'beyond {least:+.0f} %, all that the sizes span'
  return f'{value:+.0f} %'


def label_count(labels: float, sizes: Sequence[int]) -> str:
  """Labels that a reference needs; beyond what was tried where it is so."""
  if labels > sizes[-1]:
    return f'more than {sizes[-1]:,}, the largest tried'
  if labels < sizes[0]:
    return f'fewer than {sizes[0]:,}, the smallest tried'
  return f'{labels:,.0f}'


def label_percent(one: Needed, sizes: Sequence[int]) -> str:
  """The same as per cent more than the arm has, 'at least' beyond the sizes."""
  least, most = (100 * (sizes[end] / one.size - 1) for end in (-1, 0))
  if one.labels > sizes[-1]:
    return f'more than {least:+.0f} %'
  if one.labels < sizes[0]:
    return f'less than {most:+.0f} %'
  return f'{100 * (one.labels / one.size - 1):+.0f} %'


def made(counted: Sequence[tuple[int, Row]]) -> list[str]:
  """By what the runs of an answer were made, and of which it is not known.

  Args:
    counted: (seed, row) of the runs.
  """
  found: dict[str, set[int]] = {}
  unknown = 0
  for seed, row in counted:
    by = row.get('made')
    if by is None:
      unknown += 1
    else:
      found.setdefault(_made_by(by), set()).add(seed)
  said = []
  if len(found) == 1 and not unknown:
    said.append(f'Every run was made by {next(iter(found))}.')
  elif found:
    ways = '; '.join(
      f'{by} (seeds {", ".join(map(str, sorted(seeds)))})'
      for by, seeds in found.items()
    )
    said.append(f'The runs were made in {_counted(len(found), "way")}: {ways}.')
  if unknown:
    said.append(
      f'By which commit, versions and cores {_counted(unknown, "run")} of '
      f'{len(counted)} were made is not recorded.'
    )
  return said


def _made_by(by: Mapping[str, Any]) -> str:
  versions = ', '.join(f'{k} {v}' for k, v in (by['versions'] or {}).items())
  device = f'{by["device"]} {by.get("processor", "")}'.strip()
  return (
    f'commit {by["commit"] or "unknown"}, {device}, '
    f'{_counted(by["cores"], "core")}, {versions}'
  )


def _places(effect: Effect) -> str:
  count = len(effect.places)
  return f'{count} place{"s" * (count != 1)}'


def percent(value: float) -> str:
  """A share as per cent."""
  return f'{100 * value:.1f} %'


def points(value: float) -> str:
  """A difference of shares as signed percentage points."""
  return f'{100 * value:+.2f}'
