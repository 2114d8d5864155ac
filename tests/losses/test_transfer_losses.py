"""Transfer baselines against golden numbers and at their singular points."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlkd_jax.losses import LOSSES, transfer

_bss = jax.jit(jax.value_and_grad(transfer.bss), static_argnames='k')


@pytest.fixture(scope='module')
def tllib():
  folder = pathlib.Path(__file__).parent.parent / 'fixtures' / 'losses'
  losses = json.loads((folder / 'tllib.json').read_text())
  with np.load(folder / 'tllib.npz') as data:
    return losses, {
      key: data[key].astype(np.float32)
      if data[key].dtype == np.float64
      else data[key]
      for key in data.files
    }


def test_l2_sp_golden(golden, assert_gradient_close):
  data = golden('l2sp')
  tree = {}
  start = {}
  for key in data.arrays:
    if key.startswith('in_w_'):
      tree[key[5:]] = data[key]
      start[key[5:]] = data['in_w0_' + key[5:]]
  head = data.arrays['hp_head'].item()

  def loss_fn(params, **hyperparameters):
    return LOSSES['l2sp'].function(
      {'params': {'weights': params}},
      {'params': start},
      None,
      head=head,
      **hyperparameters,
    )

  step = jax.jit(jax.value_and_grad(loss_fn))
  loss, gradient = step(tree, alpha=0.1, beta=0.01)
  np.testing.assert_allclose(loss, data['loss'], rtol=1e-5)
  for name, value in gradient.items():
    assert_gradient_close(value, data[f'grad_{name}'])
  np.testing.assert_allclose(
    loss_fn(tree, alpha=1.0, beta=0.0), data['loss__sp_only_weight1'], rtol=1e-5
  )
  np.testing.assert_allclose(
    loss_fn(tree, alpha=0.0, beta=1.0),
    data['loss__l2_head_only_weight1'],
    rtol=1e-5,
  )


def test_l2_sp_tllib(tllib, assert_gradient_close):
  losses, arrays = tllib
  names = 'conv.weight conv.bias bn.weight bn.bias fc.weight fc.bias'.split()
  # tllib's class takes every parameter as backbone: an empty head is added.
  params = {name: arrays[f'l2sp/target/{name}'] for name in names}
  start = {name: arrays[f'l2sp/source/{name}'] for name in names}
  head = {'head.kernel': np.zeros((2, 2), np.float32)}

  def loss_fn(params):
    return transfer.l2_sp(params | head, start, alpha=1.0, beta=0.0)

  loss, gradient = jax.jit(jax.value_and_grad(loss_fn))(params)
  np.testing.assert_allclose(loss, losses['l2sp/loss'], rtol=1e-5)
  for name in names:
    assert_gradient_close(gradient[name], arrays[f'l2sp/grad/{name}'])
  weight, bias = arrays['l2head/weight'], arrays['l2head/bias']
  loss = transfer.l2_sp({'fc': {'w': weight, 'b': bias}}, {}, alpha=1.0,
                        beta=1.0, head='fc.*')  # fmt: skip
  np.testing.assert_allclose(loss, losses['l2head/loss'], rtol=1e-5)


def test_l2_sp_names_the_mistake():
  params = {'conv': {'kernel': jnp.ones((3, 3))}, 'head': {'bias': jnp.ones(2)}}
  with pytest.raises(ValueError, match='conv.kernel'):
    transfer.l2_sp(params, {})
  with pytest.raises(ValueError, match='clasifier'):
    transfer.l2_sp(params, params, head='clasifier.*')


@pytest.mark.parametrize('features, k', [('', 1), ('', 2), ('', 3), ('b>d', 1)])
def test_bss_golden(tllib, assert_gradient_close, features, k):
  losses, arrays = tllib
  x = arrays['bss/features' + ('_b>d' if features else '')]
  prefix = f'bss/{features}/k{k}' if features else f'bss/k{k}'
  loss, gradient = _bss(x, k=k)
  np.testing.assert_allclose(loss, losses[f'{prefix}/loss'], rtol=1e-5)
  assert_gradient_close(gradient, arrays[f'{prefix}/grad'])


@pytest.mark.parametrize('kind', ['zero', 'duplicates', 'orthonormal', 'huge'])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_bss_is_finite(kind, dtype):
  x = np.random.default_rng(0).normal(size=(6, 4))
  x = {
    'zero': np.zeros_like(x),
    'duplicates': np.tile(x[:1], (6, 1)),
    'orthonormal': np.eye(6, 4),
    'huge': x * 1e20,
  }[kind].astype(dtype)
  loss, gradient = _bss(x, k=2)
  assert loss.dtype == jnp.float32 and gradient.dtype == dtype
  assert jnp.isfinite(loss) and jnp.all(jnp.isfinite(gradient))
  if kind == 'orthonormal':
    np.testing.assert_allclose(loss, 2.0, rtol=1e-6)


def test_bss_rejects_k():
  with pytest.raises(ValueError, match='k=5'):
    transfer.bss(jnp.ones((6, 4)), k=5)


@pytest.mark.parametrize('attention', [False, True])
def test_delta_tllib(tllib, assert_gradient_close, attention):
  losses, arrays = tllib
  kind = 'attention' if attention else 'feature_map'
  maps = [
    {
      f'stage{i + 1}': np.moveaxis(arrays[f'delta/{s}{i}'], 1, 3)
      for i in (0, 1)
    }
    for s in ('src', 'tgt')
  ]
  weights = {f'stage{i + 1}': arrays[f'delta/attention{i}'] for i in (0, 1)}

  def loss_fn(features):
    return LOSSES['delta'].function(
      {'features': features},
      {'features': maps[0]},
      None,
      channel_attention=weights if attention else None,
    )

  loss, gradient = jax.jit(jax.value_and_grad(loss_fn))(maps[1])
  np.testing.assert_allclose(loss, losses[f'delta/{kind}/loss'], rtol=1e-5)
  for i in (0, 1):
    expected = np.moveaxis(arrays[f'delta/{kind}/grad{i}'], 1, 3)
    assert_gradient_close(gradient[f'stage{i + 1}'], expected)


def test_delta_attention_golden(golden):
  data = golden('delta')
  teacher = data.outputs('teacher')
  data.check(
    lambda student: LOSSES['delta'].function(
      student, teacher, None, channel_attention=data['in_channel_attention']
    ),
    data.outputs('student'),
    variant='__attention',
  )


def test_delta_of_means_is_attention_that_is_even():
  rng = np.random.default_rng(0)
  shapes = {'stage1': (3, 4, 6, 5), 'stage2': (3, 2, 3, 8)}

  def draw(scale):
    maps = {name: scale * rng.normal(size=s) for name, s in shapes.items()}
    return {'features': maps}

  own, start = draw(1.0), draw(0.1)
  even = {name: np.full(s[-1], 1 / s[-1]) for name, s in shapes.items()}
  delta = LOSSES['delta'].function
  found = delta(own, start, None, mean_over_positions=True)
  expected = delta(own, start, None, channel_attention=even)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  # Maps of twice the side, each value four times, are no further apart.
  larger = [
    {'features': {n: m.repeat(2, 1).repeat(2, 2) for n, m in f.items()}}
    for f in (own['features'], start['features'])
  ]
  np.testing.assert_allclose(
    delta(*larger, None, mean_over_positions=True), found, rtol=1e-5
  )
  summed = delta(own, start, None)
  np.testing.assert_allclose(delta(*larger, None), 4 * summed, rtol=1e-5)


def test_delta_rejects_another_architecture():
  with pytest.raises(ValueError, match='own pretrained state'):
    LOSSES['delta'].function(
      {'features': {'stage1': jnp.ones((2, 3, 3, 4))}},
      {'features': {'stage1': jnp.ones((2, 3, 3, 5))}},
      None,
    )


def test_co_tuning_golden(tllib, assert_gradient_close):
  losses, arrays = tllib
  labels = arrays['cotuning/labels']
  relationship = transfer.category_relationship(
    arrays['cotuning/source_probs'], labels, 5
  )
  np.testing.assert_allclose(
    relationship, arrays['cotuning/relationship'], rtol=1e-5
  )
  loss, gradient = jax.jit(jax.value_and_grad(transfer.co_tuning))(
    arrays['cotuning/y_s'], labels[:6], relationship
  )
  np.testing.assert_allclose(loss, losses['cotuning/loss'], rtol=1e-5)
  assert_gradient_close(gradient, arrays['cotuning/grad'])


def test_category_relationship_of_an_absent_class_is_uniform():
  relationship = transfer.category_relationship(
    jnp.array([[0.9, 0.1], [0.7, 0.3]]), jnp.array([0, 0]), 2
  )
  np.testing.assert_allclose(relationship, [[0.8, 0.2], [0.5, 0.5]], rtol=1e-6)


@pytest.mark.parametrize('temperature', [1, 3])
def test_lwf_golden(tllib, assert_gradient_close, temperature):
  losses, arrays = tllib
  loss, gradient = jax.jit(jax.value_and_grad(transfer.lwf))(
    arrays['lwf_kd/student'], arrays['lwf_kd/teacher'], temperature=temperature
  )
  # tllib leaves out the factor T^2.
  expected = losses[f'lwf_kd/T{temperature}/loss(no T^2 factor)']
  np.testing.assert_allclose(loss, expected * temperature**2, rtol=1e-5)
  expected = arrays[f'lwf_kd/T{temperature}/grad'] * temperature**2
  assert_gradient_close(gradient, expected)


def test_stoch_norm_golden(tllib, assert_gradient_close):
  _, arrays = tllib
  arrays = {k[10:]: v for k, v in arrays.items() if k.startswith('stochnorm')}

  def to_nhwc(x):
    return np.moveaxis(x, 1, 3)

  def loss_fn(x):
    y, mean, var = transfer.stoch_norm(
      x,
      arrays['weight'],
      arrays['bias'],
      arrays['before/running_mean'],
      arrays['before/running_var'],
      select=arrays['s'],
    )
    return jnp.sum(jnp.square(y)), (y, mean, var)

  gradient, (y, mean, var) = jax.jit(jax.grad(loss_fn, has_aux=True))(
    to_nhwc(arrays['x'])
  )
  np.testing.assert_allclose(y, to_nhwc(arrays['out_train']), atol=1e-5)
  np.testing.assert_allclose(mean, arrays['after/running_mean'], rtol=1e-5)
  np.testing.assert_allclose(var, arrays['after/running_var'], rtol=1e-5)
  # PyTorch's backward pass reads the running variance after its update where a
  # channel used the running one before it; undo that in those channels.
  updated = (arrays['after/running_var'] + 1e-5) / (
    arrays['before/running_var'] + 1e-5
  )
  factor = np.where(arrays['s'] == 1, 1.0, np.sqrt(updated))
  expected = to_nhwc(arrays['grad_x(sum out^2)']) * factor.reshape(1, 1, 1, -1)
  assert_gradient_close(gradient, expected)


def test_stoch_norm_selects_at_random():
  x = jax.random.normal(jax.random.key(0), (8, 400)) + 3.0
  zeros, ones = jnp.zeros(400), jnp.ones(400)
  y, _, _ = transfer.stoch_norm(
    x, ones, zeros, zeros, ones, key=jax.random.key(1), p=0.25
  )
  batch = jnp.abs(jnp.mean(y, axis=0)) < 1e-4
  assert 0.15 < jnp.mean(batch) < 0.35
  with pytest.raises(ValueError, match='key='):
    transfer.stoch_norm(x, ones, zeros, zeros, ones)
