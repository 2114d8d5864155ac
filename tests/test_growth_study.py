"""The made-up study of the growth benchmark holds together as a real one."""

import numpy as np
import pytest

from benchmarks import growth_study
from tlkd_jax.answer.rows import Row, unpack
from tlkd_jax.study.analysis import CellRow


@pytest.mark.parametrize(
  ('count', 'places', 'seeds'), [(130, 10, 2), (99, 5, 2)]
)
def test_cells_of_a_made_up_study(count, places, seeds):
  rows = growth_study.rows(count, places)
  cells = {(r['dataset'], r['size'], r['arm'], r['seed']) for r in rows}
  assert len(cells) == count and {cell[3] for cell in cells} == {*range(seeds)}
  assert len({cell[:2] for cell in cells}) == places
  # Nothing that a real row has is missing, or there besides.
  taught = next(row for row in rows if 'agreed' in row)
  assert {*taught} <= {*CellRow.__annotations__, *Row.__annotations__}
  for row in rows:
    right = unpack(row['hits']).right
    assert right.mean() == row['test']['top1']
    assert np.trace(row['confusion']) >= right.sum()
    before = row['reliability']['before']
    assert sum(before['count']) == len(right)
    assert sum(before['right']) == right.sum()
