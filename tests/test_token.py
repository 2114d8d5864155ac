"""A distillation token: which head learns from whom."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from tests import tiny
from tests.test_train_step import CLASSES, make_batch, variables
from tlkd_jax.models import create_model
from tlkd_jax.models.network import Network
from tlkd_jax.training import lessons
from tlkd_jax.training import objective as objectives
from tlkd_jax.training.objective import Objective, Term
from tlkd_jax.training.state import Learner

pytestmark = pytest.mark.usefixtures('tiny_models')

LABELS = make_batch()['label']
TEACHER = np.random.default_rng(5).normal(size=(8, CLASSES)).astype(np.float32)
GUIDE = {'teacher': {'logits': 3 * TEACHER, 'head': {}}}


def evaluate(loss_sum, outputs):
  """(value, metrics) of an objective on these outputs."""
  learner = Learner({'projector': {}}, {}, {}, {}, None)
  value, _, metrics = objectives.evaluate(
    loss_sum,
    ('teacher',),
    learner,
    outputs,
    GUIDE,
    np.eye(CLASSES, dtype=np.float32)[LABELS],
    {'label': LABELS, 'index': np.arange(8)},
    jax.random.key(0),
    np.int32(0),
  )
  return value, metrics


def by_token(name='kd', *, hard=0.5, soft=0.5, by_token=True, **options):
  term = Term(name, optax.constant_schedule(soft), options)
  return Objective(hard, 0.0, (term,), by_token=by_token)


def heads(seed=6):
  one, two = np.random.default_rng(seed).normal(size=(2, 8, CLASSES))
  return {
    'class_logits': one.astype(np.float32),
    'distillation_logits': two.astype(np.float32),
    'logits': ((one + two) / 2).astype(np.float32),
  }


def test_hard_labels_of_the_teacher_by_hand():
  """DeiT, arXiv 2012.12877, equation 3."""
  outputs = heads()
  logs = {name: special.log_softmax(z, -1) for name, z in outputs.items()}
  rows = np.arange(8)
  hard = -logs['class_logits'][rows, LABELS].mean()
  soft = -logs['distillation_logits'][rows, TEACHER.argmax(-1)].mean()
  value, metrics = evaluate(by_token('pseudo_label', threshold=0.0), outputs)
  np.testing.assert_allclose(value, hard / 2 + soft / 2, rtol=1e-5)
  # What is answered, and so what is counted as right, is the mean.
  right = outputs['logits'].argmax(-1) == LABELS
  np.testing.assert_allclose(metrics['accuracy'], right.mean())


@pytest.mark.parametrize('token', [True, False])
def test_each_head_has_its_gradient(token):
  loss_sum = by_token(temperature=2.0, by_token=token)
  gradient = jax.jit(jax.grad(lambda x: evaluate(loss_sum, x)[0]))(heads())
  sizes = {name: float(np.abs(value).max()) for name, value in gradient.items()}
  assert (sizes['logits'] > 0) == (not token)
  assert (sizes['class_logits'] > 0) == token
  assert (sizes['distillation_logits'] > 0) == token
  if not token:
    return
  one_hot = np.eye(CLASSES)[LABELS]
  expected = (special.softmax(heads()['class_logits'], -1) - one_hot) / 16
  np.testing.assert_allclose(gradient['class_logits'], expected, atol=1e-6)
  p, q = (
    special.softmax(z / 2, -1)
    for z in (heads()['distillation_logits'], 3 * TEACHER)
  )
  expected = 2.0 * (p - q) / 16
  np.testing.assert_allclose(
    gradient['distillation_logits'], expected, atol=1e-6
  )


def test_the_heads_of_the_network_learn_apart():
  """From settings to parameters: what each of the two losses moves."""
  config = tiny.make_config(
    'kd', student__name='tiny_deit', distillation__token=True
  )
  loss_sum = lessons.make_objective(config, None, guided=True)
  assert loss_sum.by_token
  network = Network(
    create_model('tiny_deit', num_classes=CLASSES), 16, jnp.float32
  )
  params, model_state = variables(network, 1)

  def value(params, hard, soft):
    images = network.prepare(make_batch()['image'].astype(np.float32))
    outputs, _ = network.model.apply(params, model_state, images)
    term = Term('kd', lambda step: soft, {'temperature': 2.0})
    loss_sum = Objective(hard, 0.0, (term,), by_token=True)
    return evaluate(loss_sum, outputs)[0], outputs

  gradient = jax.jit(jax.grad(value, has_aux=True))
  (of_labels, outputs), (of_teacher, _) = (
    gradient(params, *weights) for weights in ((1.0, 0.0), (0.0, 1.0))
  )
  mean = (outputs['class_logits'] + outputs['distillation_logits']) / 2
  np.testing.assert_allclose(outputs['logits'], mean, rtol=1e-6)
  for found, moved, other in (
    (of_labels, 'head', 'head_distillation'),
    (of_teacher, 'head_distillation', 'head'),
  ):
    assert np.abs(found[moved]['kernel']).max() > 1e-3
    for leaf in jax.tree.leaves(found[other]):
      assert not np.any(leaf)
    # Both move what is below: attention mixes the tokens.
    assert np.abs(found['patch']['kernel']).max() > 1e-4


def test_without_it_the_mean_learns_from_both():
  config = tiny.make_config('kd', student__name='tiny_deit')
  assert not lessons.make_objective(config, None, guided=True).by_token
