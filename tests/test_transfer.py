"""Transfer baselines in the step and in a run, by hand and resumed."""

import dataclasses
import functools
import shutil

import jax
import numpy as np
import optax
import pytest
from scipy import special

from tests import tiny, workdirs
from tests.test_train_step import (
  make_batch,
  make_lessons_step,
  make_models,
  variables,
)
from tlkd_jax import arms
from tlkd_jax.models import create_model
from tlkd_jax.models.weights import pretrained, torch_files
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.settings import with_values
from tlkd_jax.training import decoding, guides, networks, optimizers, run, start
from tlkd_jax.training.objective import Objective
from tlkd_jax.training.state import Beginning, create
from tlkd_jax.training.step import Lesson

pytestmark = pytest.mark.usefixtures('tiny_models')
SOURCE_CLASSES = 7
ALL = {
  'student__weights': 'a file with a head',
  'transfer__l2_sp': 0.3,
  'transfer__l2_sp_head': 0.2,
  'transfer__delta': 0.01,
  'transfer__delta_stages': ('stage2',),
  'transfer__bss': 0.05,
  'transfer__bss_k': 2,
  'transfer__lwf': 0.4,
  'transfer__lwf_temperature': 3.0,
  'transfer__co_tuning': 0.6,
  'transfer__co_tuning_temperature': 2.5,
}


def head(seed):
  rng = np.random.default_rng(seed)
  return {
    'kernel': rng.normal(size=(16, SOURCE_CLASSES)).astype(np.float32),
    'bias': rng.normal(size=SOURCE_CLASSES).astype(np.float32),
  }


def relationship():
  rng = np.random.default_rng(9)
  return special.softmax(rng.normal(size=(5, SOURCE_CLASSES)), -1).astype('f4')


@functools.cache
def first_metrics():
  """Of a step whose weights are not those of the start."""
  mesh = sharding.make_mesh(1)
  student, _ = make_models()
  config = tiny.make_config('tl', **ALL)
  schedule = optax.constant_schedule(0.05)
  lesson = Lesson(
    student,
    Objective(terms=start.make_terms(config, student.model)),
    optimizers.make_optimizer(student.model, schedule, config.optimizer),
  )
  step = make_lessons_step(
    {'student': lesson}, {start.NAME: student}, schedule, mesh
  )
  params, model_state = variables(student, 1)
  learned = {'weights': params, 'projector': {}, 'source_head': head(1)}
  state = create(
    {'student': Beginning(learned, model_state, {})},
    {'student': lesson.optimizer},
  )
  params, model_state = variables(student, 2)
  given = {
    'params': params,
    'model_state': model_state,
    'source_head': head(2),
    'relationship': relationship(),
  }
  constants = {'guides': {start.NAME: given}, 'seed': np.int32(0)}
  state, metrics = step(
    jax.device_put(state, sharding.replicated(mesh)),
    sharding.replicate(constants, mesh),
    sharding.shard_batch(make_batch(), mesh),
  )
  learner = state.learners['student']
  return jax.device_get((metrics, learner.params['source_head']))


def outputs(seed):
  student, _ = make_models()
  images = make_batch()['image'].astype(np.float32)
  params, model_state = variables(student, seed)
  given = {'params': params, 'model_state': model_state}
  speak = jax.jit(functools.partial(guides.speak, student))
  return jax.tree.map(np.float64, speak(given, images))


