import math
import types
import warnings

import numpy as np
import pytest
from scipy import stats

from tests.evaluation.golden import ARMS, ARRAYS, GOLDEN, SETS
from tlkd_jax.evaluation import metrics, sign_flips, statistics

SEEDS = GOLDEN['seeds']
TL, KD = SEEDS['tl'], SEEDS['kd']


def _friedman(values):
  result = statistics.friedman_test(values)
  return [result['statistic'], result['p']]


def _mean_std(values):
  result = statistics.mean_interval(values)
  return [result['mean'], result['std']]


def _interval(result):
  return [result['low'], result['high']]


SEED_VALUES = {
  'scipy/ttest_rel(kd,tl)': statistics.paired_t_test(KD, TL),
  'scipy/ttest_rel_ci95': _interval(
    statistics.mean_interval(statistics.paired_differences(KD, TL))
  ),
  'scipy/wilcoxon_exact': statistics.wilcoxon_test(KD, TL),
  'scipy/permutation_test_paired_exact': statistics.sign_flip_test(KD, TL),
  'ref/cohen_dz': statistics.cohen_dz(KD, TL),
  'mean_std_ddof1_tl': _mean_std(TL),
  'mean_std_ddof1_kd': _mean_std(KD),
  't95_ci_mean_kd': _interval(statistics.mean_interval(KD)),
  'statsmodels/holm': statistics.holm(SEEDS['multipletests_in']),
  'scipy/friedman': _friedman(SEEDS['friedman_in(datasets x methods)']),
  'scipy/rankdata_mean(higher better=rank1)': statistics.friedman_test(
    SEEDS['friedman_in(datasets x methods)']
  )['mean_ranks'],
}


@pytest.mark.parametrize('key', sorted(SEED_VALUES))
def test_golden_seeds(key):
  np.testing.assert_allclose(SEED_VALUES[key], SEEDS[key], rtol=1e-6)


@pytest.mark.parametrize('name', SETS)
def test_golden_per_example_tests(name):
  golden = GOLDEN[name]['pair']
  labels = ARRAYS[f'{name}/labels']
  tl, kd = (ARRAYS[f'{name}/{arm}_logits'] for arm in ('tl', 'kd'))
  nll = [metrics.nll_per_example(logits, labels) for logits in (kd, tl)]
  # The stored statistic has the sign of nll_tl - nll_kd, whatever its key says:
  # it is positive where the stored mean NLL of kd is the smaller one.
  np.testing.assert_allclose(
    statistics.paired_t_test(*nll[::-1]),
    golden['scipy/ttest_1samp(nll_kd-nll_tl)'],
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    statistics.wilcoxon_test(*nll),
    golden['scipy/wilcoxon(nll_kd,nll_tl per example)'],
    rtol=1e-6,
  )
  brier = [metrics.brier_per_example(logits, labels) for logits in (kd, tl)]
  expected = golden['scipy/ttest_rel_brier(kd,tl)']
  if expected is not None:
    np.testing.assert_allclose(
      statistics.paired_t_test(*brier), expected, rtol=1e-6
    )
  right = [np.argmax(logits, axis=1) == labels for logits in (kd, tl)]
  interval = statistics.bootstrap_mean_interval(
    right[0].astype(float) - right[1], seed=7
  )
  key = 'scipy/paired_bootstrap_BCa95(rng 7; tol 0.005)'
  np.testing.assert_allclose(interval, golden[key], rtol=0, atol=5e-3)


@pytest.mark.parametrize(('name', 'arm'), ARMS)
def test_golden_proportion_intervals(name, arm):
  labels = ARRAYS[f'{name}/labels']
  logits = ARRAYS[f'{name}/{arm}_logits']
  hits = int((logits.argmax(axis=1) == labels).sum())
  for method, key in (
    ('wilson', 'statsmodels/wilson95_top1'),
    ('exact', 'statsmodels/clopper_pearson95_top1'),
  ):
    np.testing.assert_allclose(
      statistics.proportion_interval(hits, len(labels), method),
      GOLDEN[name][arm][key],
      rtol=1e-6,
    )


def test_sign_flips_against_enumeration_and_sampling():
  rng = np.random.default_rng(0)
  x, y = rng.normal(0.3, 1, 7), rng.normal(0, 1, 7)
  expected = stats.permutation_test(
    (x - y,),
    np.mean,
    permutation_type='samples',
    n_resamples=np.inf,
    vectorized=True,
  ).pvalue
  assert statistics.sign_flip_test(x, y) == pytest.approx(expected)
  x, y = rng.normal(0.4, 1, 24), np.zeros(24)
  sampled = statistics.sign_flip_test(x, y, num_flips=20_000)
  _, p_t = statistics.paired_t_test(x, y)
  assert 0 < sampled == pytest.approx(p_t, abs=0.02)


def test_equal_sums_count_as_ties():
  # 0.1 + 0.2 - 0.3 is 5e-17, not 0: only rounding tells patterns apart.
  assert statistics.sign_flip_test([0.1, 0.2, -0.3], np.zeros(3)) == 1.0


@pytest.mark.parametrize('pairs', [1, 2, 5, 6, 10])
def test_smallest_p_is_reached_by_one_sided_differences(pairs):
  x = 1 + np.arange(pairs) / 100
  p = statistics.sign_flip_test(x, np.zeros(pairs))
  assert p == statistics.smallest_p(pairs)


