"""Several students of one teacher: arms, cells, recipes, the page. No model."""

import json

import numpy as np
import pytest

import tlkd_jax
from configs import study as study_config
from tests import tiny
from tests.study.rows import answering, row
from tlkd_jax import settings
from tlkd_jax.answer import conclusions
from tlkd_jax.answer.rows import Answers, pack
from tlkd_jax.evaluation import records
from tlkd_jax.models import serving as costs
from tlkd_jax.models.serving import Figures, Serving, Timing
from tlkd_jax.report import plots
from tlkd_jax.runtime.errors import UserError
from tlkd_jax.study import (
  cells,
  conduct,
  matrix,
  plans,
  serving,
  students,
  until,
)

NAMES = ('resnet18', 'mobilenet_v2', 'timm/resnet18')
COUNT = 5000


def make(names=NAMES, arg='smoke', **changes):
  config = settings.from_config(study_config.get_config(arg))
  flat = {key.replace('__', '.'): value for key, value in changes.items()}
  flat = {'study.run_arms': ('tl', 'kd'), 'study.sizes': (2,)} | flat
  config = settings.with_values(config, flat)
  return students.with_students(config, names)


def make_study(names=NAMES, **changes):
  return matrix.section_of(make(names, **changes))


@pytest.mark.parametrize(
  ('text', 'names'),
  [
    ('resnet18', ('resnet18',)),
    ('resnet18,mobilenet_v2', ('resnet18', 'mobilenet_v2')),
    (' resnet18 , timm/resnet18 ', ('resnet18', 'timm/resnet18')),
  ],
)
def test_names_are_parsed(text, names):
  assert students.parse(text) == names


@pytest.mark.parametrize(
  ('text', 'problem'),
  [
    ('resnet81', "--students resnet81: unknown model 'resnet81'.*resnet18"),
    ('resnet18,', "unknown model ''"),
    ('', "unknown model ''"),
    ('resnet18 mobilenet_v2', 'unknown model'),
    ('resnet18,resnet18', 'resnet18 is there twice'),
  ],
)
def test_bad_names_are_refused(text, problem):
  with pytest.raises(ValueError, match=problem):
    students.parse(text)


def test_every_arm_is_there_for_every_student_and_one_teacher():
  study = make_study()
  arms = matrix.ordered_arms(study)
  assert arms == [
    *('tl', 'teacher', 'kd'),
    *('tl_of_mobilenet_v2', 'kd_of_mobilenet_v2'),
    *('tl_of_timm_resnet18', 'kd_of_timm_resnet18'),
  ]
  other = study.arms['kd_of_timm_resnet18']
  assert other.teachers == ('teacher',)
  assert other.changes == {'student.name': 'timm/resnet18'}
  assert other.label == 'TL+KD, timm/resnet18'
  # The first one's cells are those of a study of it alone.
  assert study.arms['kd'].changes == {} and make().student.name == NAMES[0]
  assert students.names_of(study.arms) == list(NAMES)
  for name, arm in study.arms.items():
    base = name.partition('_of_')[0]
    assert students.base_of(name, arm)[0] == base


def test_arms_keep_their_changes_and_their_own_students_as_teachers():
  names = ('tl', 'tl_label_smoothing', 'tl_self_distillation')
  study = make_study(study__run_arms=names)
  smoothed = study.arms['tl_label_smoothing_of_mobilenet_v2']
  assert smoothed.changes == {
    'label_smoothing': 0.1,
    'student.name': 'mobilenet_v2',
  }
  again = study.arms['tl_self_distillation_of_mobilenet_v2']
  assert again.teachers == ('tl_of_mobilenet_v2',)
  assert len(matrix.ordered_arms(study)) == 3 * len(names)


def test_one_name_is_that_student():
  config = make(('resnet50',))
  assert config.student.name == 'resnet50'
  assert len(matrix.make_matrix(config)) == 2 * 3


def test_cells_of_one_seed_share_a_teacher_and_are_one_group():
  config = make()
  cells_ = matrix.make_matrix(config)
  assert len(cells_) == 2 * (1 + 2 * len(NAMES))
  first = [cell for cell in cells_ if cell.seed == config.seed]
  (teacher,) = [cell for cell in first if cell.kind == 'teacher']
  assert len({cell.name for cell in first}) == len(first)
  taught = [cell for cell in first if cell.kind == 'kd']
  assert len(taught) == len(NAMES) and len({c.group for c in first}) == 1
  for cell, name in zip(taught, NAMES, strict=True):
    assert matrix.needed(cell, cells_) == [teacher]
    own = matrix._without_teachers(config, cell)
    assert own.student.name == name


