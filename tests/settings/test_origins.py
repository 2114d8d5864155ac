"""Runs that were moved, copied or replaced, and who was made from them."""

import json
import os
import shutil

import pytest

from tests import tiny
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.settings import origins
from tlkd_jax.training import workdir


def make_run(folder, number: int = 0):
  """A folder that looks like a run with a best checkpoint."""
  best = folder / 'checkpoints' / 'best' / '7'
  (best / 'arrays' / 'd').mkdir(parents=True)
  (best / 'record.json').write_text(f'{{"number": {number}}}')
  (best / 'arrays' / 'd' / f'{number:032x}').write_bytes(bytes(5000))
  (folder / 'config.json').write_text('{}')
  return folder


def configuration(teacher=None, student=None, more=()):
  return {
    'arm': 'kd',
    'student': {'checkpoint': None if student is None else str(student)},
    'teacher': {'checkpoint': None if teacher is None else str(teacher)},
    'distillation': {'more_teachers': [str(place) for place in more]},
  }


@pytest.fixture
def runs(tmp_path):
  """A folder with a teacher and a student that was made from it."""
  root = tmp_path / 'runs' / 'a'
  make_run(root / 'teacher')
  make_run(root / 'kd', 1)
  write(root / 'kd', configuration(root / 'teacher'))
  return root


def write(folder, config):
  origins.write(folder, config)
  (folder / 'config.json').write_text(json.dumps(config))


def found(folder, key='teacher.checkpoint'):
  config = json.loads((folder / 'config.json').read_text())
  return flatten(origins.located(folder, config))[key]


def both_move(root):
  root.rename(root.parent / 'b')
  return root.parent / 'b' / 'kd', root.parent / 'b' / 'teacher'


def both_move_deeper(root):
  (root.parent / 'x' / 'y').mkdir(parents=True)
  root.rename(root.parent / 'x' / 'y' / 'z')
  folder = root.parent / 'x' / 'y' / 'z'
  return folder / 'kd', folder / 'teacher'


def nothing_moves(root):
  return root / 'kd', root / 'teacher'


def the_student_moves(root):
  (root / 'kd').rename(root.parent / 'kd')
  return root.parent / 'kd', root / 'teacher'


def both_are_copied(root):
  """The first place is as good as the other."""
  shutil.copytree(root, root.parent / 'b')
  return root.parent / 'b' / 'kd', root / 'teacher'


def another_takes_the_old_place(root):
  folders = both_move(root)
  make_run(root / 'teacher', 5)
  return folders


def the_teacher_is_thinned_before(root):
  shutil.rmtree(root / 'teacher' / 'checkpoints')
  origins.write(root / 'kd', configuration(root / 'teacher'))
  return both_move(root)


def the_teacher_is_thinned_afterwards(root):
  shutil.rmtree(root / 'teacher' / 'checkpoints')
  return both_move(root)


def a_link_leads_there(root):
  folders = both_move(root)
  root.symlink_to(folders[0].parent)
  return root / 'kd', root / 'teacher'


def another_lies_beside(root):
  """Not taken for the one that is gone."""
  folders = both_move(root)
  shutil.rmtree(folders[1])
  make_run(folders[1], 5)
  return folders[0], root / 'teacher'


def the_teacher_is_gone(root):
  shutil.rmtree(root / 'teacher')
  return root / 'kd', root / 'teacher'


MOVES = (
  both_move,
  both_move_deeper,
  nothing_moves,
  the_student_moves,
  both_are_copied,
  another_takes_the_old_place,
  the_teacher_is_thinned_before,
  the_teacher_is_thinned_afterwards,
  a_link_leads_there,
  another_lies_beside,
  the_teacher_is_gone,
)


@pytest.mark.parametrize('move', MOVES, ids=lambda move: move.__name__)
def test_a_run_is_found_where_it_lies(move, runs):
  folder, teacher = move(runs)
  assert found(folder) == str(teacher)


def test_from_another_working_folder(runs, monkeypatch):
  monkeypatch.chdir(runs.parent)
  write(runs / 'kd', configuration('a/teacher'))
  assert found(runs / 'kd') == 'a/teacher'
  monkeypatch.chdir('/')
  assert found(runs / 'kd') == str(runs / 'teacher')