def test_five_pairs_cannot_be_below_their_least_p():
  zeros = np.zeros(6)
  gains = np.array([0.01, 0.02, 0.015, 0.03, 0.01, 0.02])
  five = statistics.compare_paired(gains[:5], zeros[:5])
  assert five['p_t'] < 0.02
  assert five['smallest_p'] == 0.0625 == five['p_sign_flip']


def test_compare_paired_values():
  result = statistics.compare_paired(KD, TL)
  assert result['pairs'] == 5
  for key, golden in (
    ('t', SEEDS['scipy/ttest_rel(kd,tl)'][0]),
    ('p_t', SEEDS['scipy/ttest_rel(kd,tl)'][1]),
    ('ci_low', SEEDS['scipy/ttest_rel_ci95'][0]),
    ('p_wilcoxon', SEEDS['scipy/wilcoxon_exact'][1]),
    ('cohen_dz', SEEDS['ref/cohen_dz']),
  ):
    np.testing.assert_allclose(result[key], golden, rtol=1e-6)


def test_nan_pairs_are_left_out():
  x, y = [0.5, math.nan, 0.7, 0.6], [0.4, 0.3, 0.5, math.nan]
  result = statistics.compare_paired(x, y)
  assert result['pairs'] == 2
  assert result['mean_difference'] == pytest.approx(0.15)
  empty = statistics.compare_paired([math.nan], [1.0])
  assert empty['pairs'] == 0
  assert math.isnan(empty['p_sign_flip'])


@pytest.mark.parametrize('shift', [0.0, 0.1])
def test_equal_differences(shift):
  y = np.array([0.7, 0.8, 0.9, 0.65])
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    result = statistics.compare_paired(y + shift, y)
  for key in ('t', 'p_t', 'cohen_dz'):
    assert math.isnan(result[key])
  assert result['ci_low'] == result['ci_high'] == pytest.approx(shift)
  assert result['p_sign_flip'] == (0.125 if shift else 1.0)


def test_one_pair():
  result = statistics.compare_paired([0.8], [0.7])
  assert result['mean_difference'] == pytest.approx(0.1)
  assert result['p_sign_flip'] == 1.0 == result['smallest_p']
  assert math.isnan(result['ci_low']) and math.isnan(result['t'])
  assert math.isnan(statistics.bootstrap_mean_interval([0.1])[0])


def test_bootstrap_mean_interval():
  values = np.random.default_rng(1).exponential(size=40)
  for method in ('percentile', 'BCa'):
    low, high = statistics.bootstrap_mean_interval(values, method, seed=3)
    assert (low, high) == statistics.bootstrap_mean_interval(
      values, method, seed=3
    )
    t = statistics.mean_interval(values)
    assert low < t['mean'] < high
    assert abs(low - t['low']) < 0.15 and abs(high - t['high']) < 0.2
  assert statistics.bootstrap_mean_interval([2.0, 2.0]) == (2.0, 2.0)


def test_holm_keeps_order_and_nan():
  adjusted = statistics.holm([0.04, math.nan, 0.01])
  np.testing.assert_allclose(adjusted, [0.04, math.nan, 0.02])
  assert statistics.holm([]).size == 0


def test_friedman_edge_cases():
  tied = statistics.friedman_test(np.ones((4, 3)))
  assert math.isnan(tied['p'])
  np.testing.assert_array_equal(tied['mean_ranks'], [2, 2, 2])
  with pytest.raises(ValueError, match='arms >= 3'):
    statistics.friedman_test(np.ones((4, 2)))


def test_unequal_lengths_are_named():
  with pytest.raises(ValueError, match='one length'):
    statistics.compare_paired([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
  'difference',
  [
    [1, 1, -1],
    [2, 1, 1, -1, 3],
    [0, 1, 2, -3],
    [0, 0, -4],
    [1, 1, 1, 1, 1, 1],
    [5, -5, 5, -5],
    [0.5, 0.25, 0.25, -0.25, 0, 3, -0.5],
  ],
)
def test_signed_ranks_with_ties_are_those_of_all_permutations(difference):
  expected = stats.wilcoxon(np.array(difference, np.float64))
  found = statistics.wilcoxon_test(difference, np.zeros(len(difference)))
  np.testing.assert_allclose(found, tuple(expected), rtol=1e-12)


@pytest.mark.parametrize(('count', 'asked'), [(13, 0), (14, 1)])
def test_ties_are_not_permuted_one_by_one(monkeypatch, count, asked):
  calls = []
  approximate = types.SimpleNamespace(statistic=1.0, pvalue=0.5)
  monkeypatch.setattr(
    stats, 'wilcoxon', lambda *_: calls.append(1) or approximate
  )
  difference = np.array([1.0, -1.0, *range(2, count)])
  _, p = statistics.wilcoxon_test(difference, np.zeros(count))
  assert len(calls) == asked and (asked or p < 0.001)


@pytest.mark.parametrize('at_once', [2**20, 100, 1])
def test_random_signs_are_those_that_one_by_one_would_be(monkeypatch, at_once):
  monkeypatch.setattr(sign_flips, '_AT_ONCE', at_once)
  sign_flips._drawn.cache_clear()
  difference = np.random.default_rng(5).normal(0.3, 1.0, 23)
  rng, extreme = np.random.default_rng(4), 1
  for _ in range(99):
    signs = rng.integers(0, 2, 23) * 2 - 1
    extreme += abs(signs @ difference) >= abs(difference.sum())
  found = statistics.sign_flip_test(difference, np.zeros(23), 4, num_flips=99)
  assert found == extreme / 100 and 1 < extreme < 100