@pytest.mark.parametrize(
  ('changes', 'problem'),
  [
    ({'student__weights': 'file.pth'}, "student.weights is 'file.pth', of one"),
    ({'student__checkpoint': 'runs/a'}, "student.checkpoint is 'runs/a'"),
    (
      {'study__grid': {'student.name': ('resnet18', 'resnet50')}},
      'study.grid sets student.name',
    ),
  ],
)
def test_what_is_of_one_student_is_refused(changes, problem):
  with pytest.raises(ValueError, match=f'--students: .*{problem}'):
    make(**changes)
  assert make(('resnet18',), **{} if 'study__grid' in changes else changes)


def test_a_student_that_does_not_take_the_size_is_refused_before_work(tmp_path):
  config = make(('resnet18', 'vit_tiny_patch16_224'), image_size=50)
  with pytest.raises(ValueError, match='kd_of_vit|tl_of_vit') as caught:
    conduct.prepare(config, tmp_path)
  assert 'image_size' in str(caught.value) and '50' in str(caught.value)
  assert not list(tmp_path.glob('cells/*'))


def test_it_is_stated():
  assert ('students', ', '.join(NAMES)) in plans.make(make()).words
  alone = settings.from_config(study_config.get_config('smoke'))
  assert 'students' not in dict(plans.make(alone).words)


def test_from_python():
  made = tlkd_jax.make_study(
    students=['resnet18', 'mobilenet_v2'], overrides={'study.seeds': 3}
  )
  assert made.study is not None and made.study.seeds == 3
  assert 'kd_of_mobilenet_v2' in made.study.arms
  assert made.student.name == 'resnet18'
  with pytest.raises(UserError, match='resnet81'):
    tlkd_jax.make_study(students=['resnet18', 'resnet81'])


GAINS = {'resnet18': 0.05, 'mobilenet_v2': -0.05, 'timm/resnet18': 0.02}


def make_rows(study, seeds=6):
  """TL at 0.5, TL+KD by its student's gain above it, teachers at 0.9."""
  found = []
  for seed in range(seeds):
    found.append(row('teacher', seed, 0.9))
    for name, arm in study.arms.items():
      base, _ = students.base_of(name, arm)
      if base in ('tl', 'kd'):
        gain = GAINS[arm.student] if base == 'kd' else 0.0
        value = 0.5 + gain + seed / 1000
        more = {'label': arm.label, 'model': arm.student, 'kind': base}
        more['teachers'] = ['teacher'] * (base == 'kd')
        found.append(row(name, seed, value, **more))
  return answering(found)


def test_rows_of_students_are_paired_with_themselves():
  study = make_study()
  rows = students.as_recipes(make_rows(study), study.arms)
  found = conclusions.draw(rows, 'kd', 'tl', ('top1',))
  gains = {
    effect.places[0].recipe: effect.test['mean_difference']
    for effect in found.per_place['top1']
  }
  assert gains == pytest.approx(GAINS)
  # The data set weighs once, its students alike.
  mean = np.mean([*GAINS.values()])
  assert found.overall.test['mean_difference'] == pytest.approx(mean)
  assert found.labels['kd'] == 'TL+KD' and found.labels['tl'] == 'TL'
  teachers = [one for one in rows if one['arm'] == 'teacher']
  assert {one['recipe'] for one in teachers} == set(NAMES)


def test_rows_of_one_student_stay_as_they_are():
  rows = make_rows(make_study())
  alone = settings.from_config(study_config.get_config('smoke'))
  assert students.as_recipes(rows, matrix.section_of(alone).arms) == rows


@pytest.fixture
def play(monkeypatch):
  """Cells find what GAINS say; returns who ran."""
  ran = []

  def run(config, cell, matrix_, root, load, mesh):
    del matrix_, load, mesh
    ran.append(cell.name)
    arm = config.study.arms[cell.arm]
    gain = GAINS[arm.student] if cell.kind == 'kd' else 0.0
    right = np.arange(COUNT) < round(COUNT * (0.5 + gain))
    rng = np.random.default_rng([cell.seed, len(cell.arm)])
    right = rng.permutation(right)
    more = {'label': arm.label, 'kind': cell.kind}
    record = row(cell.arm, cell.seed, right.mean(), size=cell.size, **more)
    record['test']['ece'] = 0.1
    name = arm.student or 'teacher'
    own = Figures(name, 32, 10, 'float32', 10, 10**6 * len(name), 0, 10**6)
    counted = costs.as_json(Serving(own))
    record |= {
      'prediction_cost': counted,
      'hits': pack(Answers('a', right)),
      'wall_seconds': 1.0,
      'teachers': list(cell.teachers),
    }
    records.write_json(cells.folder_of(root, cell) / 'cell.json', record)

  monkeypatch.setattr(cells, 'run', run)
  monkeypatch.setattr(conduct, 'check', lambda config, matrix: [])
  monkeypatch.setattr(plots, '_draw', lambda *_, **__: '<svg></svg>')
  return ran


def measure(own):
  timings = [
    Timing('JAX', batch, len(own.model) * batch, 1.0, 9.0, 5, 'cpu', 2)
    for batch in costs.BATCHES
  ]
  return Serving(own, tuple(timings))


