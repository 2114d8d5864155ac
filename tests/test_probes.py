"""Teachers and students that are not fine-tuned, as runs like others."""

import collections
import dataclasses
import json

import jax
import numpy as np
import pytest

from tests import tiny
from tests.workdirs import arrays
from tlkd_jax import arms
from tlkd_jax.evaluation import calibration, metrics, teaching
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import UserError
from tlkd_jax.training import (
  decoding,
  folds,
  judging,
  logistic,
  networks,
  own_probe,
  probes,
  says,
  summary,
)
from tlkd_jax.training import run as run_parts

pytestmark = pytest.mark.usefixtures('tiny_models')

PROBE = {
  'teacher__probe_views': 1,
  'teacher__probe_folds': 3,
  'augment__crop': 'random_resized',
  'data__crop': 0.8,
}
HEAD = ('params.head.kernel', 'params.head.bias')


@pytest.fixture(scope='module', params=['probed', 'crossfitted'])
def teacher(request, cache_dir, tmp_path_factory):
  """(its settings, its workdir)."""
  workdir = tmp_path_factory.mktemp(request.param)
  config = tiny.make_config(
    'teacher', cache_dir, teacher__fit=request.param, **PROBE
  )
  with tiny.registered():
    arms.run(config, workdir, sharding.make_mesh())
  return config, workdir


def head_of(workdir):
  return [arrays(workdir, 'best')[name] for name in HEAD]


def test_the_backbone_stays_and_the_head_fits(teacher):
  config, workdir = teacher
  dataset = decoding.load_dataset(config)
  run = run_parts.set_up(config, workdir, dataset, sharding.make_mesh())
  found = arrays(workdir, 'best')
  start = {
    f'params.{name}': value
    for name, value in tiny.flatten(run.learners['teacher'].params).items()
  }
  same = [name for name in start if np.array_equal(start[name], found[name])]
  assert set(start) - set(same) == set(HEAD)

  features = probes.compute_features(run, 1)
  labels = dataset.splits['train'].labels
  of_image = logistic.make_folds(labels, 3, config.seed)
  if config.fit == 'probed':
    strength = logistic.choose(features, labels, of_image, 10)
    head = logistic.fit(features, labels, 10, strength)
  else:
    head = logistic.mean(logistic.cross_fit(features, labels, of_image, 10)[0])
  np.testing.assert_array_equal(found[HEAD[0]], head.kernel)
  np.testing.assert_array_equal(found[HEAD[1]], head.bias)


def test_its_summary_is_that_of_a_run(teacher):
  _, workdir = teacher
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['best_step'] == 0 and summary['seconds'] > 0
  saved = np.load(workdir / 'predictions' / 'test.npz')
  top1 = np.mean(saved['logits'].argmax(-1) == saved['labels'])
  assert summary['teacher']['test']['top1'] == pytest.approx(top1)


def test_views_are_those_of_a_student_of_the_seed(teacher):
  """The first is the image as it is evaluated."""
  config, workdir = teacher
  dataset = decoding.load_dataset(config)
  run = run_parts.set_up(config, workdir, dataset, sharding.make_mesh())
  features = probes.compute_features(run, 2)
  stored = dataset.splits['train'].images
  # Training images are kept larger than they are cut.
  assert stored.shape[1] == 20
  images = stored[:, 2:18, 2:18]
  loaded = run.learners['teacher']
  outputs, _ = jax.jit(loaded.network.model.apply)(
    loaded.params,
    loaded.model_state,
    loaded.network.prepare(images.astype(np.float32)),
  )
  np.testing.assert_allclose(
    features[:, 0], outputs['pre_logits'], rtol=1e-5, atol=1e-5
  )
  assert np.abs(features[:, 1] - features[:, 2]).max() > 1e-3


@pytest.fixture(scope='module')
def student(teacher, cache_dir, tmp_path_factory):
  """mode -> workdir of a short run under the teacher."""
  asked = []

  def count(run, eval_step, variables, split, name=''):
    asked.append((name, split))
    return predict(run, eval_step, variables, split, name)

  def call(mode):
    workdir = tmp_path_factory.mktemp(mode)
    config = tiny.make_config(
      'kd',
      cache_dir,
      num_steps=6,
      teacher__checkpoint=str(teacher[1]),
      targets__mode=mode,
      targets__views=2,
      targets__dtype='float32',
      targets__dir=str(workdir / 'targets'),
      augment__crop='random_resized',
    )
    asked.clear()
    arms.run(config, workdir, sharding.make_mesh())
    # What was measured before the first step is in the summary at the end.
    whose = collections.Counter(asked)
    assert whose['teacher', 'validation'] == whose['teacher', 'test'] == 1
    return workdir

  predict = summary.predict
  with tiny.registered(), pytest.MonkeyPatch.context() as patch:
    for module in (says, summary):
      patch.setattr(module, 'predict', count)
    return {mode: call(mode) for mode in ('online', 'cached')}


