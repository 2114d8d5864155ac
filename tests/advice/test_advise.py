"""A request from its data to its page, with tiny models and invented cells."""

import json
import pathlib
import re
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

import tlkd_jax
from tests.study.rows import row
from tlkd_jax import api
from tlkd_jax.advice import conduct, looking, request, trial
from tlkd_jax.answer.rows import Answers, pack
from tlkd_jax.evaluation import records
from tlkd_jax.runtime import sealed
from tlkd_jax.runtime.errors import UserError
from tlkd_jax.study import cells, matrix
from tlkd_jax.study import conduct as studies

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = {'students': ['tiny=scratch'], 'teachers': ['tiny_teacher=scratch']}

pytestmark = pytest.mark.usefixtures('tiny_models')


def write(root, counts):
  """Pictures of which the class is seen in their colour."""
  for number, (name, count) in enumerate(counts.items()):
    (root / name).mkdir(parents=True)
    for i in range(count):
      rng = np.random.default_rng([number, i])
      pixels = rng.integers(0, 120, (12, 16, 3), dtype=np.uint8)
      pixels[..., number % 3] += 100
      Image.fromarray(pixels).save(root / name / f'{name}{i:03d}.png')
  return f'folder:{root}'


@pytest.fixture
def pets(tmp_path):
  return write(tmp_path / 'pets', {'cat': 20, 'dog': 24})


def settings_of(dataset, tmp_path, **values):
  values = {'data.cache_dir': str(tmp_path / 'cache')} | values
  asked = request.make(dataset, ('tiny=scratch',), ('tiny=scratch',), (16,))
  asked = request.Request(**vars(asked) | {'values': values})
  return request.settings_of(asked, asked.students[0], 16)


@pytest.mark.parametrize(
  ('place', 'counts', 'folds'),
  [
    ('', {'cat': 20, 'dog': 24}, 5),
    ('', {'cat': 5, 'dog': 9}, 5),
    # A fifth is 29 of a class, and 30.
    ('', {'cat': 144, 'dog': 150}, 5),
    ('', {'cat': 150, 'dog': 151}, 0),
  ],
)
def test_small_sets_are_cut_into_folds(tmp_path, place, counts, folds):
  dataset = write(tmp_path / 'pets' / place, counts)
  opened = looking.open_data(settings_of(dataset, tmp_path))
  assert looking.num_folds(opened) == folds


@pytest.mark.parametrize('split', ['test', 'validation'])
def test_a_split_that_was_given_is_kept(tmp_path, split):
  write(tmp_path / 'pets' / 'train', {'cat': 8, 'dog': 8})
  write(tmp_path / 'pets' / split, {'cat': 4, 'dog': 4})
  opened = looking.open_data(
    settings_of(f'folder:{tmp_path / "pets"}', tmp_path)
  )
  assert looking.num_folds(opened) == 0


def test_folds_that_were_asked_for_are_made(tmp_path):
  dataset = write(tmp_path / 'pets', {'cat': 20, 'dog': 24})
  values = {'data.folds': 3, 'data.cache_dir': str(tmp_path / 'cache')}
  models = ('tiny=scratch',), ('tiny_teacher=scratch',)
  asked = request.make(dataset, *models, (16,), values=values)
  own = request.settings_of(asked, asked.students[0], 16)
  assert looking.look(own)['folds'] == 3


def test_too_few_images_are_refused(tmp_path):
  dataset = write(tmp_path / 'pets', {'cat': 4, 'dog': 24})
  opened = looking.open_data(settings_of(dataset, tmp_path))
  with pytest.raises(ValueError, match="class 'cat' has 4 images that differ"):
    looking.num_folds(opened)


def invented(gain):
  """In place of conduct.run of a study: its cells, five seeds of them."""

  def run(config, root, end):
    for cell in matrix.make_matrix(config, count=5):
      if cells.is_done(root, cell):
        continue
      top1 = 0.5 + gain * (cell.arm == 'kd') + 0.001 * (cell.seed % 2)
      # Half of the labels cost a tenth.
      top1 -= 0.1 * (cell.size > 0)
      right = np.arange(2000) < round(2000 * top1)
      record = row(cell.arm, cell.seed, right.mean(), size=cell.size)
      record['dataset'] = cell.dataset
      for name in (*config.study.metrics, 'top1'):
        record['test'].setdefault(name, 0.1)
      record |= {
        'hits': pack(Answers(f'fold {cell.seed % 5}', right)),
        'folds': 5,
        'wall_seconds': 30.0,
        'image_size': 16,
        'num_train': 15 if cell.size else 30,
        'kind': cell.kind,
        'label': cell.label,
        'teachers': list(cell.teachers),
      }
      folder = cells.folder_of(root, cell)
      folder.mkdir(parents=True, exist_ok=True)
      records.write_json(folder / 'cell.json', record)
    return studies.write(config, root)

  return run


