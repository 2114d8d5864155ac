import math

import numpy as np
import pytest

from tests.evaluation.golden import ARRAYS
from tlkd_jax.evaluation import bootstrap, metrics


@pytest.mark.parametrize(
  'name', ['overconf_n500_c10', 'imbal_n300_c3', 'edge_n40_c4']
)
def test_counts_follow_the_draws_of_the_fixture(name):
  drawn = ARRAYS[f'{name}/boot_idx_first5']
  n = drawn.shape[1]
  counts = bootstrap.resample_counts(n, 5, 123)
  for row, draws in zip(counts, drawn, strict=True):
    np.testing.assert_array_equal(row, np.bincount(draws, minlength=n))


def _split(n, k, tied, seed):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, k, n)
  logits = rng.normal(size=(n, k)) + np.eye(k)[labels]
  return (np.round(logits) if tied else logits), labels


CASES = {
  'plain': _split(120, 6, False, 0),
  'ties': _split(60, 7, True, 1),
  'absent_classes_and_fewer_than_five': _split(9, 4, False, 2),
  'constant': (np.zeros((8, 5)), np.arange(8) % 5),
  'one_example': (np.array([[0.5, 1.0]]), np.array([0])),
  'two_classes': _split(40, 2, True, 3),
  'huge': (1e4 * _split(30, 5, False, 4)[0], _split(30, 5, False, 4)[1]),
  'all_right': (np.eye(3)[np.arange(9) % 3], np.arange(9) % 3),
}


@pytest.mark.parametrize('case', CASES)
def test_equals_the_metric_on_the_repeated_examples(case):
  logits, labels = CASES[case]
  counts = bootstrap.resample_counts(len(labels), 12, 5)
  got = bootstrap.bootstrap_metrics(logits, labels, counts)
  assert set(got) == set(metrics.METRICS)
  for r, row in enumerate(counts):
    drawn = np.repeat(np.arange(len(labels)), row)
    expected = metrics.compute_metrics(logits[drawn], labels[drawn])
    for name, value in expected.items():
      np.testing.assert_allclose(
        got[name][r], value, rtol=1e-9, atol=1e-12, err_msg=name
      )


def test_blocks_do_not_change_the_result(monkeypatch):
  logits, labels = CASES['plain']
  counts = bootstrap.resample_counts(len(labels), 10, 0)
  whole = bootstrap.bootstrap_metrics(logits, labels, counts)
  monkeypatch.setattr(bootstrap, '_BLOCK', 3)
  blocks = bootstrap.bootstrap_metrics(logits, labels, counts)
  for name, values in whole.items():
    np.testing.assert_allclose(blocks[name], values, rtol=1e-12, atol=1e-14)


def test_every_metric_has_a_vectorised_version():
  assert set(bootstrap.GROUPS) == set(metrics.METRICS)


def test_a_metric_without_one_is_recomputed(monkeypatch):
  def first_logit(logits, labels):
    del labels
    return float(logits[:, 0].mean())

  monkeypatch.setitem(metrics.METRICS, 'first_logit', first_logit)
  logits, labels = CASES['plain']
  counts = bootstrap.resample_counts(len(labels), 6, 0)
  got = bootstrap.bootstrap_metrics(logits, labels, counts, ['first_logit'])
  expected = counts @ logits[:, 0] / len(labels)
  np.testing.assert_allclose(got['first_logit'], expected)


def test_only_what_is_asked_for():
  logits, labels = CASES['plain']
  counts = bootstrap.resample_counts(len(labels), 4, 0)
  got = bootstrap.bootstrap_metrics(logits, labels, counts, ['nll', 'mce'])
  assert list(got) == ['nll', 'mce']
  assert all(math.isfinite(v) for v in got['nll'])


def test_mistakes_are_named():
  logits, labels = CASES['plain']
  counts = bootstrap.resample_counts(5, 2, 0)
  with pytest.raises(ValueError, match='resamples, 120'):
    bootstrap.bootstrap_metrics(logits, labels, counts)
  with pytest.raises(
    ValueError, match="unknown metric 'macro_f2': did you mean .*macro_f1"
  ):
    bootstrap.bootstrap_metrics(logits, labels, counts, ['macro_f2'])
