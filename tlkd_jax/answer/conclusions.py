"""Everything that is asked about a treatment, answered at once."""

import dataclasses
from collections.abc import Sequence

from tlkd_jax.answer import effects, folded, hits, words
from tlkd_jax.answer import rows as runs
from tlkd_jax.answer import worth as worths
from tlkd_jax.answer.decision import Decision, decide_primary
from tlkd_jax.answer.effects import Effect
from tlkd_jax.answer.plan import Plan
from tlkd_jax.answer.rows import Place, Row
from tlkd_jax.answer.verdicts import decide
from tlkd_jax.answer.worth import Worth
from tlkd_jax.evaluation import statistics
from tlkd_jax.evaluation.metrics import METRICS, SCALED
from tlkd_jax.evaluation.sequential import FIRST_LOOK


@dataclasses.dataclass(frozen=True)
class Rival:
  """An arm without a teacher, in accuracy over all places.

  Attributes:
    against_reference: the rival minus the reference.
    treatment_against: the treatment minus the rival.
  """

  against_reference: Effect
  treatment_against: Effect


@dataclasses.dataclass(frozen=True)
class Conclusion:
  """The answer about one treatment.

  Attributes:
    treatment: the arm in question.
    reference: the arm that it is compared with.
    labels: arm -> label.
    sentence: the answer.
    remarks: sentences that belong to it: what so few seeds cannot decide, the
      rivals, what the treatment is worth in labels, pairs left out.
    plan: how the question is judged.
    decision: the verdict on it.
    looks: the decision after each number of seeds, from the first look on.
    overall: in accuracy, over all places.
    secondary: in the other metrics, over all places; p by Holm over them.
    pooled: in every metric that all runs have, over all places, by name; what
      temperature scaling leaves is 'NAME_scaled'. Nothing is corrected.
    per_place: metric -> the effect at each place, 'top1' first.
    rivals: by name.
    worth: on each data set with several sizes.
  """

  treatment: str
  reference: str
  labels: dict[str, str]
  sentence: str
  remarks: list[str]
  plan: Plan
  decision: Decision
  looks: list[Decision]
  overall: Effect
  secondary: list[Effect]
  pooled: dict[str, Effect]
  per_place: dict[str, list[Effect]]
  rivals: list[Rival]
  worth: list[Worth]

  @property
  def by_place(self) -> dict[Place, list[Effect]]:
    """Place -> its effects, one a metric."""
    found: dict[Place, list[Effect]] = {}
    for effects_of_metric in self.per_place.values():
      for effect in effects_of_metric:
        found.setdefault(effect.places[0], []).append(effect)
    return found


def draw(
  rows: Sequence[Row],
  treatment: str,
  reference: str,
  metrics: Sequence[str],
  plan: Plan | None = None,
) -> Conclusion:
  """Answers from rows whether a treatment helped.

  Args:
    rows: any arms, places and seeds.
    treatment: the arm in question.
    reference: the arm that it is compared with.
    metrics: of test; accuracy is always one.
    plan: how the question is judged; None is the package's own.
  """
  plan, rows = plan or Plan(), runs.indexed(rows)
  names = dict.fromkeys(('top1', *metrics))
  per_place = {
    name: effects.per_place(rows, treatment, reference, name) for name in names
  }
  overall = effects.overall(rows, treatment, reference, 'top1', plan.places)
  looks = decisions(rows, treatment, reference, plan)
  decision = looks[-1]
  alone = per_place['top1']
  labels = {a: a for a in (treatment, reference)} | runs.labels(rows)
  rivals = _rivals(rows, treatment, reference)
  worth = worths.in_labels(rows, treatment, reference)
  remarks = [
    *words.what_can_be_seen(overall, alone),
    *words.plan_of(plan),
    *(
      words.rival(one.against_reference, one.treatment_against, labels)
      for one in rivals
    ),
    *(words.worth(one, labels) for one in worth),
    *(
      f'{labels[treatment]} and {labels[reference]} of seed {seed} on {place} '
      f'{why} and were left out.'
      for (place, seed), why in runs.mismatched(
        rows, treatment, reference
      ).items()
    ),
    *folded.remarks(_pairs(rows, treatment, reference, plan)),
    *words.made([(row['seed'], row) for row in runs.chosen(rows)]),
  ]
  return Conclusion(
    treatment=treatment,
    reference=reference,
    labels=labels,
    sentence=words.sentence(overall, decision, plan, alone, labels),
    remarks=[text for text in remarks if text],
    plan=plan,
    decision=decision,
    looks=[one for one in looks if one.seeds >= FIRST_LOOK],
    overall=overall,
    secondary=_secondary(rows, treatment, reference, [*names][1:], plan),
    pooled=_pooled(rows, treatment, reference, plan),
    per_place=per_place,
    rivals=rivals,
    worth=worth,
  )


def decisions(
  rows: Sequence[Row], treatment: str, reference: str, plan: Plan
) -> list[Decision]:
  """The decision after the first look's seeds, and after each one more.

  The last is that of all seeds, or of as many as the plan has; the only one
  where they are fewer than a first look takes.
  """
  pairs, _ = effects.common_pairs(rows, treatment, reference, plan.places)
  effect = effects.overall(rows, treatment, reference, 'top1', plan.places)
  difference = effect.x - effect.y
  most = min(len(effect.seeds), plan.max_seeds)
  return [
    decide_primary(
      difference[:count],
      hits.over_images(pairs, effect.seeds[:count]),
      plan,
    )
    for count in range(min(FIRST_LOOK, most), most + 1)
  ]


def _pairs(
  rows: Sequence[Row], treatment: str, reference: str, plan: Plan
) -> list[tuple[int, Row]]:
  """(seed, row) of all that counts in the answer."""
  pairs, _ = effects.common_pairs(rows, treatment, reference, plan.places)
  return [
    (seed, row)
    for by_seed in pairs.values()
    for seed, both in by_seed.items()
    for row in both
  ]


def _secondary(
  rows: Sequence[Row],
  treatment: str,
  reference: str,
  metrics: Sequence[str],
  plan: Plan,
) -> list[Effect]:
  found = [
    effects.overall(rows, treatment, reference, name, plan.places)
    for name in metrics
  ]
  corrected = statistics.holm([one.p for one in found])
  return [
    dataclasses.replace(
      one, p=float(p), verdict=decide(one.test, p, one.metric)
    )
    for one, p in zip(found, corrected, strict=True)
  ]


def _pooled(
  rows: Sequence[Row], treatment: str, reference: str, plan: Plan
) -> dict[str, Effect]:
  tests = [row['test'] for _, row in _pairs(rows, treatment, reference, plan)]
  every = [*METRICS, *(name + SCALED for name in METRICS)]
  return {
    name: effects.overall(rows, treatment, reference, name, plan.places)
    for name in every
    if tests and all(name in test for test in tests)
  }


def _rivals(rows: Sequence[Row], treatment: str, reference: str) -> list[Rival]:
  kinds = {row['arm']: row['kind'] for row in rows}
  return [
    Rival(
      effects.overall(rows, arm, reference, 'top1'),
      effects.overall(rows, treatment, arm, 'top1'),
    )
    for arm in runs.arms(rows, reference)
    if kinds[arm] == 'tl' and arm not in (reference, treatment)
  ]