def test_several_teachers_and_a_file_of_weights(runs, tmp_path):
  for number in (2, 3):
    make_run(runs / f'other{number}', number)
  weights = runs / 'weights.safetensors'
  weights.write_bytes(b'weights')
  more = [runs / 'other2', runs / 'other3']
  write(runs / 'kd', configuration(weights, runs / 'teacher', more))
  moved = tmp_path / 'moved'
  runs.rename(moved)
  key = 'distillation.more_teachers'
  expected = [str(moved / 'other2'), str(moved / 'other3')]
  assert found(moved / 'kd', key) == expected
  assert found(moved / 'kd') == str(moved / 'weights.safetensors')
  assert found(moved / 'kd', 'student.checkpoint') == str(moved / 'teacher')
  assert origins.same(moved / 'kd', key, expected)
  assert not origins.same(moved / 'kd', key, expected[::-1])
  assert not origins.same(moved / 'kd', key, expected[:1])
  assert not origins.same(moved / 'kd', key, None)


def test_a_run_is_known_by_what_it_holds(runs, tmp_path):
  """Who says where the teacher is now is believed if it is that one."""
  shutil.move(runs / 'teacher', tmp_path / 'elsewhere')
  key = 'teacher.checkpoint'
  assert origins.same(runs / 'kd', key, str(tmp_path / 'elsewhere'))
  other = make_run(tmp_path / 'other', 5)
  assert not origins.same(runs / 'kd', key, str(other))
  assert not origins.same(runs / 'kd', key, str(tmp_path / 'nothing'))
  (tmp_path / 'elsewhere/checkpoints/best/7/record.json').write_text('{}')
  assert not origins.same(runs / 'kd', key, str(tmp_path / 'elsewhere'))


@pytest.mark.parametrize(
  'text',
  ['{', '[]', '{"teacher.checkpoint": 3}', '{"teacher.checkpoint": [{}]}'],
)
def test_a_damaged_record_is_named(text, runs):
  (runs / 'kd' / 'origins.json').write_text(text)
  with pytest.raises(ValueError, match='origins.json is damaged'):
    found(runs / 'kd')


def test_runs_of_older_versions_have_no_record(runs):
  (runs / 'kd' / 'origins.json').unlink()
  assert found(runs / 'kd') == str(runs / 'teacher')
  assert not origins.same(runs / 'kd', 'teacher.checkpoint', str(runs))
  folder, _ = both_move(runs)
  assert found(folder) == str(runs / 'teacher')


def test_a_run_from_nothing_leaves_no_record(tmp_path):
  origins.write(tmp_path, configuration())
  assert not os.listdir(tmp_path)


def settings_with(teacher):
  return tiny.make_config('kd', teacher__checkpoint=str(teacher))


def test_a_teacher_that_lies_elsewhere_now_is_written_down(tmp_path):
  run, teacher = tmp_path / 'kd', make_run(tmp_path / 'teacher')
  workdir.write(run, settings_with(teacher))
  teacher.rename(tmp_path / 'elsewhere')
  now = settings_with(tmp_path / 'elsewhere')
  workdir.check(run, now)
  workdir.write(run, now)
  recorded = json.loads((run / 'config.json').read_text())
  assert recorded['teacher']['checkpoint'] == str(tmp_path / 'elsewhere')
  # And from there it may move on.
  tmp_path.joinpath('new').mkdir()
  for name in ('kd', 'elsewhere'):
    (tmp_path / name).rename(tmp_path / 'new' / name)
  moved = workdir.read(tmp_path / 'new' / 'kd')['teacher']['checkpoint']
  assert moved == str(tmp_path / 'new' / 'elsewhere')


def test_another_teacher_is_another_run(tmp_path):
  run, teacher = tmp_path / 'kd', make_run(tmp_path / 'teacher')
  workdir.write(run, settings_with(teacher))
  other = make_run(tmp_path / 'other', 5)
  before = (run / 'config.json').read_text()
  for gone in (False, True):
    if gone:
      shutil.rmtree(teacher)
    with pytest.raises(ValueError, match='teacher.checkpoint: .*other'):
      workdir.check(run, settings_with(other))
  assert (run / 'config.json').read_text() == before


def made_again(root):
  """Its files have other names, and it answers as before."""
  arrays = root / 'teacher' / 'checkpoints' / 'best' / '7' / 'arrays' / 'd'
  (arrays / f'{0:032x}').rename(arrays / f'{9:032x}')


