"""The paired permutation test on the mean, without adding up every pattern.

Up to MAX_EXACT_PAIRS differences all 2^k patterns of signs count: sums of the
one half of the differences are looked up among those of the other (Horowitz and
Sahni 1974). Beyond, the signs are drawn once for each number of differences and
kept as bits; eight of them at a time name one of 256 sums.
"""

import functools

import numpy as np

# Up to here all 2^k sign patterns are counted.
MAX_EXACT_PAIRS = 20
# Sums below this share of what is added up are rounding.
ROUNDING = 1e-12
# Signs that are drawn at once.
_AT_ONCE = 2**20


def p_value(difference: np.ndarray, seed: int, num_flips: int) -> float:
  """Two-sided p of differences, float64 [k], k >= 1.

  Args:
    difference: as statistics.paired_differences gives them.
    seed: of signs that are drawn.
    num_flips: that are drawn beyond MAX_EXACT_PAIRS differences.
  """
  observed = abs(difference.sum()) * (1 - ROUNDING)
  if len(difference) <= MAX_EXACT_PAIRS:
    # Equal sums that were added up in another order differ by rounding.
    return _exact(difference, observed - ROUNDING * np.abs(difference).sum())
  sums = _sums_of_drawn(difference, seed, num_flips)
  extreme = 1 + int((np.abs(sums) >= observed).sum())
  return float(extreme / (num_flips + 1))


def largest_p(
  difference: np.ndarray, move: float, seed: int, num_flips: int
) -> float:
  """Largest `p_value` with any one of the differences moved by `move`."""
  count = len(difference)
  if count <= MAX_EXACT_PAIRS:
    moved = difference + move * np.eye(count)
    return max(p_value(one, seed, num_flips) for one in moved)
  # The sum is the same whichever is moved; a flipped sum by its sign.
  observed = abs(difference.sum() + move) * (1 - ROUNDING)
  sums = _sums_of_drawn(difference, seed, num_flips)
  kept, flipped = (np.abs(sums + way) >= observed for way in (move, -move))
  differ = np.flatnonzero(kept != flipped)
  bits = _drawn(count, seed, num_flips)[:, differ]
  bits = np.unpackbits(bits, axis=0, count=count).astype(np.int64)
  counts = flipped.sum() + bits @ np.where(kept[differ], 1, -1)
  return float((1 + int(counts.max())) / (num_flips + 1))


def _exact(difference: np.ndarray, least: float) -> float:
  """Share of all patterns whose sum is at least so far from 0."""
  if least <= 0:
    return 1.0
  half = len(difference) // 2
  own = _all_sums(difference[:half])
  others = np.sort(_all_sums(difference[half:]))
  above = len(others) - np.searchsorted(others, least - own)
  # Every sum is there with the other sign too.
  return float(2 * int(above.sum()) / 2 ** len(difference))


def _all_sums(difference: np.ndarray) -> np.ndarray:
  sums = np.zeros(1)
  for value in difference:
    sums = np.concatenate([sums + value, sums - value])
  return sums


def _sums_of_drawn(
  difference: np.ndarray, seed: int, num_flips: int
) -> np.ndarray:
  """Sums of the differences with the signs that are drawn, [num_flips]."""
  drawn = _drawn(len(difference), seed, num_flips)
  padded = np.zeros(8 * len(drawn))
  padded[: len(difference)] = difference
  patterns = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
  tables = padded.reshape(-1, 8) @ (2.0 * patterns.T - 1)
  sums = np.zeros(num_flips)
  for table, bits in zip(tables, drawn, strict=True):
    sums += table[bits]
  return sums


# A page asks for those of few numbers of seeds, again and again.
@functools.lru_cache(maxsize=4)
def _drawn(count: int, seed: int, num_flips: int) -> np.ndarray:
  """Signs as bits, 1 for +, uint8 [ceil(count / 8), num_flips], read-only."""
  rng = np.random.default_rng(seed)
  packed = np.empty((-(-count // 8), num_flips), np.uint8)
  rows = max(1, _AT_ONCE // count)
  for start in range(0, num_flips, rows):
    stop = min(start + rows, num_flips)
    # Drawn together they are the numbers that one by one would be.
    signs = rng.integers(0, 2, (stop - start, count))
    packed[:, start:stop] = np.packbits(signs.astype(bool), axis=1).T
  packed.flags.writeable = False
  return packed
