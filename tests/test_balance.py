"""Classes of unequal size: what is said, chosen and added to logits."""

import types

import jax
import numpy as np
import pytest
from scipy import special

from tlkd_jax import settings
from tlkd_jax.data import Dataset, Split
from tlkd_jax.losses import supervised
from tlkd_jax.study import cells
from tlkd_jax.training import balance, lessons, targets
from tlkd_jax.training import objective as objectives
from tlkd_jax.training.state import Learner


def split_of(sizes) -> Split:
  labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
  images = np.zeros((labels.size, 2, 2, 3), np.uint8)
  numbers = np.arange(labels.size)
  return Split(images, labels, numbers, [str(n) for n in numbers])


def data_of(train, validation=None, unlabelled=0) -> Dataset:
  """Classes a, b, c, ... of these sizes."""
  sizes = {'train': train, 'validation': validation or [2] * len(train)}
  splits = {name: split_of(counts) for name, counts in sizes.items()}
  if unlabelled:
    labels = splits['train'].labels
    hidden = np.concatenate([labels, np.full(unlabelled, -1, np.int32)])
    images = np.zeros((hidden.size, 2, 2, 3), np.uint8)
    splits['train'] = Split(
      images, hidden, np.arange(hidden.size), [''] * hidden.size
    )
  names = [chr(ord('a') + k) for k in range(len(train))]
  return Dataset('mine', names, splits, 2, True, {}, [])


def make(**values) -> settings.Settings:
  return settings.with_values(
    settings.make('tl'), {k.replace('__', '.'): v for k, v in values.items()}
  )


LOGITS = {'data__balance': 'logit_adjustment'}


@pytest.mark.parametrize(
  ('train', 'validation', 'ratio', 'metric'),
  [
    ([20, 20], None, 1.0, 'top1'),
    ([100, 10], None, 10.0, 'top1'),
    ([101, 10, 50], None, 10.1, 'macro_f1'),
    ([1000, 10, 10], None, 100.0, 'macro_f1'),
    # A balanced subset is learned from, and chosen on what is not.
    ([5, 5], [330, 30], 11.0, 'macro_f1'),
    ([50, 10], [3, 2], 5.0, 'top1'),
    # A class that validation lacks is no ratio.
    ([5, 5, 5], [4, 0, 2], 2.0, 'top1'),
  ],
)
def test_the_metric_that_chooses(train, validation, ratio, metric):
  dataset = data_of(train, validation)
  assert balance.ratio(dataset) == pytest.approx(ratio)
  assert balance.best_metric(make(), dataset) == metric
  said = [line for line in balance.lines(make(), dataset) if 'best_m' in line]
  assert len(said) == (metric != 'top1')
  for chosen in ('top1', 'nll', 'balanced_accuracy'):
    given = make(best_metric=chosen)
    assert balance.best_metric(given, dataset) == chosen
    said = [line for line in balance.lines(given, dataset) if 'best_' in line]
    assert len(said) == (metric != 'top1')
    assert all(f'best_metric is {chosen}, as it was set' in s for s in said)


def test_what_is_said_of_classes():
  lines = balance.lines(make(), data_of([3, 60, 20]))
  assert lines == [
    'training images of each class: b 60, c 20, a 3',
    'best_metric is macro_f1, a mean over classes: the largest class has 20 '
    'times the images of the smallest',
  ]
  (line,) = balance.lines(make(), data_of([*range(20, 40)]))
  assert line.endswith('o 34, ... (8 more), f 25, e 24, d 23, c 22, b 21, a 20')
  *_, line = balance.lines(make(data__balance='sampling'), data_of([9, 2]))
  assert line == "data.balance is 'sampling': each class is drawn equally often"
  *_, line = balance.lines(
    make(**LOGITS, data__balance_tau=0.5), data_of([9, 2])
  )
  assert 'adds 0.5 log prior to logits' in line
  *_, line = balance.lines(make(**LOGITS), data_of([7, 7]))
  assert line.endswith('it changes nothing, as each has 7 images')


def test_a_metric_that_few_classes_do_not_have():
  given = make(best_metric='top5')
  with pytest.raises(ValueError, match="'top5', and mine has 4 classes; acc"):
    balance.best_metric(given, data_of([3] * 4))
  with pytest.raises(ValueError, match='has 5 classes'):
    balance.best_metric(given, data_of([3] * 5))
  assert balance.best_metric(given, data_of([3] * 6)) == 'top5'