def trained_otherwise(root):
  shutil.rmtree(root / 'teacher')
  make_run(root / 'teacher', 5)
  answers(root / 'teacher', b'others')


def further_steps(root):
  best = root / 'teacher' / 'checkpoints' / 'best'
  (best / '7').rename(best / '8')
  answers(root / 'teacher', b'others')


def without_answers(root):
  made_again(root)
  shutil.rmtree(root / 'teacher' / 'predictions')


def another_file(root):
  (root / 'weights.pth').write_bytes(b'others!')


def a_file_of_one_size(root):
  (root / 'weights.pth').write_bytes(b'weightS')


def a_file_with_another_time(root):
  os.utime(root / 'weights.pth', (1, 1))


def all_gone(root):
  shutil.rmtree(root / 'teacher')
  (root / 'weights.pth').unlink()


TEACHER, WEIGHTS = 'teacher.checkpoint', 'student.weights'
CHANGES = [
  (made_again, []),
  (trained_otherwise, [TEACHER]),
  (further_steps, [TEACHER]),
  (without_answers, [TEACHER]),
  (another_file, [WEIGHTS]),
  (a_file_of_one_size, [WEIGHTS]),
  (a_file_with_another_time, []),
  (all_gone, []),
]


def answers(run, data):
  (run / 'predictions').mkdir(exist_ok=True)
  for split in ('validation', 'test'):
    (run / 'predictions' / f'{split}.npz').write_bytes(data)


@pytest.mark.parametrize(('change', 'keys'), CHANGES)
def test_a_run_goes_on_with_what_it_was_made_from(
  change, keys, runs, tmp_path, caplog
):
  (runs / 'weights.pth').write_bytes(b'weights')
  answers(runs / 'teacher', b'answers')
  config = tiny.make_config(
    'kd',
    teacher__checkpoint=str(runs / 'teacher'),
    student__weights=str(runs / 'weights.pth'),
  )
  run = tmp_path / 'run'
  workdir.write(run, config)
  workdir.check(run, config)
  change(runs)
  if not keys:
    workdir.check(run, config)
    return
  with pytest.raises(ValueError, match='others are there now') as error:
    workdir.check(run, config)
  named = str(error.value).splitlines()[1:-1]
  assert [line.strip().partition(':')[0] for line in named] == keys
  # Of what is finished nothing depends on it any more.
  (run / 'summary.json').touch()
  with caplog.at_level('WARNING', logger='absl'):
    workdir.check(run, config)
  assert 'others are there now' in caplog.text


def test_a_file_of_weights_moves_along(tmp_path):
  root = tmp_path / 'a'
  root.mkdir()
  (root / 'weights.pth').write_bytes(b'weights')
  config = tiny.make_config('tl', student__weights=str(root / 'weights.pth'))
  workdir.write(root / 'tl', config)
  root.rename(tmp_path / 'b')
  moved = tiny.make_config(
    'tl', student__weights=str(tmp_path / 'b' / 'weights.pth')
  )
  workdir.check(tmp_path / 'b' / 'tl', moved)
  found = workdir.read(tmp_path / 'b' / 'tl')['student']['weights']
  assert found == str(tmp_path / 'b' / 'weights.pth')


@pytest.mark.parametrize('there', [True, False])
def test_a_run_of_an_older_version_that_was_moved(there, tmp_path, caplog):
  """Where the place that it names is gone, the one now given is believed."""
  teacher = make_run(tmp_path / 'a' / 'teacher')
  workdir.write(tmp_path / 'a' / 'kd', settings_with(teacher))
  (tmp_path / 'a' / 'kd' / 'origins.json').unlink()
  shutil.copytree(tmp_path / 'a', tmp_path / 'b')
  now = settings_with(tmp_path / 'b' / 'teacher')
  if there:
    with pytest.raises(ValueError, match='teacher.checkpoint: '):
      workdir.check(tmp_path / 'b' / 'kd', now)
    return
  shutil.rmtree(tmp_path / 'a')
  with caplog.at_level('WARNING', logger='absl'):
    workdir.check(tmp_path / 'b' / 'kd', now)
  assert 'did not record its runs' in caplog.text
  other = tiny.make_config(
    'kd',
    teacher__checkpoint=str(tmp_path / 'b' / 'teacher'),
    student__weights='pretrained',
  )
  with pytest.raises(ValueError, match='student.weights: .*pretrained'):
    workdir.check(tmp_path / 'b' / 'kd', other)
