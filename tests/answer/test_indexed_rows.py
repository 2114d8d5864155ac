"""Rows that are found without a look at all of them say what others say."""

import numpy as np
import pytest

from tests.study.rows import paired, row
from tlkd_jax.answer import conclusions
from tlkd_jax.answer import rows as runs

GAINS = (0.03, 0.01, 0.02, 0.04, 0.02, 0.03)


def _rows():
  rows = paired(GAINS) + paired(GAINS[::-1], size=20, dataset='other')
  rows += paired(GAINS[:3], recipe='num_steps=9')
  rows += [
    row('tl', seed, 0.1, chosen=False, trial={'rate': 2}) for seed in range(3)
  ]
  order = np.random.default_rng(0).permutation(len(rows))
  return [rows[i] for i in order]


def test_every_question_has_the_same_answer():
  rows = _rows()
  found = runs.indexed(rows)
  assert runs.indexed(found) is found and list(found) == rows
  assert runs.places(found) == runs.places(rows)
  for place in [*runs.places(rows), runs.Place('nowhere', 10)]:
    for arm in ('tl', 'kd', 'teacher', 'nobody'):
      assert runs.all_at(found, place, arm) == runs.all_at(rows, place, arm)
      # In the same order too, which sums depend on.
      one, other = (runs.at(r, place, arm) for r in (found, rows))
      assert [*one.items()] == [*other.items()]
  assert len(runs.all_at(found, runs.Place('digits', 10), 'tl')) == 9


def test_no_answer_looks_at_all_rows_for_each_place_and_arm(monkeypatch):
  """What a look costs is told by how often a row is asked for its place."""
  asked, place_of = [], runs.place_of
  monkeypatch.setattr(
    runs, 'place_of', lambda row: asked.append(1) or place_of(row)
  )
  counts = []
  for places in (2, 8):
    rows = [r for n in range(places) for r in paired(GAINS, size=10 * (n + 1))]
    asked.clear()
    conclusions.draw(rows, 'kd', 'tl', ('nll',))
    counts.append(len(asked) / len(rows))
  assert counts[1] == pytest.approx(counts[0], rel=0.1)
