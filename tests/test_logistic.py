"""Heads on frozen features against scikit-learn; folds that never saw."""

import numpy as np
import pytest
from scipy import special
from sklearn.linear_model import LogisticRegression

from tlkd_jax.settings import Data
from tlkd_jax.training import logistic


def make_data(num_images=60, num_views=3, size=12, num_classes=4, seed=0):
  generator = np.random.default_rng(seed)
  labels = np.arange(num_images) % num_classes
  centres = generator.normal(0, 1, (num_classes, size))
  noise = generator.normal(0, 1.5, (num_images, num_views, size))
  scales = np.geomspace(0.1, 10, size)
  features = (centres[labels][:, None] + noise) * scales + 3
  return features.astype(np.float32), labels.astype(np.int32)


@pytest.mark.parametrize('num_classes', [2, 4])
def test_a_head_is_that_of_scikit_learn(num_classes):
  """Scaled features; a view counts a part of its image."""
  features, labels = make_data(num_classes=num_classes)
  rows = features.reshape(-1, features.shape[-1]).astype(np.float64)
  centre, scale = rows.mean(axis=0), rows.std(axis=0)
  model = LogisticRegression(C=0.1, tol=1e-10, max_iter=5000)
  model.fit(
    (rows - centre) / scale,
    np.repeat(labels, features.shape[1]),
    sample_weight=np.full(rows.shape[0], 1 / features.shape[1]),
  )
  head = logistic.fit(features, labels, num_classes, 0.1)
  logits = head.logits(rows)
  odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
  said = odds / odds.sum(axis=-1, keepdims=True)
  expected = model.predict_proba((rows - centre) / scale)
  np.testing.assert_allclose(said, expected, atol=1e-5)
  theirs = model.coef_ / scale
  if num_classes == 2:
    ours = (head.kernel[:, 1] - head.kernel[:, 0])[None]
  else:
    ours = head.kernel.T
  np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_a_feature_that_never_changes_and_a_class_that_is_not_there():
  features, labels = make_data()
  features[..., 5] = 7.0
  head = logistic.fit(features, labels, 6, 0.1)
  assert np.isfinite(head.kernel).all() and not head.kernel[5].any()
  assert not head.kernel[:, 4:].any()
  logits = head.logits(features)
  assert np.isfinite(logits).all() and set(logits.argmax(-1).flat) <= {
    *range(4)
  }


def test_folds_spread_every_class():
  labels = np.repeat([0, 1, 2], [17, 6, 2])
  folds = logistic.make_folds(labels, 5, seed=3)
  for label, least in ((0, 3), (1, 1), (2, 0)):
    counts = np.bincount(folds[labels == label], minlength=5)
    assert counts.min() >= least and counts.max() <= least + 1
  assert np.bincount(folds).tolist() == [5] * 5
  assert (folds == logistic.make_folds(labels, 5, seed=3)).all()
  assert (folds != logistic.make_folds(labels, 5, seed=4)).any()


def test_folds_need_two_images_of_a_class():
  with pytest.raises(ValueError, match='class 1 has 1 training image'):
    logistic.make_folds(np.array([0, 0, 1]), 3, seed=0)


def test_the_strength_follows_what_can_be_learned():
  features, labels = make_data(num_images=80)
  folds = logistic.make_folds(labels, 4, seed=0)
  noise = np.random.default_rng(1).permutation(labels)
  clear = logistic.choose(features, labels, folds, 4)
  assert clear > logistic.choose(features, noise, folds, 4)


@pytest.mark.parametrize('balance', ['none', 'sampling', 'logit_adjustment'])
def test_a_flipped_label_changes_no_head_that_did_not_see_it(balance):
  """Neither the head of its fold nor the strength of that head."""
  features, labels = make_data(num_images=40)
  labels[20:24], data = 0, Data(balance=balance)
  folds = logistic.make_folds(labels, 4, seed=0)
  strengths = (1e-3, 1e-2, 1e-1)
  heads, chosen = logistic.cross_fit(
    features, labels, folds, 4, strengths, data
  )
  for image in (0, 7, 21):
    flipped = labels.copy()
    flipped[image] = (labels[image] + 1) % 4
    others, again = logistic.cross_fit(
      features, flipped, folds, 4, strengths, data
    )
    own = folds[image]
    assert again[own] == chosen[own]
    assert (others[own].kernel == heads[own].kernel).all()
    assert (others[own].bias == heads[own].bias).all()
    for fold in set(range(4)) - {own}:
      assert (others[fold].kernel != heads[fold].kernel).any()


