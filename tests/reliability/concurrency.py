"""Two processes at once on a workdir, a study, a cache; a lost peer."""

import pathlib
import shutil
import socket
import time

from tests.reliability import runs
from tests.reliability.outcomes import Outcome, of_process
from tests.reliability.runs import Done, Place
from tests.workdirs import wait_for_step
from tlkd_jax.runtime import locked

# After which the processes of a run must have ended when one of them is lost.
_PEER_SECONDS = 180.0


def inject(place: Place) -> list[Outcome]:
  """A second command in a folder in use; in the long form all of them."""
  parts = [_held_workdir]
  if place.long:
    parts += [_one_workdir, _one_study, _one_cache, _lost_peer]
  return runs.together(place, parts)


def _refused(kind: str, done: Done, what: str) -> Outcome:
  """Of a second command, which must say that the place is in use."""
  result = of_process(done.code, done.error, ['it went on'])
  if result == 'refused' and 'in use by another process' not in done.error:
    result = 'traceback'
  return Outcome(kind, result, f'{what}: {done.error[-1500:]}')


def _held_workdir(place: Place) -> list[Outcome]:
  """This process stands for the first one."""
  folder = place.root / 'held'
  with locked.held(folder):
    done = runs.call(runs.train(place, folder, 'tl'))
  return [_refused('two processes: workdir', done, 'held')]


def _one_workdir(place: Place) -> list[Outcome]:
  kind, folder = 'two processes: workdir', place.root / 'twice'
  command = runs.train(place, folder, 'tl', num_steps=600)
  first = runs.start(command)
  wait_for_step(folder, first, 3)
  second = runs.call(command)
  done = runs.wait(first)
  result = of_process(done.code, done.error, [])
  return [
    _refused(kind, second, 'second'),
    Outcome(kind, result, f'first: {done.error[-1500:]}'),
  ]


def _one_study(place: Place) -> list[Outcome]:
  kind, folder = 'two processes: study', place.root / 'study-twice'
  first = runs.start(runs.study(place, folder))
  deadline = time.monotonic() + 300
  while not (folder / 'plan.json').exists() and time.monotonic() < deadline:
    time.sleep(0.05)
  second = runs.call(runs.study(place, folder))
  shard = runs.call(runs.study(place, folder, '--shard=1/2'))
  done = runs.wait(first)
  result = of_process(done.code, done.error, [])
  return [
    _refused(kind, second, 'second'),
    _refused(kind, shard, 'shard'),
    Outcome(kind, result, f'first: {done.error[-1500:]}'),
  ]


def _one_cache(place: Place) -> list[Outcome]:
  """Two runs that make the same copies, images and targets."""
  kind, found = 'two processes: cache', []
  cache, targets = place.root / 'cache-of-two', place.root / 'targets-of-two'
  given = {
    'data__memory_budget_mib': 0,
    'data__cache_dir': str(cache),
    'targets__dir': str(targets),
  }
  folders = [place.root / 'one-of-two', place.root / 'other-of-two']
  started = [runs.start(runs.train(place, f, **given)) for f in folders]
  for folder, process in zip(folders, started, strict=True):
    done = runs.wait(process)
    whole = runs.unbroken(place)[0]
    wrong = runs.differences(whole, folder) if done.code == 0 else []
    result = of_process(done.code, done.error, wrong)
    found.append(Outcome(kind, result, f'{wrong or done.error[-1500:]}'))
  left = [p.name for p in cache.rglob('.*-*')]
  found.append(Outcome(kind, 'wrong' if left else 'survived', f'left: {left}'))
  return found


def _two(place: Place, folder: pathlib.Path, **changes):
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    port = listener.getsockname()[1]
  return [
    runs.start(
      runs.train(place, folder, 'tl', **changes)
      + ['--distributed', f'--coordinator=127.0.0.1:{port}']
      + ['--num_processes=2', f'--process_id={number}']
    )
    for number in (0, 1)
  ]


def _lost_peer(place: Place) -> list[Outcome]:
  """One of two processes of a run is killed; both are started again."""
  kind, found = 'two processes of one run: one is lost', []
  whole = place.root / 'pair'
  for process in _two(place, whole, num_steps=60):
    done = runs.wait(process, 400)
    if done.code != 0:
      return [Outcome(kind, 'traceback', f'unbroken: {done.error[-2000:]}')]
  for lost in (1, 0):
    folder = place.root / f'pair-{lost}'
    pair = _two(place, folder, num_steps=60)
    wait_for_step(folder, pair[0], 3)
    runs.kill(pair[lost])
    runs.wait(pair[lost])
    done = runs.wait(pair[1 - lost], _PEER_SECONDS)
    result = of_process(done.code, done.error, [])
    found.append(Outcome(kind, result, f'{lost} lost: {done.error[-2500:]}'))
    ended = [runs.wait(p, 400) for p in _two(place, folder, num_steps=60)]
    worst = next((d for d in ended if d.code != 0), ended[0])
    wrong = runs.differences(whole, folder) if worst.code == 0 else []
    result = of_process(worst.code, worst.error, wrong)
    result = 'lost' if result == 'refused' else result
    found.append(
      Outcome(kind, result, f'again: {wrong or worst.error[-2000:]}')
    )
    shutil.rmtree(folder)
  return found
