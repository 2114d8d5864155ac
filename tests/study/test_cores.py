"""A cell runs on the same number of cores, and says on how many it ran."""

import os
import subprocess

import pytest

from tests.study.rows import paired
from tlkd_jax.answer import conclusions
from tlkd_jax.answer.rows import not_alike
from tlkd_jax.runtime import devices, made, sharding
from tlkd_jax.study import workers

GAINS = (0.03, 0.01, 0.02, 0.04, 0.02, 0.03)
ONE = {
  'commit': 'abc',
  'versions': {'jax': '1'},
  'device': '1 x cpu',
  'cores': 1,
  'processor': 'Xeon',
}


@pytest.fixture
def machine(monkeypatch):
  """A machine of eight cores, (sets given to processes)."""
  given = []
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(8)))
  monkeypatch.setattr(os, 'sched_setaffinity', lambda pid, c: given.append(c))
  monkeypatch.setattr(devices, 'has_card', lambda: False)
  return given


@pytest.mark.parametrize('cores', [1, 2])
def test_a_worker_has_as_many_cores_whatever_the_jobs(cores, machine):
  for jobs in (1, 2, 4):
    machine.clear()
    for index in range(jobs):
      workers.keep_to_share(index, jobs, cores)
    assert [len(own) for own in machine] == [cores] * jobs
    assert len(set.union(*machine)) == cores * jobs


@pytest.mark.parametrize(
  ('jobs', 'cores', 'accepted'),
  [
    (9, 1, 'at most --jobs=8'),
    (3, 3, 'at most --jobs=2'),
    (1, 9, 'at most --jobs=1 and study.cores=8'),
  ],
)
def test_more_than_the_machine_has_is_refused(jobs, cores, accepted, machine):
  with pytest.raises(ValueError, match=accepted):
    workers.check_cores(jobs, cores)
  with pytest.raises(ValueError, match=accepted):
    workers.keep_to_share(0, jobs, cores)
  assert machine == []


def test_beside_an_accelerator_workers_share_the_cores(machine, monkeypatch):
  monkeypatch.setattr(devices, 'has_card', lambda: True)
  workers.check_cores(9, 1)
  workers.keep_to_share(0, 2, 1)
  assert machine == [{0, 2, 4, 6}]


def test_what_made_a_run_is_recorded():
  found = made.by(sharding.make_mesh(1))
  assert found['cores'] == devices.cores() and '1 x ' in found['device']
  assert {'python', 'jax', 'numpy'} <= found['versions'].keys()
  assert found['processor'] == made.processor()


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    ('sse avx avx2 avx512f', ', AVX-512'),
    ('sse avx avx2', ', AVX2'),
    ('sse avx', ', AVX'),
    ('sse', ''),
  ],
)
def test_a_processor_is_named_with_its_vectors(flags, expected):
  first = 'processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\n'
  text = f'{first}model name\t: EPYC\nflags\t\t: {flags}\n\nprocessor\t: 1\n'
  assert made.parse_processor(text) == f'EPYC, family 25, model 17{expected}'


@pytest.mark.parametrize('text', ['', 'processor : 0\nCPU part : 0xd0c\n'])
def test_a_processor_without_a_name(text):
  assert made.parse_processor(text) == ''


def test_a_commit_of_results_is_no_other_version(tmp_path):
  package = tmp_path / 'package'
  package.mkdir()
  assert made.commit.__wrapped__(package) is None

  def git(*arguments):
    named = ['-c', 'user.name=a', '-c', 'user.email=a@b.c']
    subprocess.run(
      ['git', *named, *arguments], cwd=tmp_path, check=True, capture_output=True
    )

  git('init')
  (package / 'a.py').write_text('1')
  git('add', '.')
  git('commit', '-m', 'a')
  first = made.commit.__wrapped__(package)
  (tmp_path / 'rows.json').write_text('[]')
  git('add', '.')
  git('commit', '-m', 'rows')
  assert made.commit.__wrapped__(package) == first
  (package / 'a.py').write_text('2')
  assert made.commit.__wrapped__(package) == f'{first}+'


def rows_made(of_row):
  rows = paired(GAINS)
  for row in rows:
    row['made'] = ONE | of_row(row)
  return conclusions.draw(rows, 'kd', 'tl', ('top1',))


@pytest.mark.parametrize(
  ('key', 'other'),
  [
    ('cores', 2),
    ('device', '1 x H100'),
    ('processor', 'EPYC'),
    ('versions', {'jax': '2'}),
  ],
)
def test_two_runs_that_were_not_made_alike_are_no_pair(key, other):
  found = rows_made(
    lambda row: {key: other} if (row['arm'], row['seed']) == ('kd', 2) else {}
  )
  assert found.overall.seeds == (0, 1, 3, 4, 5)
  assert any(
    text.startswith('TL+KD and TL of seed 2 on digits, 10 per class were not')
    and f'made alike ({key})' in text
    for text in found.remarks
  )


def test_pairs_that_were_made_in_two_ways_are_told_apart():
  found = rows_made(lambda row: {'cores': 1 + (row['seed'] > 3)})
  (said,) = [text for text in found.remarks if 'were made in' in text]
  one = 'commit abc, 1 x cpu Xeon, 1 core, jax 1 (seeds 0, 1, 2, 3)'
  assert f'in 2 ways: {one}' in said
  assert '2 cores, jax 1 (seeds 4, 5)' in said
  alike = [t for t in rows_made(lambda row: {}).remarks if 'made' in t]
  assert alike == [
    'Every run was made by commit abc, 1 x cpu Xeon, 1 core, jax 1.'
  ]


def test_what_one_record_does_not_say_is_no_difference():
  older = {key: value for key, value in ONE.items() if key != 'processor'}
  assert not_alike(ONE, older | {'cores': 2}, [*ONE]) == ['cores']


def test_runs_of_other_arms_are_told_apart_too():
  found = rows_made(lambda row: {'cores': 1 + (row['arm'] == 'teacher')})
  assert found.overall.seeds == (0, 1, 2, 3, 4, 5)
  assert [text for text in found.remarks if 'were made in 2 ways' in text]


def test_what_is_not_recorded_is_said():
  found = conclusions.draw(paired(GAINS), 'kd', 'tl', ('top1',))
  assert found.remarks[-1] == (
    'By which commit, versions and cores 18 runs of 18 were made is not '
    'recorded.'
  )