METRICS = {'study__metrics': ('top1', 'nll'), 'study__seeds': 6}


def test_a_study_of_several_students_from_cells_to_page(
  play, tmp_path, monkeypatch
):
  monkeypatch.setattr(costs, 'measure', measure)
  config = make(num_steps=100, **METRICS)
  rows, answer = conduct.run(config, tmp_path)
  assert sum('/teacher/' in name for name in play) == 6
  assert len(rows) == len(play) == 6 * 7
  text = (tmp_path / 'report.md').read_text()
  for name in NAMES:
    assert f'{name}: ' in text
    assert f'the TL+KD, {name} student takes {len(name)} ms' in text
  assert answer in text and 'not measured for all networks' not in text
  stored = json.loads((tmp_path / serving.FILE).read_text())
  names = [one['model'] for one in stored]
  assert sorted(names) == sorted({*NAMES, 'teacher'})
  # The front is over all students, in one picture: here a name costs as many
  # milliseconds as it has letters, and the teacher is no better than TL.
  sections = json.loads((tmp_path / 'report.json').read_text())
  (table,) = [
    table
    for section in sections
    for table in section['tables']
    if table['title'] == 'Accuracy and cost'
  ]
  best = {cells_[1] for cells_ in table['rows'] if cells_[4] == 'yes'}
  assert best == {'TL+KD, resnet18', 'teacher'}
  assert {cells_[0] for cells_ in table['rows']} == {'digits, 2 per class'}


def test_networks_are_measured_once_and_not_in_trials(
  play, tmp_path, monkeypatch
):
  asked = []

  def count(own):
    asked.append(own.model)
    return measure(own)

  monkeypatch.setattr(costs, 'measure', count)
  conduct.run(make(**METRICS), tmp_path / 'short')
  assert not asked and not (tmp_path / 'short' / serving.FILE).exists()
  config = make(num_steps=100, **METRICS)
  for _ in range(2):
    conduct.run(config, tmp_path / 'long')
  assert sorted(asked) == sorted({*NAMES, 'teacher'})


@pytest.mark.parametrize('state', ['running', 'open'])
def test_nothing_is_measured_beside_cells(state, play, tmp_path, monkeypatch):
  monkeypatch.setattr(costs, 'measure', measure)
  config = make(num_steps=100, **METRICS)
  conduct.run(config, tmp_path)
  (tmp_path / serving.FILE).unlink()
  states = conduct.workers.states

  def one_more(shard, root):
    found = states(shard, root)
    return found | {next(iter(found)): state}

  with monkeypatch.context() as patched:
    patched.setattr(conduct.workers, 'states', one_more)
    conduct.time_predictions(config, tmp_path)
  assert not (tmp_path / serving.FILE).exists()
  conduct.time_predictions(config, tmp_path)
  assert (tmp_path / serving.FILE).exists()


def test_looks_are_over_all_students(play, tmp_path):
  config = make(**METRICS)
  conduct.run(config, tmp_path)
  *_, last = until.looks(config, tmp_path)
  assert last.seeds == 6
  assert last.mean == pytest.approx(np.mean([*GAINS.values()]), abs=1e-3)


@pytest.mark.slow
def test_students_of_one_teacher_share_its_stored_targets(
  cache_dir, tmp_path, tiny_models
):
  """Five real runs; what the teacher says of each view is computed once."""
  config = study_config.get_config('smoke,student=tiny')
  own = settings.to_dict(tiny.make_config('tl', cache_dir))
  config.update({k: v for k, v in own.items() if k != 'arm'})
  made = settings.with_values(
    settings.from_config(config),
    {
      'study.run_arms': ('tl', 'kd'),
      'study.sizes': (2,),
      'study.seeds': 1,
      'study.keep': 'all',
      'study.metrics': ('top1', 'nll'),
      'targets.mode': 'cached',
      'targets.views': 2,
    },
  )
  several = students.with_students(made, ('tiny', 'tiny_vit'))
  rows, _ = conduct.run(several, tmp_path)
  assert len(rows) == 5
  cell = tmp_path / 'cells' / 'digits' / '2'
  (_,) = (cell / 'teacher' / 'seed0' / 'targets').iterdir()
  for arm, name in (('kd', 'tiny'), ('kd_of_tiny_vit', 'tiny_vit')):
    folder = cell / arm / 'seed0'
    stored = json.loads((folder / 'config.json').read_text())
    assert stored['student']['name'] == name
    assert stored['teacher']['checkpoint'].endswith('/teacher/seed0')
    said = json.loads((folder / 'cell.json').read_text())['prediction_cost']
    assert costs.from_json(said).figures == costs.figures(name, 16, 10)
  text = (tmp_path / 'report.md').read_text()
  assert 'tiny: ' in text and 'tiny_vit: ' in text
