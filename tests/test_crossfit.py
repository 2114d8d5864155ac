"""Teachers of several fine-tuned networks, each of which missed a fold."""

import dataclasses
import json

import numpy as np
import pytest

from tests import tiny
from tests.workdirs import arrays
from tlkd_jax import arms
from tlkd_jax.evaluation import evaluate
from tlkd_jax.runtime import sharding
from tlkd_jax.settings import WrongSettings
from tlkd_jax.training import (
  crossfit,
  decoding,
  drawing,
  folds,
  guides,
  inputs,
  logistic,
  loop,
  networks,
  views,
)
from tlkd_jax.training import run as run_parts

pytestmark = pytest.mark.usefixtures('tiny_models')

OPTIONS = {
  'teacher__probe_folds': 3,
  'augment__crop': 'random_resized',
  'data__crop': 0.8,
  'num_steps': 4,
  'eval_every_steps': 4,
  'optimizer__learning_rate': 0.3,
}


def make_config(cache_dir, **changes):
  return tiny.make_config(
    'teacher', cache_dir, teacher__fit=crossfit.KIND, **OPTIONS | changes
  )


@pytest.fixture(scope='module')
def teacher(cache_dir, tmp_path_factory):
  """(its settings, its workdir)."""
  workdir = tmp_path_factory.mktemp('crossfit')
  config = make_config(cache_dir)
  with tiny.registered():
    arms.run(config, workdir, sharding.make_mesh())
  return config, workdir


def student_settings(cache_dir, workdir, **changes):
  return tiny.make_config(
    'kd',
    cache_dir,
    **OPTIONS | {'teacher__checkpoint': str(workdir)} | changes,
  )


def said_by_each(settings, teacher, split):
  """Logits [F, N, K] of the networks of a teacher on a view of the images."""
  _, workdir = teacher
  mesh = sharding.make_mesh()
  dataset = decoding.load_dataset(settings)
  found = []
  for number in (1, 2, 3):
    place = str(crossfit.folder_of(workdir, number))
    own = student_settings(settings.data.cache_dir, place)
    (loaded,) = networks.load_teachers(own, dataset.class_names).values()
    assert loaded.folds is None
    found.append(said(settings, loaded, dataset, split, mesh))
  return np.stack(found)


def said(settings, loaded, dataset, split, mesh):
  """Logits [N, K] of a frozen teacher on view 0 of a split, as in the step."""
  augmentation = drawing.make_augmentation(settings, dataset)
  compute = views.make_compute(loaded.network, augmentation, ('logits',), mesh)
  given = sharding.replicate(
    (
      run_parts.constants(loaded, split),
      np.int32(settings.seed),
    ),
    mesh,
  )
  outputs = views.of_view(compute, given, split, 0, 8, mesh)
  logits = [np.asarray(one['logits']) for one in outputs]
  return np.concatenate(logits)[: len(split)]


def test_every_image_is_spoken_of_by_the_network_that_never_saw_it(
  teacher, cache_dir
):
  config, workdir = teacher
  settings = student_settings(cache_dir, workdir)
  dataset = decoding.load_dataset(settings)
  split = dataset.splits['train']
  of_image = logistic.make_folds(split.labels, 3, config.seed)
  assert set(of_image) == {0, 1, 2}
  # What each was fitted to, by number in the data set.
  for number in (1, 2, 3):
    own = crossfit.without(config, number)
    seen = inputs.training_data(own, decoding.load_dataset(own)).splits['train']
    missed = split.indices[of_image == number - 1]
    assert not set(missed) & set(seen.indices)
    assert set(missed) | set(seen.indices) == set(split.indices)
    told = json.loads(
      (crossfit.folder_of(workdir, number) / 'summary.json').read_text()
    )
    assert told['num_train'] == len(seen) < len(split)
  (loaded,) = networks.load_teachers(settings, dataset.class_names).values()
  whole = said(settings, loaded, dataset, split, sharding.make_mesh())
  each = said_by_each(settings, teacher, split)
  expected = each[of_image, np.arange(len(split))]
  np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-4)
  # Which of them it is matters.
  assert np.abs(
    whole - each[(of_image + 1) % 3, np.arange(len(split))]
  ).max() > (0.05)