def test_the_mean_has_the_mean_of_the_logits():
  features, labels = make_data()
  folds = logistic.make_folds(labels, 3, seed=0)
  heads, _ = logistic.cross_fit(features, labels, folds, 4, (0.01,))
  expected = np.mean([head.logits(features) for head in heads], axis=0)
  actual = logistic.mean(heads).logits(features)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def unequal(seed=0):
  """Classes of 48, 24 and 8 images, two views each."""
  labels = np.repeat([0, 1, 2], [48, 24, 8]).astype(np.int32)
  generator = np.random.default_rng(seed)
  features = generator.normal(size=(80, 2, 5)) + labels[:, None, None] * 0.4
  return features.astype(np.float32), labels


def adjusted_loss(head, features, labels, counted, log_prior, strength):
  """Of scikit-learn, by hand: C * sum of losses + half the squared scaled w."""
  rows = features.reshape(-1, features.shape[-1]).astype(np.float64)
  logits = features @ head.kernel + head.bias + log_prior
  said = special.log_softmax(logits, axis=-1)
  picked = np.take_along_axis(said, labels[:, None, None], -1).mean((1, 2))
  scaled = head.kernel * rows.std(axis=0)[:, None]
  return -strength * (counted[labels] * picked).sum() + (scaled**2).sum() / 2


@pytest.mark.parametrize('balance', ['none', 'sampling', 'logit_adjustment'])
def test_a_head_is_the_minimum_of_the_balanced_loss(balance):
  """No step from it in kernel or bias makes the loss less."""
  features, labels = unequal()
  data = Data(balance=balance, balance_tau=1.5)
  counted, log_prior = np.ones(3), np.zeros(3)
  if balance == 'sampling':
    counted = 80 / (3 * np.asarray([48, 24, 8]))
  if balance == 'logit_adjustment':
    log_prior = 1.5 * np.log([0.6, 0.3, 0.1])
  given = features, labels, counted, log_prior, 0.1
  head = logistic.fit(features, labels, 3, 0.1, data=data)
  least = adjusted_loss(head, *given)
  generator = np.random.default_rng(1)
  for _ in range(20):
    kernel = head.kernel + 0.03 * generator.normal(size=head.kernel.shape)
    bias = head.bias + 0.03 * generator.normal(size=3)
    assert adjusted_loss(logistic.Head(kernel, bias), *given) > least


def test_the_strength_is_of_the_balanced_loss():
  """Without logit adjustment's prior, which both heads and loss would add."""
  features, labels = unequal()
  folds = logistic.make_folds(labels, 4, seed=0)
  chosen = {}
  for balance in ('none', 'sampling', 'logit_adjustment'):
    data, losses = Data(balance=balance), np.zeros(len(logistic.STRENGTHS))
    for fold in range(4):
      kept, out = folds != fold, folds == fold
      number = np.bincount(labels[kept])
      for k, strength in enumerate(logistic.STRENGTHS):
        given = features[kept], labels[kept], 3, strength, logistic.ROUGH
        logits = logistic.fit(*given, data).logits(features[out])
        if balance == 'logit_adjustment':
          logits = logits + np.log(number / number.sum())
        said = special.log_softmax(logits, axis=-1).mean(axis=1)
        own = said[np.arange(out.sum()), labels[out]]
        losses[k] -= (
          own / (number[labels[out]] if balance[0] == 's' else 1)
        ).sum()
    chosen[balance] = logistic.choose(features, labels, folds, 3, data=data)
    assert chosen[balance] == logistic.STRENGTHS[losses.argmin()]
  assert chosen['none'] == chosen['logit_adjustment'] != chosen['sampling']