def test_from_a_folder_to_a_page(tmp_path, pets, monkeypatch):
  """Data, probes and targets for real, the study's cells invented."""
  monkeypatch.setattr(api, '_prepare', lambda: None)
  monkeypatch.setattr(studies, 'run', invented(0.08))
  said = []
  log = types.SimpleNamespace(info=lambda text, *args: said.append(text % args))
  monkeypatch.setattr(conduct, 'logging', log)
  values = {'data.cache_dir': str(tmp_path / 'cache')} | {
    'augment.crop': 'centre',
    'batch_size': 8,
  }

  def ask(**changes):
    given = {'image_sizes': [16], 'overrides': values, **MODELS, **changes}
    return tlkd_jax.advise(pets, tmp_path / 'advice', **given)

  found = ask()
  steps = [line for line in said if line.startswith('step ')]
  assert [line[5] for line in steps] == ['1', '2', '3', '4', '5']
  assert all('; about ' in line for line in steps)
  root = tmp_path / 'advice'
  report = json.loads((root / 'report.json').read_text())
  page = (root / 'index.html').read_text()
  study = (root / 'study' / 'report.md').read_text()
  assert report['advice'] == found.sentence == repr(found)
  assert found.sentence in page.partition('</section>')[0]
  assert found.verdict == report['verdict'] == 'helps'
  assert found.verdict in found.sentence
  assert re.search(r'worth [+]\d+ % labels', found.sentence)
  # The study's own page says the same.
  assert 'Yes, it helps' in study and 'Yes, it helps' in page
  state = sealed.read_json(tmp_path / 'advice' / 'advice.json')
  assert state['data']['folds'] == 5 and len(state['probes']) == 2
  assert all(len(probe['by_fold']) == 5 for probe in state['probes'])
  assert state['probes'][0]['images'] == 44
  # Of a class that is seen in its colour something is known.
  assert state['probes'][0]['accuracy'] > 0.6
  assert (tmp_path / 'advice' / 'targets' / 'teacher_says.json').exists()
  assert 'What the teacher&#x27;s targets say' in page
  assert 'kd.py:dataset=folder:' in found.command
  for told in ('fit=probed', 'image_size=16', 'probe_views=4'):
    assert f'--config.teacher.{told} ' in found.command
  # Again: nothing is looked at or measured twice, and it is the same.
  said.clear()
  monkeypatch.setattr(conduct.probing, 'measure', None)
  monkeypatch.setattr(conduct.looking, 'look', None)
  monkeypatch.setattr(conduct, 'set_up', None)
  assert ask(budget_minutes=90).sentence == found.sentence
  with pytest.raises(UserError, match='is of another request:\n  image_sizes'):
    ask(image_sizes=[32])
  with pytest.raises(UserError, match='is of another request:\n  values'):
    ask(overrides=values | {'batch_size': 16})


def test_the_arms_of_the_study(tmp_path):
  asked = request.make(
    'folder:pets', ('tiny=scratch',), ('tiny_teacher=w.pth',), (16,)
  )
  looked = {
    'folds': 5,
    'classes': 2,
    'counts': {'train': 60, 'validation': 800, 'test': 6000},
  }
  choice = conduct.Choice(
    'tiny=scratch', 16, 'tiny_teacher=w.pth', 24, 60, 0.5, 1.0, True, '', True
  )
  config = trial.make(asked, looked, choice, 2)
  assert config.study.sizes == (0.5,) and config.study.cores == 2
  assert trial.half(config).study.sizes == (0.25,)
  assert config.data.num_validation_per_class == 250
  assert config.data.num_test_per_class == 2500
  found = matrix.make_matrix(config, count=1)
  arms = {cell.arm: cell for cell in found}
  assert [*arms] == ['teacher', 'tl', 'kd', 'tl_cost_matched']
  for arm, steps_more in (('tl', False), ('tl_cost_matched', True)):
    own = matrix.make_config(config, arms[arm], {})
    assert own.cost_matched == steps_more and own.num_steps == 60
    assert own.label_smoothing == 0.1 and own.teacher.image_size == 24
    assert own.student.weights == 'scratch' and own.data.folds == 5
  teacher = matrix.make_config(config, arms['teacher'], {})
  assert (teacher.teacher.fit, teacher.teacher.weights) == ('probed', 'w.pth')


