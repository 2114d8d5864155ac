import numpy as np
import pytest

from tests.evaluation.golden import ARRAYS, GOLDEN
from tlkd_jax.evaluation import ood

OOD = GOLDEN['ood']
SCORES = {
  'msp': 'msp',
  'maxlogit': 'max_logit',
  'energy(logsumexp,T=1)': 'energy',
  'neg_entropy': 'negative_entropy',
}
VALUES = {
  'sklearn/auroc(in=positive)': 'auroc',
  'sklearn/aupr_in': 'aupr_in',
  'sklearn/aupr_out': 'aupr_out',
  'fpr95(in=positive; robustness_metrics rule fpr[argmax(tpr>=.95)])': 'fpr95',
}


def test_golden():
  got = ood.ood_metrics(ARRAYS['ood/in_logits'], ARRAYS['ood/out_logits'])
  assert set(SCORES) == set(OOD) and set(SCORES.values()) == set(got)
  for golden_score, score in SCORES.items():
    assert set(OOD[golden_score]) == set(VALUES)
    for key, value in VALUES.items():
      np.testing.assert_allclose(
        got[score][value], OOD[golden_score][key], rtol=1e-6
      )


def test_positive_class():
  result = ood.detection_metrics(np.array([3.0, 4.0]), np.array([1.0, 2.0]))
  assert result == {'auroc': 1.0, 'fpr95': 0.0, 'aupr_in': 1.0, 'aupr_out': 1.0}
  flipped = ood.detection_metrics(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
  assert flipped['auroc'] == 0.0 and flipped['fpr95'] == 1.0


def test_constant_and_huge_logits():
  constant = ood.ood_metrics(np.zeros((3, 2)), np.zeros((1, 2)))
  for values in constant.values():
    assert values == {
      'auroc': 0.5,
      'fpr95': 1.0,
      'aupr_in': 0.75,
      'aupr_out': 0.25,
    }
  huge = ood.ood_metrics(1e4 * np.eye(3), -1e4 * np.ones((2, 3)))
  assert all(values['auroc'] == 1.0 for values in huge.values())


def test_mistakes_are_named():
  with pytest.raises(ValueError, match='3 and 4 classes'):
    ood.ood_metrics(np.zeros((2, 3)), np.zeros((2, 4)))
  with pytest.raises(ValueError, match='out_logits must'):
    ood.ood_metrics(np.zeros((2, 3)), np.zeros((0, 3)))
