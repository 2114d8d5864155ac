import math

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from tests.evaluation.golden import ARMS, ARRAYS, GOLDEN
from tlkd_jax.evaluation import metrics, predictions, reliability, selective

# Fixture key -> (function of (logits, labels), absolute tolerance). Values of
# torchmetrics, gnosis and netcal carry float32 rounding.
FLOAT32 = 2e-6
REFERENCES = {
  f'sklearn/{name}': (metrics.METRICS[name], 0.0)
  for name in (
    'top1',
    'top5',
    'balanced_accuracy',
    'macro_precision',
    'macro_recall',
    'macro_f1',
    'weighted_precision',
    'weighted_recall',
    'weighted_f1',
    'cohen_kappa',
    'mcc',
  )
} | {
  'torchmetrics/macro_f1': (metrics.macro_f1, FLOAT32),
  'torchmetrics/macro_accuracy(recall)': (metrics.macro_recall, FLOAT32),
  'sklearn/auroc_ovr_macro': (metrics.macro_auroc, 0.0),
  'sklearn/average_precision_macro_present_classes': (
    metrics.macro_average_precision,
    0.0,
  ),
  'torchmetrics/average_precision_macro': (
    metrics.macro_average_precision,
    FLOAT32,
  ),
  'ref/nll_from_log_softmax': (metrics.nll, 0.0),
  'sklearn/brier_sum_over_classes(scale_by_half=False)': (metrics.brier, 0.0),
  'sklearn/misclassification_auroc(conf vs correct)': (
    metrics.misclassification_auroc,
    0.0,
  ),
  'scipy/entropy_mean_nats': (metrics.mean_entropy, 0.0),
  'ref/mean_confidence': (metrics.mean_confidence, 0.0),
  'ref/overconfidence=conf-acc': (metrics.overconfidence, 0.0),
  'ref/aurc_mean_of_risks(Geifman)': (selective.aurc, 0.0),
  'ref/eaurc': (selective.e_aurc, 0.0),
  'ref/risk_at_full_coverage': (
    lambda logits, labels: selective.risk_coverage_curve(logits, labels)[
      'risk'
    ][-1],
    0.0,
  ),
}
REFERENCES |= {
  f'sklearn/micro_{name}': (metrics.top1, 0.0)
  for name in ('precision', 'recall', 'f1')
} | {
  'sklearn/brier_half(scale_by_half=True)': (
    lambda logits, labels: metrics.brier(logits, labels) / 2,
    0.0,
  ),
  'ref/brier_mean_over_classes(mse)': (
    lambda logits, labels: metrics.brier(logits, labels) / logits.shape[1],
    0.0,
  ),
  'scipy/entropy_std': (
    lambda logits, labels: metrics.entropy_per_example(logits).std(),
    0.0,
  ),
}
for _coverage in (0.5, 0.8, 0.9):
  REFERENCES[f'ref/selective_acc@{_coverage}'] = (
    lambda logits, labels, c=_coverage: selective.accuracy_at_coverage(
      logits, labels, c
    ),
    0.0,
  )


def _binned(function, num_bins):
  return lambda logits, labels: function(logits, labels, num_bins)


for _bins in (10, 15):
  for _function, _keys in (
    (
      reliability.ece,
      {
        f'ref/ece_{_bins}[a,b)': 0.0,
        f'netcal/ece_{_bins}': 0.0,
        f'robustness_metrics/ece_even_{_bins}': 0.0,
        f'torchmetrics/ece_{_bins}': FLOAT32,
      },
    ),
    (
      reliability.ece_equal_mass,
      {f'robustness_metrics/ece_adaptive_{_bins}': 0.0},
    ),
    (
      reliability.ece_classwise,
      {
        f'ref/classwise_ece_{_bins}(mean over classes,[a,b))': 0.0,
        f'robustness_metrics/sce_classwise_even_{_bins}': 0.0,
      },
    ),
    (
      reliability.mce,
      {
        f'ref/mce_{_bins}[a,b)': 0.0,
        f'netcal/mce_{_bins}': 0.0,
        f'torchmetrics/mce_{_bins}': FLOAT32,
      },
    ),
    (
      reliability.rms_calibration_error,
      {
        f'ref/rmsce_{_bins}[a,b)': 0.0,
        f'robustness_metrics/rmsce_even_{_bins}': 0.0,
        f'torchmetrics/rmsce_{_bins}': FLOAT32,
      },
    ),
  ):
    for _key, _atol in _keys.items():
      REFERENCES[_key] = (_binned(_function, _bins), _atol)


