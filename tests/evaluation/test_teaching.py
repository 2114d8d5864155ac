"""What is said of a teacher's targets."""

import numpy as np
import pytest
from scipy.special import softmax

from tlkd_jax.evaluation import teaching


def test_by_hand_at_a_temperature():
  logits = np.array([[4.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]])
  labels = np.array([0, 1, 0])
  p = softmax(logits / 2, axis=-1)
  picked = p[np.arange(3), labels]
  entropy = -(p * np.log(p)).sum(-1).mean()
  said = teaching.describe(logits, labels, 2.0)
  assert said['p_label'] == pytest.approx(picked.mean())
  assert said['entropy'] == pytest.approx(entropy)
  assert said['effective_classes'] == pytest.approx(np.exp(entropy))
  assert said['agreement'] == pytest.approx(2 / 3)
  assert said['nll'] == pytest.approx(-np.log(picked).mean())


@pytest.mark.parametrize('num_classes', [2, 7])
def test_nothing_and_everything_said(num_classes):
  labels = np.arange(num_classes)
  uniform = teaching.describe(np.zeros((num_classes,) * 2), labels, 1.0)
  assert uniform['effective_classes'] == pytest.approx(num_classes)
  assert uniform['p_label'] == pytest.approx(1 / num_classes)
  certain = teaching.describe(1e4 * np.eye(num_classes), labels, 1.0)
  assert certain['effective_classes'] == pytest.approx(1.0)
  assert certain['p_label'] == 1.0 and certain['ece'] == 0.0


@pytest.mark.parametrize(
  'seen, unseen, worries', [(0.99, 0.6, 1), (0.99, 0.95, 0), (0.94, 0.5, 0)]
)
def test_a_teacher_of_labels_is_a_warning(seen, unseen, worries):
  found = teaching.warnings({'p_label': seen}, {'p_label': unseen})
  assert len(found) == worries
  assert all('crossfitted' in line for line in found)


@pytest.mark.parametrize(
  'teacher, probe, worries', [(1.2, 1.1, 1), (1.1, 1.1, 0), (1.2, None, 0)]
)
def test_a_teacher_that_knows_less_than_the_student_is_a_warning(
  teacher, probe, worries
):
  said = {'p_label': 0.5}
  found = teaching.warnings(said, said, teacher, probe)
  assert len(found) == worries
  for line in found:
    assert 'validation NLL 1.200 and 1.100' in line
    assert "teacher.fit='probed'" in line and 'teacher.name' in line


def test_what_is_known_does_not_depend_on_how_surely_it_is_said():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 4, 60)
  logits = rng.normal(size=(60, 4)) + 2 * np.eye(4)[labels]
  found = [teaching.scaled_nll(scale * logits, labels) for scale in (1, 9, 0.2)]
  np.testing.assert_allclose(found, found[0], rtol=1e-4)
  picked = softmax(logits, -1)[np.arange(60), labels]
  assert found[0] <= -np.log(picked).mean()
