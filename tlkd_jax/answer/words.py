"""Effects in sentences, with their numbers and their uncertainty."""

import math
from collections.abc import Mapping, Sequence

from tlkd_jax.answer.effects import Effect
from tlkd_jax.answer.verdicts import OPENINGS
from tlkd_jax.answer.worth import Worth
from tlkd_jax.evaluation import statistics
from tlkd_jax.evaluation.statistics import ALPHA

Labels = Mapping[str, str]


def sentence(overall: Effect, alone: Sequence[Effect], labels: Labels) -> str:
  """The answer.

  Args:
    overall: the effect on accuracy over all places.
    alone: that at each place.
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
    text = _several_seeds(overall, alone, name, base)
  if overall.left_out:
    missing = '; '.join(map(str, overall.left_out))
    text += f' With fewer pairs, and left out of the mean: {missing}.'
  return text


def _several_seeds(
  overall: Effect, alone: Sequence[Effect], name: str, base: str
) -> str:
  test = overall.test
  text = (
    f'{OPENINGS[overall.verdict]}: {_means(overall, name, base)}, 95 % '
    f'interval {points(test["ci_low"])} to {points(test["ci_high"])} over '
    f'{len(overall.seeds)} paired seeds; exact sign-flip p = {overall.p:.3g}, '
    f'with so many seeds it cannot be below {test["smallest_p"]:.3g}.'
  )
  if len(alone) > 1:
    found = [effect.verdict for effect in alone]
    counts = ', '.join(f'{kind} at {found.count(kind)}' for kind in OPENINGS)
    text += f' Each place alone, p corrected by Holm: {counts}.'
  return text


def _one_seed(
  overall: Effect, alone: Sequence[Effect], name: str, base: str
) -> str:
  images = alone[0].images if len(alone) == 1 else None
  if images is None or images.mcnemar_p is None:
    text = f'One seed: inconclusive. With it {_means(overall, name, base)}'
  else:
    apart = images.low > 0 or images.high < 0
    text = (
      f'One seed: inconclusive. This {name} model got '
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
  """What so few seeds cannot decide, whatever the numbers."""
  count, least = len(overall.seeds), overall.test['smallest_p']
  if count < 2:
    return []
  if least >= ALPHA:
    return [
      f'With {count} seeds no exact two-sided test gets below {least:.3g}, so '
      'that the verdict is "inconclusive" whatever the numbers; '
      f'{_seeds_needed(1)} seeds are the least.'
    ]
  floors = statistics.holm([effect.test['smallest_p'] for effect in alone])
  if min(floors) >= ALPHA:
    return [
      f'With {count} seeds no place alone can be decided: corrected for '
      f'{len(alone)} places no exact p gets below {min(floors):.3g}, whatever '
      f'the numbers; {_seeds_needed(len(alone))} seeds are the least. The '
      'answer over all places is one test.'
    ]
  return []


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


def worth(found: Worth) -> str:
  """'The teacher is worth x % more labels', or why that is not known."""
  where = ', '.join(part for part in found.series if part)
  if math.isnan(found.percent):
    return (
      f'On {where} the curves over train sizes share no accuracy, so that the '
      'teacher cannot be expressed in labels.'
    )
  bounds = 'unknown with these seeds'
  if not math.isnan(found.low + found.high):
    bounds = f'{found.low:+.0f} to {found.high:+.0f} %'
  text = (
    f'On {where} the teacher is worth {found.percent:+.0f} % labels (95 % '
    f'interval over seeds: {bounds}): so many more would plain fine-tuning '
    'need for the same accuracy, averaged over the accuracies that both reach.'
  )
  if found.outside:
    sizes = ', '.join(map(str, found.outside))
    text += (
      f' At {sizes} training images its accuracy lies outside of what plain '
      'fine-tuning reached at any size that was tried.'
    )
  return text


def _places(effect: Effect) -> str:
  count = len(effect.places)
  return f'{count} place{"s" * (count != 1)}'


def percent(value: float) -> str:
  """A share as per cent."""
  return f'{100 * value:.1f} %'


def points(value: float) -> str:
  """A difference of shares as signed percentage points."""
  return f'{100 * value:+.2f}'