@pytest.mark.parametrize(('name', 'arm'), ARMS)
@pytest.mark.parametrize('key', sorted(REFERENCES))
def test_golden(name, arm, key):
  function, atol = REFERENCES[key]
  expected = GOLDEN[name][arm][key]
  got = function(ARRAYS[f'{name}/{arm}_logits'], ARRAYS[f'{name}/labels'])
  if expected is not None:
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=atol)
  elif key == 'sklearn/top5':
    assert math.isnan(got)
  else:
    # Class 3 is absent from the labels: ours is the mean over the others.
    assert key == 'sklearn/auroc_ovr_macro' and name == 'edge_n40_c4'


# These two agree with ours except where sklearn clips probabilities, and where
# torchmetrics counts a class absent from the labels as 0.
@pytest.mark.parametrize(
  ('name', 'arm'), [a for a in ARMS if a[0] != 'edge_n40_c4']
)
def test_golden_without_extremes(name, arm):
  logits = ARRAYS[f'{name}/{arm}_logits']
  labels = ARRAYS[f'{name}/labels']
  golden = GOLDEN[name][arm]
  np.testing.assert_allclose(
    metrics.nll(logits, labels), golden['sklearn/nll'], rtol=1e-6
  )
  np.testing.assert_allclose(
    metrics.macro_auroc(logits, labels),
    golden['torchmetrics/auroc_ovr_macro'],
    rtol=0,
    atol=FLOAT32,
  )


@pytest.mark.parametrize(('name', 'arm'), ARMS)
def test_golden_arrays(name, arm):
  logits = ARRAYS[f'{name}/{arm}_logits']
  labels = ARRAYS[f'{name}/labels']
  prefix = f'{name}/{arm}/'
  confusion = metrics.confusion_matrix(logits, labels)
  np.testing.assert_array_equal(
    confusion, ARRAYS[prefix + 'confusion(rows=true)']
  )
  table = metrics.per_class_table(logits, labels)
  np.testing.assert_allclose(
    [table[c] for c in ('precision', 'recall', 'f1', 'support')],
    ARRAYS[prefix + 'per_class_prec_rec_f1_support'],
    rtol=1e-12,
  )
  np.testing.assert_allclose(
    metrics.entropy_per_example(logits),
    ARRAYS[prefix + 'entropy'],
    rtol=1e-6,
    atol=1e-7,
  )
  for bins in (10, 15):
    data = reliability.reliability_diagram(logits, labels, bins)
    expected = ARRAYS[prefix + f'reliability_{bins}_left(count,acc,conf)']
    np.testing.assert_array_equal(data['count'], expected[0])
    for row, column in ((1, 'accuracy'), (2, 'confidence')):
      assert (np.isnan(data[column]) == (data['count'] == 0)).all()
      np.testing.assert_allclose(
        np.nan_to_num(data[column]), expected[row], rtol=1e-9
      )


def test_golden_bin_edges():
  golden = GOLDEN['edgeprob_n48_c4']
  probs = ARRAYS['edgeprob_n48_c4/probs']
  hits = probs.argmax(1) == ARRAYS['edgeprob_n48_c4/labels']
  scores = probs.max(1)
  for bins in (4, 8, 10, 15):
    index = reliability.equal_width_bins(scores, bins)
    got = reliability.ece_of(scores, hits, index, bins)
    for key in (
      f'ref/ece_{bins}[a,b)',
      f'netcal/ece_{bins}',
      f'robustness_metrics/ece_even_{bins}',
    ):
      np.testing.assert_allclose(got, golden[key], rtol=1e-6)
    np.testing.assert_allclose(
      got, golden[f'torchmetrics/ece_{bins}'], rtol=0, atol=FLOAT32
    )
    data = reliability.reliability_of(scores, hits, bins)
    gap = np.nanmax(np.abs(data['accuracy'] - data['confidence']))
    for key in (f'ref/mce_{bins}[a,b)', f'netcal/mce_{bins}'):
      np.testing.assert_allclose(gap, golden[key], rtol=1e-6)


