"""Commands that are killed at random moments, and started again."""

import json
import os
import pathlib
import shutil
import signal
import time

from tests.reliability import runs
from tests.reliability.outcomes import Outcome, of_process
from tests.reliability.runs import Place
from tlkd_jax.export import formats

_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def inject(place: Place) -> list[Outcome]:
  """A run; in the long form each kind of command."""
  parts = [_runs]
  if place.long:
    parts += [_unlabelled, _rounding, _evaluations, _exports, _studies]
  return runs.together(place, parts)


def _runs(place: Place) -> list[Outcome]:
  whole, seconds = runs.unbroken(place)
  return _chain(
    place,
    'kill: teacher, targets, training',
    lambda folder: runs.train(place, folder),
    lambda folder: runs.differences(whole, folder),
    seconds,
    9 if place.long else 1,
  )


def _unlabelled(place: Place) -> list[Outcome]:
  rest = {'distillation__unlabelled': 'rest', 'targets__mode': 'online'}
  return chain_of(
    place,
    'kill: unlabelled images',
    lambda folder: runs.train(place, folder, **rest),
    runs.differences,
    4,
  )


def chain_of(place, kind, command, differs, count) -> list[Outcome]:
  """A chain whose unbroken command is run first."""
  whole = place.root / f'{_folder(kind)}-whole'
  began = time.monotonic()
  done = runs.call(command(whole))
  seconds = time.monotonic() - began
  if done.code != 0:
    return [Outcome(kind, 'traceback', f'unbroken: {done.error[-2000:]}')]
  return _chain(
    place,
    kind,
    command,
    lambda folder: differs(whole, folder),
    seconds,
    count,
  )


def _chain(place: Place, kind, command, differs, seconds, count):
  """Kills, and a last start that ends; then it must be as if unbroken."""
  draw, found = place.draw(kind), []
  folder = place.root / _folder(kind)
  for number in range(count):
    process = runs.start(command(folder))
    moment = float(draw.uniform(0.0, 1.1 * seconds))
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < moment:
      time.sleep(0.01)
    stop = _SIGNALS[number % len(_SIGNALS)]
    # Study's workers are of the session; Ctrl-C reaches all of it.
    runs.kill(process, stop)
    done = runs.wait(process, 300)
    what = f'{signal.Signals(stop).name} after {moment:.1f} s'
    if done.code is None or 'Traceback' in done.error:
      bad = 'hang' if done.code is None else 'traceback'
      found.append(Outcome(kind, bad, f'{what}: {done.error[-2000:]}'))
    else:
      found.append(Outcome(kind, 'survived', what))
  done = runs.call(command(folder))
  wrong = differs(folder) if done.code == 0 else []
  result = of_process(done.code, done.error, wrong)
  if result != 'survived':
    result = 'lost' if result == 'refused' else result
    said = f'after {count} kills: {wrong or done.error[-2000:]}'
    # The kill that did it is not known.
    found[-1] = Outcome(kind, result, said)
  return found


def _folder(kind: str) -> str:
  return ''.join(c if c.isalnum() else '_' for c in kind)


def _evaluations(place: Place) -> list[Outcome]:
  def command(folder: pathlib.Path) -> list[str]:
    if not folder.exists():
      shutil.copytree(runs.unbroken(place)[0], folder)
    return runs.evaluate(place, folder, 'all')

  return chain_of(place, 'kill: --suite=all', command, _evaluation_differs, 4)


def _evaluation_differs(left: pathlib.Path, right: pathlib.Path) -> list[str]:
  files = [p.relative_to(left) for p in left.glob('evaluation/**/*.json')]
  wrong = [
    str(name)
    for name in files
    if runs.without_clock(json.loads((left / name).read_text()))
    != runs.without_clock(json.loads((right / name).read_text()))
  ]
  return wrong + (['nothing evaluated'] if not files else [])


def _rounding(place: Place) -> list[Outcome]:
  """A student that learns to round goes on with a finished one."""
  return chain_of(
    place,
    'kill: a student that learns to round',
    lambda folder: runs.rounding(place, folder),
    runs.differences,
    3,
  )


# What is exported: what the command takes, and how often it is killed.
_EXPORTS = {
  'safetensors': (['--format=safetensors', '--out={}/a.safetensors'], 2),
  'hub': (['--format=hub', '--out={}/hub'], 3),
  'int8': (['--format=onnx', *runs.INT8, '--out={}/a.onnx'], 3),
}