def test_terms_by_hand():
  metrics, _ = first_metrics()
  own, initial = outputs(1), outputs(2)
  student, _ = make_models()
  flat = [flatten(variables(student, seed)[0]) for seed in (1, 2)]
  parts = {True: 0.0, False: 0.0}
  for path, value in flat[0].items():
    in_head = path.startswith('head.')
    other = 0.0 if in_head else flat[1][path]
    parts[in_head] += np.sum((np.float64(value) - other) ** 2)
  expected = {'l2_sp_loss': 0.15 * parts[False] + 0.1 * parts[True]}
  maps = [o['features']['stage2'] for o in (own, initial)]
  square = (maps[0] - maps[1]) ** 2
  # Summed over images and channels, a mean over positions.
  expected['delta_loss'] = 0.5 * square.mean((1, 2)).sum()
  assert square[0, :, :, 0].size > 1
  singular = np.linalg.svd(own['pre_logits'], compute_uv=False)
  expected['bss_loss'] = np.sum(np.sort(singular)[:2] ** 2)
  heads = [jax.tree.map(np.float64, head(seed)) for seed in (1, 2)]
  p, q = (
    o['pre_logits'] @ h['kernel'] + h['bias']
    for o, h in zip((own, initial), heads, strict=True)
  )
  log_p, log_q = (special.log_softmax(z / 3.0, -1) for z in (p, q))
  kl = (np.exp(log_q) * (log_q - log_p)).sum(-1).mean()
  expected['lwf_loss'] = 9.0 * kl
  rows = relationship()[make_batch()['label']]
  log_p = special.log_softmax(p / 2.5, -1)
  expected['co_tuning_loss'] = -(rows * log_p).sum(-1).mean()
  for name, value in expected.items():
    assert metrics[name] == pytest.approx(value, rel=2e-4), name
  weights = {'l2_sp': 1.0, 'delta': 0.01, 'bss': 0.05, 'lwf': 0.4}
  weights['co_tuning'] = 0.6
  total = sum(w * expected[f'{name}_loss'] for name, w in weights.items())
  total += metrics['hard_loss']
  assert metrics['loss'] == pytest.approx(total, rel=2e-4)


def test_the_source_head_learns():
  _, after = first_metrics()
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after, head(1))
  assert min(jax.tree.leaves(moved)) > 1e-4


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """Weights of the tiny student with a head of seven classes."""
  with tiny.registered():
    model = create_model('tiny', num_classes=SOURCE_CLASSES)
    student, _ = make_models()
    params, model_state = variables(student, 3)
  state_dict = pretrained.to_torch(
    model, params | {'head': head(3)}, model_state
  )
  path = tmp_path_factory.mktemp('weights') / 'tiny.safetensors'
  torch_files.write_safetensors(path, state_dict)
  return str(path)


def fine_tune(arm, cache_dir, weights, workdir, **changes):
  settings = {
    'student__weights': weights,
    'transfer__l2_sp': 0.1,
    'transfer__delta': 1e-4,
    'transfer__bss': 1e-3,
    'transfer__lwf': 1.0,
    'transfer__co_tuning': 0.1,
  }
  config = tiny.make_config(arm, cache_dir, **(settings | changes))
  return arms.run(config, workdir, sharding.make_mesh(1))


def test_a_resumed_run_is_the_uninterrupted_one(cache_dir, weights, tmp_path):
  """The start is made again: every array is equal, bit for bit."""
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  fine_tune('tl', cache_dir, weights, whole)
  shutil.copytree(whole, cut)
  (cut / 'summary.json').unlink()
  shutil.rmtree(cut / 'checkpoints' / 'latest' / '6')
  fine_tune('tl', cache_dir, weights, cut)
  found, expected = workdirs.arrays(cut), workdirs.arrays(whole)
  assert expected['step'] == 6
  assert any('source_head' in name for name in expected)
  # The start is not part of the checkpoint.
  assert not any('start' in name for name in expected)
  assert set(found) == set(expected)
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize('temperature', [1.0, 5.0])
def test_the_table_of_classes_is_that_of_the_source(
  cache_dir, weights, temperature
):
  config = tiny.make_config(
    'tl',
    cache_dir,
    student__weights=weights,
    transfer__co_tuning=1.0,
    transfer__co_tuning_temperature=temperature,
  )
  dataset = decoding.load_dataset(config)
  learner = networks.load(config, 'student', dataset.class_names)
  terms = start.make_terms(config, learner.network.model)
  begun = start.load(config, terms, learner, dataset, sharding.make_mesh(1))
  np.testing.assert_array_equal(
    begun['source_head']['kernel'], head(3)['kernel']
  )
  assert begun['relationship'].shape == (10, SOURCE_CLASSES)
  np.testing.assert_allclose(begun['relationship'].sum(1), 1.0, rtol=1e-5)
  split = dataset.splits['train']
  images = split.images[split.labels == 4]
  margin = (images.shape[1] - 16) // 2
  images = images[:, margin : margin + 16, margin : margin + 16]
  speak = jax.jit(functools.partial(guides.speak, learner.network))
  said = speak(run.constants(learner, split), images.astype(np.float32))
  features = np.float64(said['pre_logits'])
  logits = features @ head(3)['kernel'] + head(3)['bias']
  expected = special.softmax(logits / temperature, -1).mean(0)
  np.testing.assert_allclose(begun['relationship'][4], expected, rtol=1e-4)


