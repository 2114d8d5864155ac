"""Which runs a page compares."""

import pytest

from tests.report import synthetic
from tlkd_jax.report import pairing, runs


def pair(folder):
  found, notes = runs.collect([folder])
  return pairing.pair(found, notes), notes


def test_runs_of_two_starts_are_no_pair(tmp_path):
  """A student that has learned before is another one; that is said."""
  for seed in (0, 1):
    for arm in ('tl', 'kd'):
      changes = {'student__checkpoint': f'runs/{seed}'} if arm == 'kd' else {}
      synthetic.write_run(tmp_path / f'{arm}{seed}', arm, seed, **changes)
  paired, notes = pair(tmp_path)
  assert not paired.pairs
  assert sum('has no partner' in note for note in notes) == 2
  # Beside a pair it stands with what tells it from the pair's TL.
  synthetic.write_run(tmp_path / 'same', 'tl', student__checkpoint='runs/tl')
  paired, notes = pair(tmp_path)
  ((one,), labels) = paired.pairs, {row['label'] for row in paired.rows}
  assert one.tl.path.name == 'same'
  assert 'TL, student.checkpoint=None' in labels


@pytest.mark.parametrize('places', [('a/probe', 'a/probe'), ('a/tl', 'b/tl')])
def test_where_the_start_lies_parts_no_pair(places, tmp_path):
  for arm, place in zip(('tl', 'kd'), places, strict=True):
    synthetic.write_run(tmp_path / arm, arm, student__checkpoint=place)
  paired, notes = pair(tmp_path)
  assert len(paired.pairs) == 1 and not notes
