"""The suites of --mode=evaluate on a finished run of tiny models."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tlkd_jax import evaluating
from tlkd_jax.data import Look, load_splits
from tlkd_jax.evaluation import (
  corruptions,
  degradation,
  evaluate,
  qualitative,
  records,
  suites,
)
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures('tiny_models')
NAMES = ('contrast', 'grey_scale')


def read(path):
  return json.loads(path.read_text())


@pytest.fixture(scope='module')
def runs(compare_run, tmp_path_factory):
  """A copy of the run, for what the suites write."""
  folder = tmp_path_factory.mktemp('suites') / 'runs'
  shutil.copytree(compare_run, folder)
  for arm in ('teacher', 'tl', 'kd'):
    shutil.rmtree(folder / arm / 'evaluation', ignore_errors=True)
  return folder


def evaluate_run(path, **options):
  return evaluating.evaluate_run(str(path), sharding.make_mesh(2), **options)


def subject(path, **options):
  options = {'ood_dataset': None, 'max_images': 10} | options
  return evaluating._subject(path, sharding.make_mesh(2), {}, **options)


def test_clean_and_calibration_of_all_runs_of_a_folder(runs):
  table = evaluate_run(runs)
  rows = [line.split()[0] for line in table.splitlines()[2:]]
  assert rows == ['teacher', 'teacher', 'tl', 'tl', 'kd', 'kd']
  clean = read(runs / 'kd' / 'evaluation' / 'clean.json')['test']
  assert clean['fidelity']['agreement'] == clean['teacher_agreement']
  assert len(clean['per_class']['recall']) == 10
  recalls = np.array(clean['per_class']['recall'])
  assert recalls.mean() == pytest.approx(clean['balanced_accuracy'])
  assert 'fidelity' not in read(runs / 'tl/evaluation/clean.json')['test']
  text = evaluate_run(runs / 'tl', suite='calibration')
  found = read(runs / 'tl' / 'evaluation' / 'calibration.json')
  assert f'temperature {found["temperature"]:.3f}' in text
  # Fitted on validation, not on the split that it is judged on.
  fitted = {
    split: suites.calibrations.fit_temperature(stored.logits, stored.labels)
    for split in suites.SPLITS
    for stored in [evaluate.load(runs / 'tl' / 'predictions' / f'{split}.npz')]
  }
  assert found['temperature'] == fitted['validation']
  assert sum(found['bins_after']['count']) == found['test_count'] == 40


def test_runs_of_one_name_are_told_apart_by_their_places(runs, tmp_path):
  """As the cells of a study lie, all of them called by their seed."""
  places = [f'cells/digits/{arm}/seed0' for arm in ('tl', 'tl_longer')]
  for place in places:
    shutil.copytree(runs / 'tl', tmp_path / place)
  table = evaluate_run(tmp_path)
  found = [line.split()[0] for line in table.splitlines()[2:]]
  assert found == [place for place in places for _ in range(2)]
  said = evaluate_run(tmp_path, suite='calibration').splitlines()
  assert [line.partition(',')[0] for line in said] == places
  # One run alone keeps its plain name.
  said = evaluate_run(tmp_path / places[0], suite='calibration')
  assert said.startswith('seed0, calibration: ')


def test_what_a_stopped_runs_weights_said_is_not_taken_for_later_ones(
  runs, tmp_path
):
  """A run may be evaluated, go on to another best step, and again."""
  shutil.copytree(runs / 'tl', tmp_path / 'tl')
  one = subject(tmp_path / 'tl')
  path = one.predictions / 'validation.npz'
  real = evaluate.load(path)
  wrong = dataclasses.replace(real, logits=-real.logits)
  # As a run writes them at its end, and an earlier version at any time.
  evaluate.save(path, wrong)
  stored = suites._stored(one, 'validation')
  np.testing.assert_array_equal(stored.logits, wrong.logits)
  (tmp_path / 'tl' / 'summary.json').unlink()
  stored = suites._stored(one, 'validation')
  np.testing.assert_array_equal(stored.logits, real.logits)
  evaluate.save(path, wrong, step=one.step + 1)
  suites.calibration(one)
  assert evaluate.load_with_step(path)[1] == one.step
  np.testing.assert_array_equal(evaluate.load(path).logits, real.logits)
  suites.out_of_distribution(one)
  steps = [
    read(one.folder / 'clean.json')['test']['step'],
    read(one.folder / 'calibration.json')['step'],
    read(one.folder / 'ood.json')['step'],
  ]
  assert steps == [one.step] * 3


def test_cells_of_an_earlier_step_or_of_other_images_are_left_out(tmp_path):
  """As an interrupted repetition leaves them."""
  for severity, step, first in ((0, 3, 0), (1, 3, 0), (2, 2, 0), (3, 3, 1)):
    cell = ('fog', severity) if severity else degradation.CLEAN
    stored = {
      'logits': np.eye(4, dtype=np.float32),
      'labels': np.arange(4),
      'indices': np.arange(4) + first,
      'image_size': np.asarray(16),
      'step': np.asarray(step),
    }
    records.write_arrays(degradation.cell_path(tmp_path, cell), stored)
  kept = [degradation.CLEAN, ('fog', 1)]
  assert list(degradation.read_cells(tmp_path)) == kept
  for best, found in ((3, kept), (4, [])):
    records.write_json(tmp_path / 'summary.json', {'best_step': best})
    assert list(degradation.read_cells(tmp_path)) == found


def test_an_interrupted_suite_goes_on_and_answers_for_the_same_images(
  runs, monkeypatch, caplog
):
  caplog.set_level('INFO', 'absl')
  filled = []
  fill = degradation._fill

  def interrupted(*arguments):
    if len(filled) == 4:
      raise KeyboardInterrupt
    filled.append(arguments[-1])
    fill(*arguments)

  teacher, kd = subject(runs / 'teacher'), subject(runs / 'kd')
  # The run remembers where its teacher was, not where it was copied to.
  assert kd.teacher.name == 'teacher'
  kd = dataclasses.replace(kd, teacher=runs / 'teacher')
  monkeypatch.setattr(degradation, '_fill', interrupted)
  with pytest.raises(KeyboardInterrupt):
    degradation.run(teacher, NAMES)
  assert filled == [('none', 0)] + [('contrast', s) for s in (1, 2, 3)]
  monkeypatch.setattr(
    degradation, '_fill', lambda *a: (filled.append(a[-1]), fill(*a))
  )
  degradation.run(teacher, NAMES)
  degradation.run(teacher, NAMES)
  assert len(filled) == len(set(filled)) == 11
  assert 'grey_scale, severity 5: 11/11' in caplog.text
  assert 's left' in caplog.text
  degradation.run(kd, NAMES)
  found = read(runs / 'kd' / 'evaluation' / 'corruptions.json')
  assert found['step'] == kd.step
  assert found['count'] == 10 and found['images_of_split'] == 40
  assert '32 pixels' in found['severities_from']
  rows = found['corruptions']
  assert set(rows) == set(NAMES)
  cells = degradation.read_cells(runs / 'kd')
  theirs = degradation.read_cells(runs / 'teacher')
  same = [
    (
      cells['contrast', s]['logits'].argmax(1)
      == theirs['contrast', s]['logits'].argmax(1)
    ).mean()
    for s in corruptions.SEVERITIES
  ]
  assert rows['contrast']['teacher_agreement'] == pytest.approx(same)
  error = 1 - np.mean([rows['contrast']['top1']])
  digital = found['mean_corrupted_error']['digital']
  assert digital == pytest.approx(error)
  assert found['mean_corrupted_error']['weather'] is None


def test_a_teacher_agrees_on_the_same_images_alone(runs, tmp_path):
  """Indices of a test split count its images, whatever they show."""
  for arm in ('teacher', 'kd'):
    shutil.copytree(runs / arm, tmp_path / arm)
  one = subject(tmp_path / 'kd', max_images=4)

  def agreement(changed):
    for arm, dataset in (('teacher', changed), ('kd', one.dataset)):
      run = dataclasses.replace(
        one, workdir=tmp_path / arm, dataset=dataset, max_images=None
      )
      shutil.rmtree(
        degradation.cell_path(run.workdir, ('none', 0)).parent, True
      )
      degradation._fill(run, run.dataset.splits['test'], degradation.CLEAN)
    found = degradation.summarize(tmp_path / 'kd', tmp_path / 'teacher')
    return found['clean']['teacher_agreement']

  def with_test(**changes):
    own = one.dataset.splits['test']
    split = dataclasses.replace(own, **changes)
    return dataclasses.replace(one.dataset, splits={'test': split})

  own = one.dataset
  images = own.splits['test'].images
  assert agreement(own) == 1
  assert agreement(with_test(images=255 - images)) is None
  assert agreement(with_test(labels=9 - own.splits['test'].labels)) is None
  turned = dataclasses.replace(own, class_names=own.class_names[::-1])
  assert agreement(turned) is None


def test_corrupted_images_depend_on_the_image_alone(runs, monkeypatch):
  seen = {}
  real = degradation.corruptions.corrupt_batch

  def watch(name, images, severity, keys):
    out = real(name, images, severity, keys)
    for before, after in zip(np.asarray(images), np.asarray(out), strict=True):
      seen.setdefault(before.tobytes(), set()).add(after.tobytes())
    return out

  monkeypatch.setattr(degradation.corruptions, 'corrupt_batch', watch)
  for arm, count in (('tl', 7), ('kd', 40)):
    one = subject(runs / arm, max_images=count)
    degradation._fill(one, one.sample(), ('gaussian_noise', 3))
  blank = np.zeros_like(one.dataset.splits['test'].images[0]).tobytes()
  changed = {k: v for k, v in seen.items() if k != blank}
  assert len(changed) == 40
  assert all(len(versions) == 1 for versions in changed.values())
  # A cell of other images, or of another step, is not taken for valid.
  assert degradation._valid(one, one.sample(), ('gaussian_noise', 3))
  fewer = subject(runs / 'kd', max_images=7)
  assert not degradation._valid(fewer, fewer.sample(), ('gaussian_noise', 3))
  path = degradation.cell_path(runs / 'kd', ('gaussian_noise', 3))
  stored = records.read_arrays(path)
  records.write_arrays(path, stored | {'step': np.asarray(1)})
  assert not degradation._valid(one, one.sample(), ('gaussian_noise', 3))
  # Nor is a damaged one, and no mistake of the user.
  records.write_arrays(path, stored)
  assert degradation._valid(one, one.sample(), ('gaussian_noise', 3))
  path.write_bytes(path.read_bytes()[:-30])
  assert not degradation._valid(one, one.sample(), ('gaussian_noise', 3))


def test_out_of_distribution(runs, tmp_path):
  text = evaluate_run(runs / 'tl', suite='ood', max_images=12)
  found = read(runs / 'tl' / 'evaluation' / 'ood.json')
  assert found['out'] == suites.PHOTOGRAPHS and suites.PHOTOGRAPHS in text
  assert found['in_count'] == found['out_count'] == 12
  assert set(found['scores']) == {'msp', 'max_logit', 'energy'} | {
    'negative_entropy'
  }
  rng = np.random.default_rng(0)
  for name in 'ab':
    (tmp_path / 'other' / name).mkdir(parents=True)
    for i in range(8):
      pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
      Image.fromarray(pixels).save(tmp_path / 'other' / name / f'{i}.png')
  one = subject(
    runs / 'tl', ood_dataset=f'folder:{tmp_path / "other"}', max_images=4
  )
  suites.out_of_distribution(one)
  found = read(runs / 'tl' / 'evaluation' / 'ood.json')
  assert found['out'].startswith('folder:') and found['in_count'] == 4


def test_other_data_are_prepared_as_the_runs_own(runs, tmp_path):
  """Else a run tells images of its own by the crop alone."""
  rng = np.random.default_rng(0)
  place = tmp_path / 'other'
  for part in ('train', 'test'):
    for name in 'ab':
      (place / part / name).mkdir(parents=True)
      for i in range(4):
        pixels = rng.integers(0, 256, (20, 28, 3), np.uint8)
        Image.fromarray(pixels).save(place / part / name / f'{i}.png')
  (place / 'test' / 'a' / 'broken.png').write_bytes(b'none')
  section = {'on_bad_image': 'skip', 'cache_dir': str(tmp_path / 'cache')}
  records.write_json(tmp_path / 'run' / 'config.json', {'data': section})
  one = subject(runs / 'tl', ood_dataset=f'folder:{place}')
  look = Look(16, 0.5, 'nearest')
  network = dataclasses.replace(one.network, look=look)
  one = dataclasses.replace(one, network=network, workdir=tmp_path / 'run')
  _, found = suites._other_images(one)
  assert (tmp_path / 'cache').is_dir()
  expected = load_splits(
    f'folder:{place}',
    image_size=16,
    crop_fraction=0.5,
    interpolation='nearest',
    **section,
  )
  np.testing.assert_array_equal(found.images, expected.splits['test'].images)
  # By another path too it is the run's own.
  own = dataclasses.replace(one.dataset, name=f'folder:{place}/../other')
  with pytest.raises(ValueError, match="is the run's own data set"):
    suites._other_images(dataclasses.replace(one, dataset=own))


def test_qualitative(runs):
  evaluate_run(runs / 'kd', suite='qualitative', max_images=20)
  folder = runs / 'kd' / 'evaluation'
  images = qualitative.unpack_images(folder / 'images.npz')
  stored = evaluate.load(runs / 'kd' / 'predictions' / 'test.npz')
  assert len(images) == 20 and set(images) <= set(stored.indices.tolist())
  assert all(data.startswith(b'\xff\xd8') for data in images.values())
  maps = records.read_arrays(folder / 'gradcam.npz')
  assert maps['maps'].shape == (20, 4, 4) and maps['maps'].max() > 0
  features = records.read_arrays(folder / 'features.npz')
  assert features['features_stage1'].shape == (20, 8)
  np.testing.assert_array_equal(features['indices'], maps['indices'])
  figures = read(folder / 'qualitative.json')
  assert figures['gradcam_stage'] == 'grid of stage2'
  assert 0 <= figures['embedding']['knn_accuracy'] <= 1
  places = records.read_arrays(folder / 'embedding.npz')
  assert places['tsne'].shape == places['pca'].shape == (20, 2)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'suite': 'colours'}, "unknown suite 'colours'"),
    ({'suite': 'ood', 'ood_dataset': 'digits'}, "is the run's own data set"),
    ({'suite': 'ood', 'ood_dataset': 'digit'}, "unknown data set 'digit'"),
  ],
)
def test_a_mistake_is_one_message(runs, options, message):
  with pytest.raises(UserError, match=message):
    evaluate_run(runs / 'tl', **options)


def test_main_knows_every_suite():
  from tlkd_jax import main

  # What it costs needs no data, and is measured by the room of exports.
  assert main._SUITES == [*suites.SUITES, 'all', 'cost']
