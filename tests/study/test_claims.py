"""A cell is run by one process, and never lost to one that died."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from tlkd_jax.study import claims

ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(code: str, *arguments) -> subprocess.Popen:
  header = 'import pathlib, sys\nfrom tlkd_jax.study import claims\n'
  return subprocess.Popen(
    [sys.executable, '-c', header + code, *map(str, arguments)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )


def take(tmp_path) -> bool:
  return claims.take(tmp_path / 'cell', tmp_path / 'lock')


def test_a_claim_is_taken_once(tmp_path):
  assert take(tmp_path) and not take(tmp_path)
  assert claims.holder(tmp_path / 'cell').endswith(f':{os.getpid()}')
  claims.release(tmp_path / 'cell')
  assert claims.holder(tmp_path / 'cell') is None
  assert take(tmp_path)


def test_processes_share_cells_without_overlap(tmp_path):
  """Each of 60 cells, half of them with a void claim, goes to one of four."""
  gone = {'host': socket.gethostname(), 'pid': os.getpid(), 'born': 'before'}
  for number in range(0, 60, 2):
    folder = tmp_path / str(number)
    folder.mkdir()
    (folder / 'claim').write_text(json.dumps(gone))
  code = (
    'root = pathlib.Path(sys.argv[1])\n'
    'sys.stdout.write("ready\\n"); sys.stdout.flush(); sys.stdin.readline()\n'
    'for n in range(60):\n'
    '  if claims.take(root / str(n), root / "lock"): print(n)\n'
    'sys.stdout.flush(); sys.stdin.readline()\n'
  )
  header = 'import pathlib, sys\nfrom tlkd_jax.study import claims\n'
  started = [
    subprocess.Popen(
      [sys.executable, '-c', header + code, str(tmp_path)],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    for _ in range(4)
  ]
  for process in started:
    assert process.stdout.readline() == 'ready\n'
  for process in started:
    process.stdin.write('\n')
    process.stdin.flush()
  # All of them live until all have had their turn.
  deadline = time.monotonic() + 60
  while any(not (tmp_path / str(n) / 'claim').exists() for n in range(60)):
    assert time.monotonic() < deadline
    time.sleep(0.01)
  time.sleep(0.2)
  taken = []
  for process in started:
    taken += process.communicate('\n')[0].split()
  assert sorted(map(int, taken)) == list(range(60))


def test_the_claim_of_a_killed_process_is_void(tmp_path):
  code = (
    'root = pathlib.Path(sys.argv[1])\n'
    'print(claims.take(root / "cell", root / "lock"), flush=True)\n'
    'import time; time.sleep(60)\n'
  )
  process = start(code, tmp_path)
  assert process.stdout.readline() == 'True\n'
  assert not take(tmp_path)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert take(tmp_path)


@pytest.mark.parametrize(('age', 'held'), [(60, True), (2000, False)])
def test_the_claim_of_another_host_lives_while_it_is_touched(
  tmp_path, age, held
):
  folder = tmp_path / 'cell'
  folder.mkdir()
  claim = {'host': 'elsewhere', 'pid': 1, 'born': '1'}
  (folder / 'claim').write_text(json.dumps(claim))
  when = time.time() - age
  os.utime(folder / 'claim', (when, when))
  assert (claims.holder(folder) == 'elsewhere:1') == held
  assert take(tmp_path) != held


def test_touching_keeps_a_claim_fresh_and_ends_it(tmp_path, monkeypatch):
  monkeypatch.setattr(claims, 'TOUCH_SECONDS', 0.01)
  take(tmp_path)
  path = tmp_path / 'cell' / 'claim'
  os.utime(path, (0, 0))
  with claims.touching(tmp_path / 'cell'):
    deadline = time.monotonic() + 10
    while path.stat().st_mtime < 1 and time.monotonic() < deadline:
      time.sleep(0.01)
    assert path.stat().st_mtime > 1
  assert not path.exists()


@pytest.mark.parametrize(('age', 'held'), [(0, True), (100, False)])
def test_a_claim_cut_off_in_writing_is_void_after_a_while(tmp_path, age, held):
  folder = tmp_path / 'cell'
  folder.mkdir()
  (folder / 'claim').write_text('{"host": ')
  when = time.time() - age
  os.utime(folder / 'claim', (when, when))
  assert (claims.holder(folder) is not None) == held
