"""Schedules, update rules by hand, and which parameters move how fast."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from tlkd_jax import models
from tlkd_jax.runtime.trees import nest
from tlkd_jax.settings import Optimizer
from tlkd_jax.training import optimizers

pytestmark = pytest.mark.usefixtures('tiny_models')

SHAPES = {
  'weights.stem.conv.kernel': (2, 3),
  'weights.blocks.0.0.project.conv.kernel': (3, 2),
  'weights.blocks.0.0.project.norm.scale': (4,),
  'weights.blocks.1.0.project.conv.kernel': (2, 2),
  'weights.neck.norm.bias': (3,),
  'weights.position': (1, 2, 3),
  'weights.head.kernel': (3, 4),
  'weights.head.bias': (4,),
  'projector.stage1.kernel': (2, 2),
}
KERNELS = {name for name in SHAPES if name.endswith('kernel')}


def flat(tree):
  found = {}
  optimizers.map_with_path(
    lambda path, leaf: found.update({path: np.asarray(leaf)}), tree
  )
  return found


def draw(seed: int):
  rng = np.random.default_rng(seed)
  return {
    k: rng.normal(size=shape).astype(np.float32) for k, shape in SHAPES.items()
  }


def train(steps: int = 4, schedule=lambda _: 0.1, first: int = 1, **changes):
  """Parameters before and after each of some steps on draw(first), ..."""
  model = models.create_model('tiny', num_classes=4)
  keys = {f'optimizer__{k}': v for k, v in changes.items()}
  options = tiny.make_config('tl', **keys).optimizer
  optimizer = optimizers.make_optimizer(model, schedule, options)
  update = jax.jit(optimizer.update)
  params = nest(draw(0))
  state = optimizer.init(jax.tree.map(jnp.asarray, params))
  history = [flat(params)]
  for step in range(steps):
    updates, state = update(nest(draw(step + first)), state, params)
    params = jax.tree.map(np.add, params, jax.device_get(updates))
    history.append(flat(params))
  return history


PLAIN = {'weight_decay': 0.0, 'clip_norm': 0.0}


@pytest.mark.parametrize(
  ('step', 'expected'),
  [
    (0, 0.0),
    (5, 0.01),
    (10, 0.02),
    (55, 0.002 + 0.018 / 2),
    (32.5, 0.002 + 0.018 * (1 + np.cos(np.pi / 4)) / 2),
    (100, 0.002),
    (120, 0.002),
  ],
)
def test_schedule_with_warmup(step, expected):
  schedule = optimizers.learning_rate_schedule(0.02, 100, 0.1, 0.1)
  assert schedule(step) == pytest.approx(expected, rel=1e-6)


def test_schedule_without_warmup():
  schedule = optimizers.learning_rate_schedule(0.02, 100, 0.0, 0.0)
  values = [float(schedule(step)) for step in (0, 50, 100)]
  np.testing.assert_allclose(values, [0.02, 0.01, 0.0], atol=1e-9)
  one = optimizers.learning_rate_schedule(0.02, 1, 1.0, 0.0)
  assert np.isfinite(one(0)) and np.isfinite(one(1))


def test_sgd_with_nesterov_momentum_by_hand():
  """torch.optim.SGD's rule, weight decay added to the gradient."""
  history = train(name='sgd', momentum=0.8, weight_decay=0.3, clip_norm=0.0)
  params = {k: v.astype(np.float64) for k, v in history[0].items()}
  trace = {k: np.zeros_like(v) for k, v in params.items()}
  for step in range(4):
    for k, gradient in draw(step + 1).items():
      gradient = gradient + (0.3 if k in KERNELS else 0.0) * params[k]
      trace[k] = 0.8 * trace[k] + gradient
      params[k] = params[k] - 0.1 * (gradient + 0.8 * trace[k])
  for k in params:
    np.testing.assert_allclose(history[-1][k], params[k], rtol=1e-5, atol=1e-6)