def _exports(place: Place) -> list[Outcome]:
  found = []
  for name, (arguments, count) in _EXPORTS.items():
    if name == 'int8' and formats.missing('onnx'):
      continue

    def command(folder: pathlib.Path, given=arguments) -> list[str]:
      folder.mkdir(exist_ok=True)
      return runs.export(place, *(text.format(folder) for text in given))

    kind = f'kill: export, {name}'
    found += chain_of(place, kind, command, _files_differ, count)
  return found


def _files_differ(left: pathlib.Path, right: pathlib.Path) -> list[str]:
  """Of what an export wrote; what kills left beside is not asked for."""
  paths = [path for path in left.rglob('*') if path.is_file()]
  return [
    str(path.relative_to(left))
    for path in paths
    if path.read_bytes() != (right / path.relative_to(left)).read_bytes()
  ]


def _studies(place: Place) -> list[Outcome]:
  """The command and its workers together, or a worker, or the command."""
  kind = 'kill: study --jobs=2, parent or worker'
  whole = place.root / 'study-whole'
  began = time.monotonic()
  first = runs.call(runs.study(place, whole))
  seconds = time.monotonic() - began
  if first.code != 0:
    return [Outcome(kind, 'traceback', first.error[-2000:])]
  folder, draw, found = place.root / 'study', place.draw(kind), []
  finished: dict[str, int] = {}
  jobs = ['--jobs=2'] if (os.cpu_count() or 1) > 1 else []
  for number in range(5):
    process = runs.start(runs.study(place, folder, *jobs))
    time.sleep(float(draw.uniform(0.2, 0.9)) * seconds)
    workers = _children(process.pid)
    if number % 3 == 1 and workers:
      os.kill(workers[int(draw.integers(len(workers)))], signal.SIGKILL)
      runs.wait(process, 300)
    elif number % 3 == 2:
      process.kill()
      runs.wait(process, 60)
      _await_end(workers)
    else:
      runs.kill(process)
      runs.wait(process, 60)
    now = {str(p): p.stat().st_mtime_ns for p in folder.rglob('cell.json')}
    lost = [p for p, written in finished.items() if now.get(p) != written]
    result = 'lost' if lost else 'survived'
    found.append(Outcome(kind, result, f'kill {number}: {lost}'))
    finished = now
  done = runs.call(runs.study(place, folder))
  wrong = _study_differs(whole, folder) if done.code == 0 else []
  result = of_process(done.code, done.error, wrong)
  if result != 'survived':
    result = 'lost' if result == 'refused' else result
    found[-1] = Outcome(kind, result, f'{wrong or done.error[-2000:]}')
  return found + _shards(place, whole)


def _shards(place: Place, whole: pathlib.Path) -> list[Outcome]:
  """Two machines' commands at once; one is killed and started again."""
  kind, folder = 'kill: study --shard', place.root / 'shards'
  first = runs.start(runs.study(place, folder, '--shard=1/2'))
  second = runs.start(runs.study(place, folder, '--shard=2/2'))
  time.sleep(8.0)
  runs.kill(first)
  runs.wait(first, 60)
  again = runs.wait(runs.start(runs.study(place, folder, '--shard=1/2')))
  other = runs.wait(second)
  report = runs.call(runs.study(place, folder, '--only_report'))
  found = []
  for done in (again, other, report):
    wrong = _study_differs(whole, folder) if done is report else []
    result = of_process(done.code, done.error, wrong)
    result = 'lost' if result == 'refused' else result
    found.append(Outcome(kind, result, f'{wrong or done.error[-2000:]}'))
  return found


def _study_differs(left: pathlib.Path, right: pathlib.Path) -> list[str]:
  rows = []
  for root in (left, right):
    found = runs.without_clock(json.loads((root / 'results.json').read_text()))
    for row in found:
      row['curve'] = [(step, value) for step, _, value in row['curve']]
      # The cores of a machine's part are not those of the whole.
      row.pop('made', None)
    rows.append(found)
  return ['results.json'] if rows[0] != rows[1] else []


def _children(pid: int) -> list[int]:
  text = pathlib.Path(f'/proc/{pid}/task/{pid}/children')
  return [int(p) for p in text.read_text().split()] if text.exists() else []


def _await_end(pids: list[int]) -> None:
  deadline = time.monotonic() + 120
  while any(pathlib.Path(f'/proc/{pid}').exists() for pid in pids):
    if time.monotonic() > deadline:
      raise RuntimeError(f'workers {pids} outlive their command')
    time.sleep(0.1)