def test_golden_class_absent_from_the_labels():
  golden = GOLDEN['edgeprob_n48_c4']
  labels = ARRAYS['edgeprob_n48_c4/labels']
  # log(0) is replaced by a logit low enough for a probability of exactly 0.
  probs = ARRAYS['edgeprob_n48_c4/probs']
  logits = np.where(probs > 0, np.log(np.maximum(probs, 1e-300)), -1e4)
  for key, function in (
    (
      'sklearn/balanced_accuracy(ignores class absent from y_true)',
      metrics.balanced_accuracy,
    ),
    ('sklearn/macro_recall(labels=None)', metrics.macro_recall),
    ('sklearn/macro_f1(labels=None)', metrics.macro_f1),
  ):
    np.testing.assert_allclose(function(logits, labels), golden[key], rtol=1e-6)
  for key, function in (
    ('torchmetrics/macro_recall', metrics.macro_recall),
    ('torchmetrics/macro_f1', metrics.macro_f1),
  ):
    np.testing.assert_allclose(
      function(logits, labels), golden[key], rtol=0, atol=FLOAT32
    )
  # On the probabilities: a softmax of their logarithms would break ties.
  auroc = metrics.one_vs_rest_auroc(probs, labels)
  expected = golden['sklearn/auroc_per_present_class']
  np.testing.assert_allclose(auroc[:3], expected, rtol=1e-6)
  assert math.isnan(auroc[3])


def _random_split(rng, n, k, scale=2.0):
  labels = rng.integers(0, k, n)
  logits = rng.normal(size=(n, k)) + scale * np.eye(k)[labels]
  return logits.astype(np.float32), labels


def test_two_classes_against_sklearn():
  logits, labels = _random_split(np.random.default_rng(0), 200, 2)
  probs = predictions.softmax(logits)
  np.testing.assert_allclose(
    metrics.macro_auroc(logits, labels),
    sklearn_metrics.roc_auc_score(labels, probs[:, 1]),
    rtol=1e-12,
  )
  np.testing.assert_allclose(
    metrics.brier(logits, labels),
    2 * sklearn_metrics.brier_score_loss(labels, probs[:, 1]),
    rtol=1e-12,
  )


def test_tied_probabilities_against_sklearn():
  rng = np.random.default_rng(1)
  logits = rng.integers(0, 3, (120, 4)).astype(np.float64)
  labels = rng.integers(0, 4, 120)
  np.testing.assert_allclose(
    metrics.macro_auroc(logits, labels),
    sklearn_metrics.roc_auc_score(
      labels, predictions.softmax(logits), multi_class='ovr'
    ),
    rtol=1e-12,
  )


EDGE_CASES = {
  'one_right': ([[2.0, 1.0]], [0]),
  'one_wrong': ([[2.0, 1.0]], [1]),
  'constant_logits': (np.zeros((7, 6)), [0, 1, 2, 3, 4, 5, 0]),
  'huge_logits': (1e4 * np.eye(6)[[0, 1, 2, 5]] - 5e3, [0, 1, 3, 5]),
  'all_right': (5 * np.eye(3)[[0, 1, 2, 1]], [0, 1, 2, 1]),
  'all_wrong': (5 * np.eye(3)[[0, 1, 2, 1]], [1, 2, 0, 0]),
  'one_class': (5 * np.eye(5)[[3, 3, 3]], [3, 3, 3]),
}
UNDEFINED = {
  'one_right': {
    'top5',
    'cohen_kappa',
    'macro_auroc',
    'misclassification_auroc',
  },
  'one_wrong': {'top5', 'macro_auroc', 'misclassification_auroc'},
  'constant_logits': set(),
  'huge_logits': set(),
  'all_right': {'top5', 'misclassification_auroc'},
  'all_wrong': {'top5', 'misclassification_auroc'},
  'one_class': {
    'top5',
    'cohen_kappa',
    'macro_auroc',
    'misclassification_auroc',
  },
}