def test_of_other_images_the_mean_speaks(teacher, cache_dir):
  """In the step, and in the predictions of the run itself."""
  _, workdir = teacher
  settings = student_settings(cache_dir, workdir)
  dataset = decoding.load_dataset(settings)
  (loaded,) = networks.load_teachers(settings, dataset.class_names).values()
  validation = dataset.splits['validation']
  whole = said(settings, loaded, dataset, validation, sharding.make_mesh())
  each = said_by_each(settings, teacher, validation)
  np.testing.assert_allclose(whole, each.mean(0), rtol=1e-4, atol=1e-4)
  own, *parts = (
    evaluate.load(place / 'predictions' / 'test.npz')
    for place in (
      workdir,
      *(crossfit.folder_of(workdir, number) for number in (1, 2, 3)),
    )
  )
  mean = np.mean([one.logits for one in parts], axis=0)
  np.testing.assert_allclose(own.logits, mean, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(own.indices, parts[0].indices)


def test_a_flipped_label_changes_no_target_of_its_image(
  teacher, cache_dir, tmp_path, monkeypatch
):
  """Given the folds, the network that speaks of it never knew its label."""
  config, workdir = teacher
  dataset = decoding.load_dataset(config)
  split = dataset.splits['train']
  of_image = logistic.make_folds(split.labels, 3, config.seed)
  image = 5
  number = int(of_image[image]) + 1
  labels = split.labels.copy()
  labels[image] = (labels[image] + 1) % 10
  flipped = dataclasses.replace(
    dataset,
    splits=dataset.splits
    | {'train': dataclasses.replace(split, labels=labels)},
  )
  monkeypatch.setattr(logistic, 'make_folds', lambda *_: of_image)
  other = number % 3 + 1
  for which in (number, other):
    own = crossfit.without(config, which)
    loop.fine_tune(own, tmp_path / str(which), flipped, sharding.make_mesh())
    before = arrays(crossfit.folder_of(workdir, which), 'best')
    after = arrays(tmp_path / str(which), 'best')
    same = all(np.array_equal(before[name], after[name]) for name in before)
    assert same == (which == number)


def test_it_is_resumed_bitwise(teacher, cache_dir, tmp_path):
  """Stopped after a fold, and within one, it ends as if it had not been."""
  config, workdir = teacher
  calls = []

  class Stopped(Exception):
    pass

  def until(most):
    def fine_tune(*args):
      if len(calls) == most:
        raise Stopped
      calls.append(args)
      return loop.fine_tune(*args)

    return fine_tune

  dataset = decoding.load_dataset(config)
  run = run_parts.set_up(config, tmp_path, dataset, sharding.make_mesh())
  with pytest.raises(Stopped):
    crossfit.fit(run, dataset, until(1))
  assert not (tmp_path / 'summary.json').exists()
  arms.run(config, tmp_path, sharding.make_mesh())
  before, after = arrays(workdir, 'best'), arrays(tmp_path, 'best')
  assert before.keys() == after.keys()
  for name, value in before.items():
    np.testing.assert_array_equal(value, after[name], err_msg=name)
  for name, value in folds.read(workdir, None).items():
    np.testing.assert_array_equal(value, folds.read(tmp_path, None)[name])


def test_stored_targets_are_bitwise_online(teacher, cache_dir, tmp_path):
  found = []
  for mode in ('online', 'cached'):
    settings = student_settings(
      cache_dir,
      teacher[1],
      targets__mode=mode,
      targets__views=2,
      targets__dtype='float32',
      targets__dir=str(tmp_path / 'targets'),
    )
    summary = arms.run(settings, tmp_path / mode, sharding.make_mesh())['kd']
    assert summary['teacher_says']['teacher']['scaled_nll'] > 0
    found.append(arrays(tmp_path / mode))
  for name, value in found[0].items():
    np.testing.assert_array_equal(value, found[1][name], err_msg=name)


def test_classes_in_another_order_are_matched(teacher, cache_dir):
  _, workdir = teacher
  settings = student_settings(cache_dir, workdir)
  names = decoding.load_dataset(settings).class_names
  order = np.roll(np.arange(len(names)), 3)
  (straight,) = networks.load_teachers(settings, names).values()
  (turned,) = networks.load_teachers(
    settings, [names[k] for k in order]
  ).values()
  images = np.full((2, 16, 16, 3), 90.0, np.float32)
  images[1, :8] = 200.0
  logits = [
    np.asarray(
      guides.speak(
        one.network,
        {'params': one.params, 'model_state': one.model_state},
        images,
      )['logits']
    )
    for one in (straight, turned)
  ]
  np.testing.assert_allclose(logits[1], logits[0][:, order], rtol=1e-6)
  np.testing.assert_array_equal(
    turned.folds['kernel'], straight.folds['kernel'][..., order]
  )


@pytest.mark.parametrize(
  ('changes', 'problem'),
  [
    ({'without_fold': 4}, 'teacher.without_fold is 4; accepted: at most'),
    ({'without_fold': 1, 'fit': 'probed'}, 'teacher.without_fold is 1, and'),
    ({'without_fold': 1, 'fit': 'crossfitted'}, 'teacher.without_fold is 1'),
    ({'without_fold': -1}, 'teacher.without_fold is -1'),
  ],
)
def test_folds_that_there_are_not(changes, problem):
  changes = {f'teacher__{key}': value for key, value in changes.items()}
  with pytest.raises(WrongSettings, match=problem):
    tiny.make_config('teacher', teacher__probe_folds=3, **changes)