@pytest.mark.parametrize('tau', [1.0, 0.0, 2.5])
@pytest.mark.parametrize('guided', [False, True])
def test_logit_adjustment_by_hand(tau, guided):
  """-log of softmax(z + tau log pi), in float64, with smoothing, TL and KD."""
  dataset = data_of([80, 15, 5], unlabelled=40)
  arm = 'kd' if guided else 'tl'
  config = make(**LOGITS, data__balance_tau=tau, arm=arm, num_steps=200)
  total = lessons.make_objective(config, dataset, guided=guided)
  rng = np.random.default_rng(0)
  logits = (5 * rng.normal(size=(7, 3))).astype(np.float32)
  said = (5 * rng.normal(size=(7, 3))).astype(np.float32)
  labels = np.asarray([0, 1, 2, 2, 0, 1, -1], np.int32)
  soft = supervised.soft_labels(labels, 3, config.label_smoothing)
  loss, _, metrics = objectives.evaluate(
    total,
    ('teacher',) if guided else (),
    Learner({'projector': {}}, {}, {}, {}, {}),
    {'logits': logits},
    {'teacher': {'logits': said, 'head': {}}},
    soft,
    {'label': labels, 'index': np.arange(7)},
    jax.random.key(0),
    np.int32(0),
  )
  prior = np.asarray([0.8, 0.15, 0.05])
  judged = logits.astype(np.float64) + tau * np.log(prior)
  target = 0.9 * np.eye(3)[labels[:6]] + 0.1 / 3
  expected = -(target * special.log_softmax(judged, -1)[:6]).sum(-1).mean()
  assert metrics['hard_loss'] == pytest.approx(expected, rel=1e-5)
  # What is predicted, and what a teacher is compared with, is not adjusted.
  right = logits[:6].argmax(-1) == labels[:6]
  assert metrics['accuracy'] == pytest.approx(right.mean())
  if guided:
    p, q = (
      special.log_softmax(z.astype(np.float64) / 2, -1) for z in (said, logits)
    )
    kl = (4 * np.exp(p) * (p - q)).sum(-1).mean()
    assert metrics['soft_loss'] == pytest.approx(kl, rel=1e-5)
    expected += kl
  assert loss == pytest.approx(expected, rel=1e-5)


def test_the_prior_is_of_labelled_training_images():
  dataset = data_of([30, 10], [1, 9], unlabelled=100)
  found = balance.adjustment(make(**LOGITS), dataset)
  assert isinstance(found, tuple)
  np.testing.assert_allclose(found, np.log([0.75, 0.25]), rtol=1e-6)
  assert balance.adjustment(make(), dataset) is None
  assert balance.adjustment(make(**LOGITS), None) is None


def test_bfloat16_logits_are_adjusted_in_float32():
  logits = np.asarray([[100.0, 100.0]]).astype(jax.numpy.bfloat16)
  found = supervised.adjusted(logits, np.log([0.9, 0.1]))
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, [100 + np.log([0.9, 0.1])], rtol=1e-6)


@pytest.mark.parametrize(('balanced', 'views'), [(False, 2), (True, 5)])
def test_views_of_which_targets_are_stored(balanced, views, monkeypatch):
  """Of a small class more are drawn than of the data on the whole."""
  opened = []
  store = types.SimpleNamespace(
    missing=lambda count: [0] * count, open=opened.append
  )
  monkeypatch.setattr(targets, 'Store', lambda *_: store)
  monkeypatch.setattr(targets, '_fill', lambda *_: None)
  monkeypatch.setattr(targets.sharding, 'is_lead', lambda: False)
  recipe = types.SimpleNamespace(
    root=None,
    split=data_of([60, 4]).splits['train'],
    batch_size=16,
    num_views=7,
    balanced=balanced,
    shares=None,
    layout=lambda: None,
    fingerprint=lambda *_: {},
  )
  # 80 draws: 1.25 epochs of all, 10 epochs of class b.
  targets.prepare(recipe, (), 5, None)
  assert opened == [min(7, 10) if balanced else views]


def test_trials_are_chosen_by_what_chose_their_steps():
  records = [
    {'validation': {'top1': 0.9, 'macro_f1': 0.2, 'nll': 2.0}},
    {'validation': {'top1': 0.8, 'macro_f1': 0.6, 'nll': 1.0}},
  ]
  assert cells.best_trial(records, 'auto') is records[0]
  for record in records:
    record['best_metric'] = 'macro_f1'
  assert cells.best_trial(records, 'auto') is records[1]
  assert cells.best_trial(records, 'top1') is records[0]
  assert cells.best_trial(records, 'nll') is records[1]
