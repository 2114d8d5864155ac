"""A sham is as sure of the label as the teacher, and knows nothing else."""

import functools

import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from tlkd_jax import losses
from tlkd_jax.losses import shams

ROWS = 12
KINDS = [kind for kind in shams.SHAMS if kind != 'off']


def made(kind, num_classes, seed):
  given = shams.drawn(kind, num_classes, seed)
  return functools.partial(shams.make(kind, num_classes), **given)


def teacher(num_classes, scale=4.0):
  """float32 logits with their labels, each class in turn."""
  rng = np.random.default_rng(num_classes)
  logits = scale * rng.normal(size=(ROWS, num_classes))
  return logits.astype(np.float32), np.arange(ROWS) % num_classes


def entropy_of_rest(p, labels):
  """Of the probabilities beside the label, made to sum to 1; nats [N]."""
  rest = np.where(np.eye(p.shape[1], dtype=bool)[labels], 0.0, p)
  rest = rest / rest.sum(-1, keepdims=True)
  return -(rest * np.log(np.where(rest > 0, rest, 1.0))).sum(-1)


@pytest.mark.parametrize('num_classes', [3, 5, 17])
@pytest.mark.parametrize('temperature', [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize('kind', KINDS)
def test_p_label_is_the_teachers(kind, num_classes, temperature):
  logits, labels = teacher(num_classes)
  sham = made(kind, num_classes, seed=1)
  said = np.float64(sham(logits, labels, temperature)) / temperature
  real = np.float64(logits) / temperature
  rows = np.arange(ROWS)
  np.testing.assert_allclose(
    softmax(said, -1)[rows, labels], softmax(real, -1)[rows, labels], rtol=1e-5
  )


@pytest.mark.parametrize('temperature', [1.0, 3.0])
def test_uniform_by_hand(temperature):
  logits, labels = teacher(5)
  said = np.asarray(shams.uniform(logits, labels, temperature))
  for z, label, found in zip(np.float64(logits), labels, said, strict=True):
    others = np.delete(z, label) / temperature
    rest = temperature * (logsumexp(others) - np.log(4))
    expected = np.full(5, rest)
    expected[label] = z[label]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_the_rest_of_uniform_has_the_largest_entropy():
  logits, labels = teacher(7)
  said = np.float64(shams.uniform(logits, labels, 2.0))
  found = entropy_of_rest(softmax(said / 2, -1), labels)
  np.testing.assert_allclose(found, np.log(6), rtol=1e-6)
  real = entropy_of_rest(softmax(np.float64(logits) / 2, -1), labels)
  assert (real < np.log(6) - 0.1).all()


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('num_classes', [3, 4, 10])
def test_permuted_moves_every_other_class(num_classes, seed):
  sham = made('permuted', num_classes, seed)
  # Of each class the logit that it has: where did it go?
  labels = np.arange(num_classes)
  logits = np.tile(np.arange(num_classes, dtype=np.float32), (num_classes, 1))
  said = np.asarray(sham(logits, labels, 1.0))
  np.testing.assert_array_equal(np.sort(said, -1), logits)
  stays = said == logits
  np.testing.assert_array_equal(stays, np.eye(num_classes, dtype=bool))


def test_permuted_is_one_permutation_a_label_and_another_of_each_seed():
  logits, labels = teacher(10)
  found = []
  for seed in (0, 0, 1):
    sham = made('permuted', 10, seed)
    found.append(np.asarray(sham(logits, labels, 1.0)))
  np.testing.assert_array_equal(found[0], found[1])
  assert (found[0] != found[2]).any()
  real = entropy_of_rest(softmax(np.float64(logits), -1), labels)
  said = entropy_of_rest(softmax(np.float64(found[0]), -1), labels)
  np.testing.assert_allclose(said, real, rtol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('scale', [0.0, 1e4, 1e30])
def test_what_it_says_is_finite(kind, scale):
  logits, labels = teacher(5, scale)
  said = np.asarray(made(kind, 5, 0)(logits, labels, 2.0))
  assert np.isfinite(said).all()


@pytest.mark.parametrize('kind', KINDS)
def test_of_two_classes_there_is_none(kind):
  with pytest.raises(ValueError, match=f"sham is '{kind}', and of 2 classes"):
    shams.make(kind, 2)
  assert shams.make('off', 2) is None


@pytest.mark.parametrize(
  'name', [n for n, loss in losses.LOSSES.items() if loss.p_label_at != 'none']
)
def test_a_record_says_where_p_label_is_read(name):
  loss = losses.LOSSES[name]
  assert loss.reads == 'logits' and loss.guide == 'teacher'
  options = losses.hyperparameters_of(name)
  assert loss.p_label_at == 'one' or 'temperature' in options