def test_scratch_has_no_source_head(cache_dir):
  with pytest.raises(ValueError, match="student.weights is 'scratch'"):
    tiny.make_config('tl', cache_dir, transfer__lwf=1.0)
  config = tiny.make_config(
    'tl', cache_dir, transfer__lwf=1.0, student__weights='pretrained'
  )
  dataset = decoding.load_dataset(config)
  scratch = tiny.make_config('tl', cache_dir)
  learner = networks.load(scratch, 'student', dataset.class_names)
  terms = start.make_terms(config, learner.network.model)
  with pytest.raises(ValueError, match="student.weights 'pretrained' has none"):
    start.load(config, terms, learner, dataset, sharding.make_mesh(1))


def test_the_pretrained_head_goes_with_its_own_backbone(cache_dir, weights):
  """Not with that of a finished run, but for one in which the head learned."""
  config = tiny.make_config(
    'tl',
    cache_dir,
    transfer__lwf=1.0,
    student__weights=weights,
    student__checkpoint='runs/a',
  )
  plain = with_values(config, {'student.checkpoint': None})
  learner = networks.load(plain, 'student', [str(n) for n in range(10)])
  moved = jax.tree.map(lambda value: value + 0.01, learner.params)
  probe = learner.params | {'head': moved['head']}
  start.load_source(config, dataclasses.replace(learner, params=probe))
  # As positions of another size have.
  longer = jax.tree.map(lambda value: np.append(value, value, 0), moved)
  for params in (moved, longer):
    with pytest.raises(ValueError, match='runs/a .student.checkpoint. has an'):
      start.load_source(config, dataclasses.replace(learner, params=params))
  start.load_source(plain, learner)


def test_stochastic_norm_is_between_frozen_and_train():
  """Chance 0 is the running statistics, but updates them; 1 is the batch."""
  student, _ = make_models()
  params, model_state = jax.device_put(variables(student, 1))
  images = student.prepare(make_batch()['image'].astype(np.float32))

  @functools.partial(jax.jit, static_argnames=('chance', 'norm_train'))
  def features(chance, norm_train, number):
    outputs, new = student.model.apply(
      params,
      model_state,
      images,
      train=True,
      norm_train=norm_train,
      key=jax.random.key(number),
      batch_chance=chance,
    )
    return outputs['pre_logits'], new

  frozen, _ = features(1.0, False, 0)
  batch, statistics = features(1.0, True, 0)
  never, moved = features(0.0, True, 0)
  half, _ = features(0.5, True, 0)
  other, _ = features(0.5, True, 1)
  np.testing.assert_allclose(never, frozen, rtol=1e-4, atol=1e-4)
  assert np.abs(half - frozen).max() > 1e-2
  assert np.abs(half - batch).max() > 1e-2
  assert np.abs(half - other).max() > 1e-2
  stem = [s['stem']['norm']['var'] for s in (moved, statistics)]
  np.testing.assert_allclose(*stem, rtol=1e-4)
