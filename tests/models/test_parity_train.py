"""One step in train mode against PyTorch: loss, gradients, BN statistics."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures import fill_rule
from tests.marks import slow
from tlkd_jax import models
from tlkd_jax.models.weights import pretrained
from tlkd_jax.runtime.trees import flatten

FIXTURES = pathlib.Path(__file__).parent.parent / 'fixtures'


def torch_names(model, tree):
  """{torch key: array} of a tree shaped like params or model_state."""
  table = pretrained.leaf_table(model)
  return {
    table[path][1].key: np.asarray(value)
    for path, value in flatten(tree).items()
  }


@pytest.mark.parametrize(
  'fixture',
  [
    'torchvision__resnet18',
    *slow('torchvision__mobilenet_v2', 'timm__tf_efficientnet_lite0'),
  ],
)
def test_loss_gradients_and_statistics_of_a_training_step(fixture):
  with np.load(FIXTURES / 'parity_train' / f'{fixture}.npz') as archive:
    reference = {k: archive[k] for k in archive.files}
  meta = json.loads(str(reference['meta']))
  entries = json.loads(
    str(np.load(FIXTURES / 'parity' / f'{fixture}.npz')['state_dict'])
  )
  state_dict = {
    name: fill_rule.fill(name, shape, meta['gain'])
    for name, shape, _ in entries
  }
  model = models.create_model(fixture.replace('__', '/'))
  variables = pretrained.from_torch(model, state_dict)
  labels = np.asarray(meta['labels'])

  def loss_fn(params, model_state, images):
    outputs, new_state = model.apply(
      params, model_state, images, norm_train=True
    )
    log_probs = jax.nn.log_softmax(outputs['logits'])
    loss = -log_probs[jnp.arange(2), labels].mean()
    return loss, (outputs['logits'], new_state)

  with jax.enable_x64(True):
    inputs = jax.tree.map(
      lambda x: np.asarray(x, np.float64),
      (*variables, fill_rule.make_input(*meta['input_hw'])),
    )
    step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, (logits, new_state)), grads = step(*inputs)

  np.testing.assert_allclose(loss, reference['loss'], rtol=1e-9)
  np.testing.assert_allclose(
    logits, reference['logits'], atol=1e-8 * reference['logits'].std()
  )
  grads = torch_names(model, grads)
  names = json.loads(str(reference['param_names']))
  assert set(names) == set(grads)
  norms = np.array([np.linalg.norm(grads[name]) for name in names])
  sums = np.array([grads[name].sum() for name in names])
  # A bias that the next BatchNorm takes away has a gradient of rounding errors.
  np.testing.assert_allclose(
    norms, reference['grad_norm'], rtol=1e-6, atol=1e-12
  )
  scale = np.array([grads[name].size ** 0.5 for name in names]) * norms
  error = np.abs(sums - reference['grad_sum'])
  assert (error < 1e-6 * scale + 1e-12).all()
  stats = torch_names(model, new_state)
  names = json.loads(str(reference['stat_names']))
  assert set(names) == set(stats)
  means = np.array([stats[name].mean() for name in names])
  np.testing.assert_allclose(means, reference['stat_mean'], rtol=1e-7)
  for key, value in reference.items():
    if key.startswith('stat/'):
      np.testing.assert_allclose(
        stats[key.removeprefix('stat/')], value, rtol=1e-6, atol=1e-9
      )