def test_stored_targets_are_bitwise_online(student):
  online, cached = (arrays(student[mode]) for mode in ('online', 'cached'))
  assert online.keys() == cached.keys()
  for name, value in online.items():
    np.testing.assert_array_equal(value, cached[name], err_msg=name)


def test_the_target_of_an_image_is_of_the_head_that_never_saw_it(
  teacher, student, cache_dir
):
  config, workdir = teacher
  found = folds.read(workdir, None)
  if config.fit == 'probed':
    assert found is None
    return
  settings = tiny.make_config('kd', cache_dir, teacher__checkpoint=str(workdir))
  dataset = decoding.load_dataset(settings)
  split = dataset.splits['train']
  run = run_parts.set_up(config, workdir, dataset, sharding.make_mesh())
  features = probes.compute_features(run, 0)[:, 0]
  (loaded,) = networks.load_teachers(settings, dataset.class_names).values()
  placed = folds.place(loaded.folds, split)
  said = np.asarray(folds.logits(placed, features, split.indices))
  of_image = logistic.make_folds(split.labels, 3, config.seed)
  assert set(of_image) == {0, 1, 2}
  for row, fold in enumerate(of_image):
    expected = features[row] @ found['kernel'][fold] + found['bias'][fold]
    np.testing.assert_allclose(said[row], expected, rtol=1e-4, atol=1e-4)


def test_of_images_in_no_fold_the_mean_speaks(teacher, cache_dir):
  config, workdir = teacher
  if config.fit == 'probed':
    return
  found = folds.read(workdir, None)
  split = decoding.load_dataset(config).splits['test']
  placed = folds.place(found, split)
  assert (placed['fold'] == 3).all()
  features = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
  heads = zip(found['kernel'], found['bias'], strict=True)
  mean = np.mean([features @ kernel + bias for kernel, bias in heads], axis=0)
  # Known to the split, and beyond all of it.
  for index in (split.indices[:4], np.arange(10**6, 10**6 + 4)):
    actual = folds.logits(placed, features, index)
    np.testing.assert_allclose(actual, mean, rtol=1e-4, atol=1e-4)


def test_a_probed_student_of_balanced_classes(cache_dir, tmp_path):
  """Of a tenth each: every logit is tau log 10 above what labels alone say."""
  config = tiny.make_config(
    'tl',
    cache_dir,
    student__fit='probed',
    student__probe_views=0,
    student__probe_folds=3,
    data__balance='logit_adjustment',
    data__balance_tau=2.0,
  )
  mesh = sharding.make_mesh()
  summary = arms.run(config, tmp_path, mesh)['tl']
  assert summary['best_step'] == 0 and 'student' in summary
  dataset = decoding.load_dataset(config)
  run = run_parts.set_up(config, tmp_path, dataset, mesh)
  features, labels = (
    probes.compute_features(run, 0),
    run.dataset.splits['train'].labels,
  )
  of_image = logistic.make_folds(labels, 3, config.seed)
  strength = logistic.choose(features, labels, of_image, 10)
  head = logistic.fit(features, labels, 10, strength)
  kernel, bias = head_of(tmp_path)
  np.testing.assert_array_equal(kernel, head.kernel)
  np.testing.assert_allclose(bias, head.bias + 2 * np.log(10), rtol=1e-5)


def test_early_is_the_step_of_the_least_scaled_nll(
  cache_dir, tmp_path, monkeypatch
):
  seen = []
  predict = judging.predict

  def recorded(*args):
    seen.append(predict(*args))
    return seen[-1]

  monkeypatch.setattr(judging, 'predict', recorded)
  config = tiny.make_config(
    'teacher',
    cache_dir,
    teacher__fit='early',
    num_steps=12,
    eval_every_steps=2,
    optimizer__learning_rate=1.0,
  )
  summary = arms.run(config, tmp_path, sharding.make_mesh())['teacher']
  scaled = []
  for found in seen:
    temperature = calibration.fit_temperature(found.logits, found.labels)
    scaled.append(
      metrics.METRICS['nll'](found.logits / temperature, found.labels)
    )
  assert len(scaled) == 6
  assert summary['best_step'] == 2 * (1 + int(np.argmin(scaled)))


def test_a_class_of_one_image_has_no_folds(cache_dir, tmp_path):
  config = tiny.make_config(
    'teacher', cache_dir, num_train_per_class=1, teacher__fit='probed'
  )
  with pytest.raises(UserError, match='class 0 has 1 training image'):
    arms.run(config, tmp_path, sharding.make_mesh())