def test_adamw_by_hand():
  """Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2."""
  history = train(
    name='adamw', beta1=0.7, beta2=0.95, weight_decay=0.3, clip_norm=0.0
  )
  params = {k: v.astype(np.float64) for k, v in history[0].items()}
  first = {k: np.zeros_like(v) for k, v in params.items()}
  second = {k: np.zeros_like(v) for k, v in params.items()}
  for t in range(1, 5):
    for k, gradient in draw(t).items():
      gradient = gradient.astype(np.float64)
      first[k] = 0.7 * first[k] + 0.3 * gradient
      second[k] = 0.95 * second[k] + 0.05 * gradient**2
      root = np.sqrt(second[k] / (1 - 0.95**t)) + 1e-8
      decay = (0.3 if k in KERNELS else 0.0) * params[k]
      params[k] = params[k] - 0.1 * (first[k] / (1 - 0.7**t) / root + decay)
  for k in params:
    np.testing.assert_allclose(history[-1][k], params[k], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('changes', 'left'), [({}, 1.0), ({'weight_decay': 0.1}, 0.99)]
)
def test_what_decay_takes_away_in_a_run(changes, left):
  """As the key's comment says, and nothing by default."""
  model = models.create_model('tiny', num_classes=4)
  options = dataclasses.replace(Optimizer(), **changes)
  schedule = optimizers.learning_rate_schedule(
    options.learning_rate, 200, options.warmup_fraction, options.final_fraction
  )
  optimizer = optimizers.make_optimizer(model, schedule, options)
  params = nest({'weights.head.kernel': jnp.ones((3, 4))})
  still = jax.tree.map(jnp.zeros_like, params)

  def step(_, now):
    updates, state = optimizer.update(still, now[1], now[0])
    return optax.apply_updates(now[0], updates), state

  params, _ = jax.lax.fori_loop(0, 200, step, (params, optimizer.init(params)))
  kernel = params['weights']['head']['kernel']
  np.testing.assert_allclose(kernel, left, rtol=1e-4, atol=0)


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_weight_decay_spares_all_but_kernels(name):
  without = train(1, name=name, weight_decay=0.0)[-1]
  with_decay = train(1, name=name, weight_decay=0.5)[-1]
  moved = {k for k in SHAPES if not np.array_equal(without[k], with_decay[k])}
  assert moved == KERNELS


def test_clipping_by_the_global_norm():
  history = train(1, name='sgd', momentum=0.0, weight_decay=0.0, clip_norm=0.5)
  gradients = draw(1)
  norm = np.sqrt(
    sum(np.sum(g.astype(np.float64) ** 2) for g in gradients.values())
  )
  for k, gradient in gradients.items():
    expected = history[0][k] - 0.1 * gradient * 0.5 / norm
    np.testing.assert_allclose(history[1][k], expected, rtol=1e-5, atol=1e-7)


def test_accumulation_updates_once_with_the_mean():
  def schedule(step):
    return jnp.where(step < 2, 0.1, 0.01)

  history = train(
    4, schedule, name='sgd', momentum=0.0, accumulate_steps=2, **PLAIN
  )
  rates = [0.0, 0.1, 0.0, 0.01]
  expected = history[0]
  for step, rate in enumerate(rates):
    pair = draw(step), draw(step + 1)
    expected = {
      k: v - rate * (pair[0][k] + pair[1][k]) / 2 for k, v in expected.items()
    }
    for k in SHAPES:
      np.testing.assert_allclose(history[step + 1][k], expected[k], atol=1e-6)


def test_head_multiplier():
  slow = train(1, name='sgd', momentum=0.0, **PLAIN)
  fast = train(1, name='sgd', momentum=0.0, head_multiplier=5.0, **PLAIN)
  for k in SHAPES:
    new = k.startswith(('weights.head.', 'projector.'))
    expected = (5.0 if new else 1.0) * (slow[1][k] - slow[0][k])
    np.testing.assert_allclose(
      fast[1][k] - fast[0][k], expected, rtol=1e-4, atol=1e-6
    )