@pytest.mark.parametrize('case', EDGE_CASES)
def test_edge_cases_are_nan_only_where_documented(case):
  logits, labels = EDGE_CASES[case]
  values = metrics.compute_metrics(np.asarray(logits), np.asarray(labels))
  assert {type(v) for v in values.values()} == {float}
  undefined = {name for name, v in values.items() if math.isnan(v)}
  assert undefined == UNDEFINED[case]
  assert not any(math.isinf(v) for v in values.values())


@pytest.mark.parametrize(
  ('num_classes', 'defined'), [(2, False), (4, False), (5, False), (6, True)]
)
def test_five_of_five_classes_say_nothing(num_classes, defined):
  logits = np.tile(np.arange(num_classes, 0, -1.0), (num_classes, 1))
  value = metrics.top5(logits, np.arange(num_classes))
  assert math.isnan(value) is not defined
  if defined:
    assert value == 5 / num_classes


@pytest.mark.parametrize('undefined', [None, math.nan])
@pytest.mark.parametrize('name', ['top1', 'nll'])
def test_what_is_undefined_is_never_the_best(name, undefined):
  assert metrics.goodness(name, undefined) < metrics.goodness(name, 1e9)
  assert metrics.goodness(name, undefined) < metrics.goodness(name, -1e9)
  better, worse = (0.9, 0.1) if name == 'top1' else (0.1, 0.9)
  assert metrics.goodness(name, better) > metrics.goodness(name, worse)


def test_edge_case_values():
  right = metrics.compute_metrics(*map(np.asarray, EDGE_CASES['all_right']))
  wrong = metrics.compute_metrics(*map(np.asarray, EDGE_CASES['all_wrong']))
  for name in ('top1', 'macro_f1', 'mcc', 'cohen_kappa', 'macro_auroc'):
    assert right[name] == pytest.approx(1.0)
  assert right['aurc'] == right['e_aurc'] == 0.0
  assert wrong['aurc'] == 1.0 and wrong['e_aurc'] == 0.0
  assert wrong['top1'] == wrong['macro_f1'] == 0.0
  huge = metrics.compute_metrics(*map(np.asarray, EDGE_CASES['huge_logits']))
  assert huge['nll'] == pytest.approx(1e4 / 4)
  assert huge['brier'] == pytest.approx(0.5)
  constant = metrics.compute_metrics(
    *map(np.asarray, EDGE_CASES['constant_logits'])
  )
  assert constant['top1'] == pytest.approx(2 / 7)
  assert constant['top5'] == pytest.approx(6 / 7)
  assert constant['macro_auroc'] == pytest.approx(0.5)
  assert constant['mean_entropy'] == pytest.approx(math.log(6))


def test_float16_and_jax_arrays_are_read_in_float64():
  import jax.numpy as jnp

  logits, labels = _random_split(np.random.default_rng(2), 50, 6)
  low = jnp.asarray(logits, jnp.bfloat16)
  expected = metrics.compute_metrics(np.asarray(low, np.float64), labels)
  assert metrics.compute_metrics(low, jnp.asarray(labels)) == expected


@pytest.mark.parametrize(
  ('logits', 'labels', 'message'),
  [
    (np.zeros(3), [0, 0, 0], r'shape \[N, K\]'),
    (np.zeros((0, 3)), [], 'N >= 1'),
    (np.zeros((2, 3)), [0], 'labels must have shape'),
    (np.zeros((2, 3)), [0.0, 1.0], 'integers'),
    (np.zeros((2, 3)), [0, 3], r'\[0, 3\)'),
    (np.zeros((2, 3)), [-1, 0], 'from -1'),
    (np.array([[0.0, 1.0], [np.nan, 0.0]]), [0, 1], 'first is row 1'),
  ],
)
def test_mistakes_are_named(logits, labels, message):
  with pytest.raises(ValueError, match=message):
    metrics.top1(logits, np.asarray(labels))
