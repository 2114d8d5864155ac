"""Times in words, the same in every log."""

import pytest

from tlkd_jax.runtime.texts import duration


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [
    (0.4, '0 s'),
    (89, '89 s'),
    (90, '2 min'),
    (600, '10 min'),
    (3569, '59 min'),
    (3571, '1 h'),
    (9000, '2 h 30 min'),
    (7200 + 29, '2 h'),
    (100 * 3600 + 61, '100 h 1 min'),
  ],
)
def test_times_for_people(seconds, text):
  assert duration(seconds) == text