def test_every_key_that_advice_decides_is_refused(monkeypatch):
  """A value for it would be overwritten where the runs are made."""
  asked = request.make(
    'digits', ('tiny=scratch',), ('tiny_teacher=scratch',), (16,)
  )
  decided: set[str] = set()

  def heard(with_values):
    def wrapped(settings, values, *rest):
      decided.update(values)
      return with_values(settings, values, *rest)

    return wrapped

  monkeypatch.setattr(trial, 'with_values', heard(trial.with_values))
  monkeypatch.setattr(matrix, '_with_values', heard(matrix._with_values))
  counts = {'train': 60, 'validation': 80, 'test': 60}
  looked = {'folds': 0, 'classes': 10, 'counts': counts}
  models = 'tiny=scratch', 16, 'tiny_teacher=scratch', 24
  choice = conduct.Choice(*models, 60, 1.0, 1.0, True, '', True)
  config = trial.make(asked, looked, choice, 2)
  arms = {cell.arm: cell for cell in matrix.make_matrix(config, count=1)}
  for cell in arms.values():
    guides = {arm: (arms[arm], pathlib.Path('run')) for arm in cell.teachers}
    matrix.make_config(config, cell, guides)
  found = {re.sub(r'^study\..*', 'study', key) for key in decided}
  # The first seed and the number of folds are as they were said; a model's name
  # goes with its weights, and a fold with the seed.
  found = found - {'seed', 'data.folds'} | {'student.name', 'data.fold'}
  assert found == {*request.DECIDED}
  for key in request.DECIDED:
    with pytest.raises(ValueError, match=f'--set has {key}, which advice'):
      request.make('digits', *[('tiny=scratch',)] * 2, values={key: 1})


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'students': ('tinny',)}, 'did you mean tiny'),
    ({'teachers': ('tiny=',)}, 'accepted: NAME or NAME=WEIGHTS'),
    ({'teachers': ('=w.pth',)}, 'accepted: NAME or NAME=WEIGHTS'),
    ({'image_sizes': (7,)}, '--image_sizes has 7; accepted: at least 8'),
    ({'budget_minutes': 0.0}, '--budget_minutes is 0.0; accepted: above 0'),
    ({'budget_minutes': -3.0}, 'accepted: above 0'),
    ({'budget_minutes': float('nan')}, 'accepted: above 0'),
    ({'values': {'data.pattrn': 'x'}}, 'did you mean data.pattern'),
    ({'values': {'optimizer.name': 'adamx'}}, 'accepted: sgd, adamw'),
    (
      {'values': {'num_steps': 50}},
      '--set has num_steps, which advice decides itself; accepted: '
      '--budget_minutes in its place, or any other key',
    ),
    (
      {'values': {'label_smoothing': 0.1}},
      'which advice decides itself; accepted: any other key',
    ),
    ({'values': {'study.seeds': 3}}, '--set has study.seeds, which advice'),
    (
      {'values': {'teacher': {'fit': 'probed'}}},
      '--set has teacher.fit, which',
    ),
  ],
)
def test_what_a_request_refuses(given, message):
  names = {'students': ('tiny=scratch',), 'teachers': ('tiny=scratch',)}
  with pytest.raises(ValueError) as error:
    request.make('folder:x', **names | given)
  assert message in str(error.value)


def test_models_at_hand_are_those_of_installed_packages(monkeypatch):
  found = request.at_hand()
  assert found[0] == 'efficientnet_lite0'
  assert [*found] == sorted(found, key=lambda name: request.macs(name, 224))

  def missing(weights):
    if 'lite2' in weights:
      raise FileNotFoundError(weights)

  monkeypatch.setattr(request.hub, 'resolve', missing)
  assert 'efficientnet_lite2' not in request.at_hand()
  monkeypatch.setattr(request, 'at_hand', lambda: ())
  with pytest.raises(ValueError, match='no model with weights at hand'):
    request.make('digits', ('tiny=scratch',))


@pytest.mark.parametrize(
  ('side', 'minutes', 'sizes'),
  [
    (0, 1e9, (160, 224)),
    (500, 1e9, (160, 224)),
    (500, 0.001, (64, 96)),
    (32, 1e9, (64,)),
    (8, 60, (64,)),
    (50, 1e9, (64, 96)),
  ],
)
def test_sizes_follow_files_and_budget(side, minutes, sizes):
  asked = request.make(
    'folder:x', ('tiny=scratch',), ('tiny=scratch',), (), minutes
  )
  assert conduct.sizes_for(asked, {'side': side}, 1e9) == sizes


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], '--dataset is needed'),
    (['--dataset=digits', '--image_sizes=64,big'], "--image_sizes has 'big'"),
    (['--dataset=digits', '--set=batch_size'], 'accepted: KEY=VALUE'),
    (['--dataset=digits', 'more'], 'unexpected arguments: more'),
  ],
)
def test_the_command_refuses_at_once(arguments, message, tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'tlkd_jax.advise', *arguments]
    + [f'--workdir={tmp_path / "advice"}'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and message in done.stderr
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'advice').exists()


def test_it_is_a_function_whatever_the_command():
  assert callable(tlkd_jax.advise) and tlkd_jax.advise is api.advise


@pytest.mark.parametrize(
  ('seconds', 'expected'),
  [
    ({}, 60.0),
    # Two of four cells: the others take as long.
    ({0: [40.0, 60.0]}, 200.0),
    ({0: [1.0, 1.0]}, 60.0),
    ({0: [40.0, 60.0, 10.0, 10.0]}, 120.0),
    # The first one compiles; the last whole one says it.
    ({0: [90.0] * 4, 1: [20.0] * 4, 2: [5.0]}, 80.0),
  ],
)
def test_a_further_seed_takes_what_the_last_one_took(seconds, expected):
  choice = conduct.Choice('s', 16, 't', 24, 60, 1.0, 60.0, True, '', True)
  rows = [
    {'seed': seed, 'wall_seconds': each}
    for seed, found in seconds.items()
    for each in found
  ]
  assert conduct._seconds_a_seed(rows, choice) == expected
