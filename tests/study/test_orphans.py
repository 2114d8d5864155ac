"""Workers end with the command that started them, however early it is gone."""

import os
import pathlib
import subprocess
import sys

from tlkd_jax.study import workers

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_worker_is_told_who_started_it(monkeypatch, tmp_path):
  told = []
  monkeypatch.setattr(
    subprocess, 'Popen', lambda command, **_: told.append(command)
  )
  workers.spawn(tmp_path, 2, ['-m', 'it'])
  assert [command[3:] for command in told] == [
    [f'--worker={index}/2', f'--parent={os.getpid()}'] for index in (0, 1)
  ]


def test_a_worker_whose_parent_is_gone_begins_nothing(tmp_path):
  """It ended while the worker's interpreter was still being started."""
  gone = subprocess.Popen([sys.executable, '-c', ''])
  gone.wait()
  done = subprocess.run(
    [sys.executable, '-m', 'tlkd_jax.study']
    + ['--config=configs/study.py:smoke', f'--workdir={tmp_path / "study"}']
    + ['--worker=0/1', f'--parent={gone.pid}'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0 and 'stopped by SIGTERM' in done.stderr
  assert not (tmp_path / 'study').exists()


def test_a_worker_whose_parent_is_killed_ends(tmp_path):
  """Under a parent of its own, which is killed while the worker loads."""
  code = (
    'import os, subprocess, sys\n'
    'told = [sys.executable, *sys.argv[1:], f"--parent={os.getpid()}"]\n'
    'print(subprocess.Popen(told, stderr=sys.stdout).pid, flush=True)\n'
    'sys.stdin.read()\n'
  )
  told = ['-m', 'tlkd_jax.study', '--config=configs/study.py:smoke']
  told += ['--worker=0/1', f'--workdir={tmp_path / "study"}']
  parent = subprocess.Popen(
    [sys.executable, '-c', code, *told],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert int(parent.stdout.readline()) > 0
  parent.kill()
  # The worker holds the other end until it has ended.
  said, _ = parent.communicate(timeout=300)
  assert 'stopped by SIGTERM' in said
  assert not [*tmp_path.rglob('cell.json')]