def test_what_the_teacher_says_is_measured(teacher, student, cache_dir):
  """On the first view of the training images by the head that speaks there."""
  config, workdir = teacher
  summary = json.loads((student['online'] / 'summary.json').read_text())
  said = summary['teacher_says']['teacher']
  settings = tiny.make_config(
    'kd',
    cache_dir,
    teacher__checkpoint=str(workdir),
    augment__crop='random_resized',
  )
  dataset = decoding.load_dataset(settings)
  split = dataset.splits['train']
  run = run_parts.set_up(config, workdir, dataset, sharding.make_mesh())
  features = probes.compute_features(run, 1)[:, 1]
  (loaded,) = networks.load_teachers(settings, dataset.class_names).values()
  if loaded.folds is None:
    layer = loaded.params['head']
    logits = features @ np.asarray(layer['kernel']) + np.asarray(layer['bias'])
  else:
    placed = folds.place(loaded.folds, split)
    logits = np.asarray(folds.logits(placed, features, split.indices))
  expected = teaching.describe(logits, split.labels, 2.0)
  assert said['training views'] == pytest.approx(expected, rel=1e-3, abs=1e-3)
  assert said['temperature'] == 2.0
  assert 0 < said['validation']['p_label'] < 1


def test_a_student_from_scratch_has_no_probe_of_its_own(student):
  for workdir in student.values():
    said = json.loads((workdir / 'teacher_says.json').read_text())['teacher']
    assert said['student_probe_nll'] is None and said['scaled_nll'] > 0
    assert said['sham'] == 'off'


def test_the_students_own_probe(teacher, cache_dir, tmp_path, caplog):
  """Of a student that starts from a run; fitted to training images alone."""
  settings = tiny.make_config(
    'kd',
    cache_dir,
    num_steps=1,
    teacher__checkpoint=str(teacher[1]),
    student__name='tiny_teacher',
    student__checkpoint=str(teacher[1]),
    distillation__sham='uniform',
    data__balance='logit_adjustment',
    data__crop=0.8,
    augment__crop='random_resized',
  )
  dataset = decoding.load_dataset(settings)
  mesh = sharding.make_mesh()
  run = run_parts.set_up(settings, tmp_path, dataset, mesh)
  logits, labels = own_probe.predict(run)
  np.testing.assert_array_equal(labels, dataset.splits['validation'].labels)

  at_first = dataclasses.replace(run.learners['student'], look_alikes=())
  images = {
    'train': dataset.splits['train'].images[:, 2:18, 2:18],
    'validation': dataset.splits['validation'].images,
  }
  say = jax.jit(at_first.network.model.apply)
  features = {
    split: np.asarray(
      say(
        at_first.params,
        at_first.model_state,
        at_first.network.prepare(values.astype(np.float32)),
      )[0]['pre_logits']
    )
    for split, values in images.items()
  }
  own = dataset.splits['train'].labels
  of_image = logistic.make_folds(own, 3, settings.seed)
  given = features['train'][:, None], own
  strengths = logistic.STRENGTHS[::2]
  strength = logistic.choose(*given, of_image, 10, strengths)
  head = logistic.fit(*given, 10, strength, data=settings.data)
  np.testing.assert_allclose(
    logits, head.logits(features['validation']), rtol=1e-3, atol=1e-3
  )

  caplog.set_level('INFO', logger='absl')
  unseen = says.on_validation(run)
  said = says.measure(run, {}, unseen)['teacher']
  nll = teaching.scaled_nll(logits, labels)
  assert said['student_probe_nll'] == pytest.approx(nll)
  assert f"student's own features {nll:.3f}" in caplog.text
  worse = said['scaled_nll'] > nll
  assert worse == any('knows less' in line for line in said['warnings'])
  # What the student hears is the sham.
  assert said['sham'] == 'uniform' and 'a sham, uniform' in caplog.text
  (tmp_path / 'teacher_says.json').unlink()
  lesson = run.lessons['student']
  objective = dataclasses.replace(lesson.objective, sham=None)
  lessons = {'student': dataclasses.replace(lesson, objective=objective)}
  run = dataclasses.replace(run, lessons=lessons)
  real = says.measure(run, {}, unseen)['teacher']
  for place in ('training views', 'validation'):
    assert said[place]['p_label'] == pytest.approx(real[place]['p_label'])
    assert said[place]['entropy'] > real[place]['entropy'] + 1e-3


def test_of_one_image_of_a_class_there_is_no_probe(
  teacher, cache_dir, tmp_path, caplog
):
  settings = tiny.make_config(
    'kd',
    cache_dir,
    num_train_per_class=1,
    teacher__checkpoint=str(teacher[1]),
    student__name='tiny_teacher',
    student__checkpoint=str(teacher[1]),
  )
  dataset = decoding.load_dataset(settings)
  run = run_parts.set_up(settings, tmp_path, dataset, sharding.make_mesh())
  caplog.set_level('INFO', logger='absl')
  assert own_probe.predict(run) is None
  assert 'of 10 training images a class has but one' in caplog.text


def test_labelled_images_are_chosen_evenly():
  rows = own_probe.spread(np.array([0, -1, 1, 1, -1, 0, 2]), 100)
  np.testing.assert_array_equal(rows, [0, 2, 3, 5, 6])
  assert own_probe.spread(np.zeros(1000, int), 10).size == 10


def test_what_is_said_is_measured_once(student):
  """Bitwise the same summary, however the targets came."""
  online, cached = (
    json.loads((student[mode] / 'teacher_says.json').read_text())
    for mode in ('online', 'cached')
  )
  assert online == cached