def test_layer_decay():
  """Two stages: head 1, neck d, stages d^2 and d^3, stem d^4."""
  even = train(1, name='sgd', momentum=0.0, **PLAIN)
  decayed = train(1, name='sgd', momentum=0.0, layer_decay=0.5, **PLAIN)
  powers = {
    'weights.stem.conv.kernel': 4,
    'weights.position': 4,
    'weights.blocks.0.0.project.conv.kernel': 3,
    'weights.blocks.0.0.project.norm.scale': 3,
    'weights.blocks.1.0.project.conv.kernel': 2,
    'weights.neck.norm.bias': 1,
    'weights.head.kernel': 0,
    'weights.head.bias': 0,
    'projector.stage1.kernel': 0,
  }
  for k in SHAPES:
    np.testing.assert_allclose(
      decayed[1][k] - decayed[0][k],
      0.5 ** powers[k] * (even[1][k] - even[0][k]),
      rtol=1e-4,
      atol=1e-6,
    )


@pytest.mark.parametrize(
  ('name', 'stages', 'first', 'between'),
  [
    ('efficientnet_lite0', 7, 'stem', None),
    ('mobilenet_v3_large', 6, 'stem', None),
    ('resnet18', 4, 'stem', None),
    ('regnet_y_400mf', 4, 'stem', None),
    ('densenet121', 4, 'stem', ('transitions.0', 1)),
    ('vgg11_bn', 5, 'stages.0', None),
    ('convnext_tiny', 4, 'stem', ('downsamples.0', 1)),
    ('timm/vit_tiny_patch16_224', 12, 'patch', None),
    ('mobileone_s1', 4, 'stem', None),
    ('fastvit_sa12', 4, 'stem', None),
  ],
)
def test_layer_decay_knows_the_families(name, stages, first, between):
  """The slowest parameters are those next to the pixels."""
  model = models.create_model(name, num_classes=3)
  powers = {}

  def power(path, _):
    factor = optimizers.learning_rate_factor(model, path, 1.0, 0.5)
    powers[path.removeprefix('weights.')] = round(-np.log2(factor))

  optimizers.map_with_path(power, {'weights': model.params_shape})
  slowest = max(powers.values())
  assert {p for p in powers if p.startswith(first)} <= {
    p for p, k in powers.items() if k == slowest
  }
  assert slowest == stages + (1 if first == 'stages.0' else 2)
  assert {k for p, k in powers.items() if p.startswith('head')} == {0}
  if between:
    prefix, stage = between
    found = {k for p, k in powers.items() if p.startswith(prefix)}
    assert found == {stages + 1 - stage}


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_freeze_until_step(name):
  history = train(4, name=name, freeze_until_step=2, weight_decay=0.1)
  for k in SHAPES:
    moved = [
      not np.array_equal(a[k], b[k])
      for a, b in zip(history, history[1:], strict=False)
    ]
    new = k.startswith(('weights.head.', 'projector.'))
    assert moved == [new, new, True, True]


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
@pytest.mark.parametrize('every', [1, 2])
def test_what_was_frozen_begins_as_at_a_first_step(name, every):
  """Its moments and their count are of the gradients that it was moved by."""
  given = {'name': name, 'accumulate_steps': every, **PLAIN}
  until = 2 * every
  frozen = train(4 * every, freeze_until_step=until, **given)[until:]
  fresh = train(2 * every, first=until + 1, **given)
  whole = train(4 * every, **given)[until:]
  for k in SHAPES:
    new = k.startswith(('weights.head.', 'projector.'))
    for number in range(2 * every):
      found = frozen[number + 1][k] - frozen[number][k]
      like = whole if new else fresh
      expected = like[number + 1][k] - like[number][k]
      np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_freezing_counts_batches_when_accumulating():
  history = train(6, name='sgd', freeze_until_step=4, accumulate_steps=2)
  stem = [h['weights.stem.conv.kernel'] for h in history]
  assert np.array_equal(stem[0], stem[4]) and not np.array_equal(
    stem[4], stem[6]
  )


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_linear_probe_leaves_the_backbone_alone(name):
  """Bit for bit, weight decay included."""
  history = train(3, name=name, train_only='head', weight_decay=0.5)
  for k in SHAPES:
    new = k.startswith(('weights.head.', 'projector.'))
    assert np.array_equal(history[0][k], history[-1][k]) != new
