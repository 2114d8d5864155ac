"""Disks that are full, read-only or wrong, and files that are damaged."""

import gzip
import json
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from tests import tiny
from tests.reliability import runs
from tests.reliability.outcomes import Outcome, of_process, of_reading
from tests.reliability.runs import Place
from tests.test_target_store import ROWS, VIEWS, fill, make_store
from tests.workdirs import wait_for_step
from tlkd_jax.evaluation import records
from tlkd_jax.models.serving import Figures, Serving
from tlkd_jax.report import page
from tlkd_jax.runtime import sealed, sharding
from tlkd_jax.training import (
  checkpoints,
  data_record,
  decoding,
  finished,
  loop,
  run,
  serving,
  workdir,
)
from tlkd_jax.training.metric_writers import read_rows

# In the middle of a run the clock goes back by ten days.
_SET_BACK = """
import runpy, sys, time
real, began = time.time, time.time()
back = lambda: real() - 864000 * (real() > began + 4)
time.time, time.time_ns = back, lambda: int(back() * 1e9)
sys.argv[:2] = ['tests.tiny']
runpy.run_module('tests.tiny', run_name='__main__', alter_sys=True)
"""


def inject(place: Place) -> list[Outcome]:
  """Damage to each file; in the long form disks too."""
  parts = [_files_of_a_run, _caches, _targets, _older_version]
  if place.long:
    parts += [_states, _full_disks, _read_only, _deleted, _homes]
  return runs.together(place, parts)


def damaged(content: bytes, draw, flips: int, cuts: int) -> Iterator[bytes]:
  """The content with one bit changed, or cut off."""
  for _ in range(flips if content else 0):
    changed = bytearray(content)
    changed[int(draw.integers(len(content)))] ^= 1 << int(draw.integers(8))
    yield bytes(changed)
  for _ in range(cuts if content else 0):
    yield content[: int(draw.integers(len(content)))]


def try_each(
  kind: str, path: pathlib.Path, read: Callable, versions, named='damaged'
) -> list[Outcome]:
  """Reads every version of a file, and puts it back."""
  content, right, found = path.read_bytes(), read(), []
  for version in versions:
    path.write_bytes(version)
    error, same = None, False
    try:
      same = _equal(read(), right)
    # Whatever it is, it is counted.
    except Exception as raised:
      error = raised
    result = of_reading(error, named, same)
    found.append(Outcome(kind, result, f'{path.name}: {error!r}'))
  path.write_bytes(content)
  return found


def _equal(left, right) -> bool:
  a, b = jax.tree.leaves(left), jax.tree.leaves(right)
  return len(a) == len(b) and all(map(_same, a, b))


def _same(a, b) -> bool:
  if isinstance(a, str) or isinstance(b, str):
    return a == b
  return np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == 'f')


def _files_of_a_run(place: Place) -> list[Outcome]:
  kind = 'damage: files of a run'
  folder = place.root / 'damaged-run'
  shutil.copytree(runs.unbroken(place)[0], folder)
  student, draw, found = folder, place.draw(kind), []
  known = json.loads(gzip.decompress((student / 'data.json.gz').read_bytes()))
  readers: dict[str, Callable] = {
    'config.json': lambda: workdir.read(student),
    'origins.json': lambda: workdir.read(student),
    'summary.json': lambda: sealed.read_json(student / 'summary.json'),
    'metrics.jsonl': lambda: read_rows(student / 'metrics.jsonl'),
    'data.json.gz': lambda: data_record.check(student, known),
  }
  cost = serving.path_of(student)
  one = Serving(Figures('tiny', 16, 10, 'float32', 9, 9, 0, 36), ())
  serving.write(student, {'student': one})
  readers[str(cost.relative_to(student))] = lambda: [
    repr(value) for value in serving.read(student).values()
  ]
  records.write_json(student / 'evaluation' / 'clean.json', {'top1': 0.5})
  readers['evaluation/clean.json'] = lambda: sealed.read_json(
    student / 'evaluation' / 'clean.json'
  )
  for path in sorted((student / 'predictions').glob('*.npz')):
    readers[f'predictions/{path.name}'] = lambda p=path: records.read_arrays(p)
  flips, cuts = (150, 30) if place.long else (20, 4)
  for name, read in readers.items():
    path = student / name
    if path.exists():
      versions = damaged(path.read_bytes(), draw, flips, cuts)
      found += try_each(kind, path, read, versions)
  counts = (12, 3) if place.long else (2, 1)
  return found + best_checkpoint(
    place, 'damage: best checkpoint', student, counts
  )


def _in_turn(place: Place, kind: str, folder, read, counts) -> list[Outcome]:
  """Each file of a checkpoint damaged; counts are flips and cuts of one."""
  (flips, cuts), draw, found = counts, place.draw(kind), []
  for path in sorted(folder.rglob('*')):
    if path.is_file():
      many = 4 if path.stat().st_size > 4000 else 1
      versions = damaged(path.read_bytes(), draw, many * flips, cuts)
      found += try_each(kind, path, read, versions, named='corrupt')
  return found


def best_checkpoint(
  place: Place, kind: str, student: pathlib.Path, counts: tuple[int, int]
) -> list[Outcome]:
  """Each file of a run's best checkpoint damaged, as often as counts say."""

  def read():
    about = checkpoints.read_description(student)
    loaded = finished.restore(str(student), about)
    return loaded.params, loaded.model_state, about.class_names

  best = student / 'checkpoints' / 'best'
  return _in_turn(place, kind, best, read, counts)


def _states(place: Place) -> list[Outcome]:
  """What a run goes on from."""
  kind, folder = 'damage: state to resume', place.root / 'damaged-state'
  shutil.copytree(runs.unbroken(place)[0] / 'teacher', folder)
  given = runs.KD | {'targets__dir': str(runs.unbroken(place)[0] / 'targets')}
  config = tiny.make_config('teacher', place.cache_dir, **given)
  mesh, dataset = sharding.make_mesh(1), decoding.load_dataset(config)
  made = run.set_up(config, folder, dataset, mesh)
  nowhere = checkpoints.Checkpoints(place.root / 'nowhere')
  state, _ = loop._start(made, nowhere)
  nowhere.close()
  abstract = checkpoints.abstract_like(state, sharding.replicated(mesh))

  def read():
    latest = checkpoints.Checkpoints(folder)
    try:
      return latest.restore(abstract)
    finally:
      latest.close()

  newest = max(
    (folder / 'checkpoints' / 'latest').iterdir(), key=lambda p: int(p.name)
  )
  return _in_turn(place, kind, newest, read, (8, 2) if place.long else (1, 1))


def _caches(place: Place) -> list[Outcome]:
  """Prepared copies, indices and decoded images: made again."""
  kind, cache = 'damage: caches of data', place.root / 'damaged-cache'
  config = tiny.make_config('tl', cache, data__memory_budget_mib=0)

  def read():
    splits = decoding.load_dataset(config).splits.values()
    return [split.fingerprint() for split in splits]

  right, draw, found = read(), place.draw(kind), []
  files = [p for p in cache.rglob('*') if p.is_file() and p.stat().st_size]
  flips, cuts = (10, 3) if place.long else (1, 1)
  for path in sorted(files):
    many = 5 if place.long and path.suffix in ('.npy', '.npz') else 1
    whole = path.read_bytes()
    for version in damaged(whole, draw, many * flips, cuts):
      path.write_bytes(version)
      error, same = None, False
      try:
        same = read() == right
      # Whatever it is, it is counted.
      except Exception as raised:
        error = raised
        path.write_bytes(whole)
      result = of_reading(error, 'damaged', same)
      found.append(Outcome(kind, result, f'{path.name}: {error!r}'))
  return found


def _targets(place: Place) -> list[Outcome]:
  """Stored targets: used as they were, or computed again."""
  kind, found = 'damage: stored targets', []
  draw = place.draw(kind)
  store, layout = make_store(place.root / 'damaged-targets')
  fill(store, layout)
  rows = np.tile(np.arange(ROWS), VIEWS)
  views = np.repeat(np.arange(VIEWS), ROWS)
  right = store.open(VIEWS)(rows, views)
  flips, cuts = (100, 20) if place.long else (15, 5)
  files = [p for p in store.folder.iterdir() if p.stat().st_size]
  for path in sorted(files):
    content = path.read_bytes()
    for version in damaged(content, draw, flips, cuts):
      path.write_bytes(version)
      error, same = None, False
      try:
        fill(store, layout)
        same = _equal(store.open(VIEWS)(rows, views), right)
      # Whatever it is, it is counted.
      except Exception as raised:
        error = raised
      result = of_reading(error, 'damaged', same)
      found.append(Outcome(kind, result, f'{path.name}: {error!r}'))
  return found


def _older_version(place: Place) -> list[Outcome]:
  """A run without a digest is read as it is."""
  kind, folder = "an older version's run", place.root / 'older'
  shutil.copytree(runs.unbroken(place)[0], folder)
  for path in list(folder.rglob('.sums')):
    shutil.rmtree(path)
  for path in folder.rglob('record/metadata'):
    record = json.loads(path.read_text())
    del record['digests']
    path.write_text(json.dumps(record))
  for path in folder.rglob('metrics.jsonl'):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [
      json.dumps({k: v for k, v in r.items() if k != 'crc'}) for r in rows
    ]
    path.write_text('\n'.join(lines) + '\n')
  about = checkpoints.read_description(folder)
  new = finished.restore(str(folder), about)
  old = finished.restore(str(runs.unbroken(place)[0]), about)
  same = _equal(new.params, old.params)
  page.write([folder], place.root / 'older-report', replicates=20)
  return [Outcome(kind, 'survived' if same else 'wrong', 'weights')]


def _full_disks(place: Place) -> list[Outcome]:
  """A small file system fills during each kind of write; then it grows."""
  found = []
  run_, _ = runs.unbroken(place)
  size = sum(p.stat().st_size for p in run_.rglob('*') if p.is_file())
  draw = place.draw('full disk')
  for number, share in enumerate((0.02, 0.1, 0.25, 0.45, 0.7)):
    folder = place.root / f'full{number}'
    least = int(share * size * float(draw.uniform(0.8, 1.2))) + 16384
    found += on_a_full_disk(
      'full disk: a run',
      folder,
      least,
      lambda at: runs.train(place, at / 'run'),
      lambda at: runs.differences(run_, at / 'run'),
    )
  for number, least in enumerate((20_000, 90_000)):
    found += on_a_full_disk(
      'full disk: targets',
      place.root / f'full-targets{number}',
      least,
      lambda at, n=number: runs.train(
        place, place.root / f'run-full-targets{n}', targets__dir=str(at / 't')
      ),
      lambda _, n=number: _same_but_places(
        run_, place.root / f'run-full-targets{n}'
      ),
    )
  for number, least in enumerate((16_000, 60_000, 400_000)):
    found += on_a_full_disk(
      'full disk: caches of data',
      place.root / f'full-cache{number}',
      least,
      lambda at, n=number: runs.train(
        place,
        place.root / f'run-full-cache{n}',
        data__memory_budget_mib=0,
        data__cache_dir=str(at),
      ),
      lambda _, n=number: _same_but_places(
        run_, place.root / f'run-full-cache{n}'
      ),
    )

  def evaluation(at: pathlib.Path) -> list[str]:
    if not (at / 'run').exists():
      shutil.copytree(run_, at / 'run')
    return runs.evaluate(place, at / 'run', 'all')

  found += on_a_full_disk(
    'full disk: evaluation',
    place.root / 'full-evaluation',
    int(size * 1.3) + 400_000,
    evaluation,
    lambda at: [] if list((at / 'run/evaluation').glob('*.json')) else ['none'],
  )
  found += on_a_full_disk(
    'full disk: report',
    place.root / 'full-report',
    40_000,
    lambda at: (
      ['-m', 'tlkd_jax.report', str(run_), '--replicates=20']
      + [f'--out={at / "report"}']
    ),
    lambda at: [] if (at / 'report/index.html').exists() else ['none'],
  )
  return found


def _same_but_places(left: pathlib.Path, right: pathlib.Path) -> list[str]:
  return [w for w in runs.differences(left, right) if 'targets' not in w]


def on_a_full_disk(kind, folder, size, command, differs) -> list[Outcome]:
  with runs.small_disk(folder, size) as made:
    if not made:
      return []
    try:
      arguments = command(folder)
    except OSError:
      runs.grow(folder)
      return []
    done = runs.call(arguments)
    wrong = differs(folder) if done.code == 0 else []
    result = of_process(done.code, done.error, wrong)
    what = f'{size} bytes: {wrong or done.error[-1500:]}'
    found = [Outcome(kind, result, what)]
    if result == 'refused':
      runs.grow(folder)
      done = runs.call(command(folder))
      wrong = differs(folder) if done.code == 0 else []
      result = of_process(done.code, done.error, wrong)
      result = 'lost' if result == 'refused' else result
      what = f'grown from {size} bytes: {wrong or done.error[-1500:]}'
      found.append(Outcome(f'{kind}, grown', result, what))
    return found


def _read_only(place: Place) -> list[Outcome]:
  kind, folder = 'read-only folder', place.root / 'read-only'
  content, whole = place.root / 'to-be-read', runs.unbroken(place)[0]
  shutil.copytree(whole, content / 'run')
  shutil.copytree(place.cache_dir, content / 'cache')
  # What `unbroken` stored is copied with it.
  given = {
    'data__cache_dir': str(folder / 'cache'),
    'targets__dir': str(folder / 'run' / 'targets'),
  }
  with runs.read_only(folder, content) as made:
    if not made:
      return []
    commands = {
      'a new run': runs.train(place, folder / 'new'),
      'a finished run': runs.train(
        place, folder / 'run', targets__dir=str(whole / 'targets')
      ),
      'evaluation': runs.evaluate(place, folder / 'run', 'clean'),
      'report': ['-m', 'tlkd_jax.report', str(folder), f'--out={folder}/r'],
      'filled caches': runs.train(place, place.root / 'ro', **given),
      'an empty cache': runs.train(
        place, place.root / 'ro-e', data__cache_dir=str(folder / 'none')
      ),
    }
    found = []
    for name, command in commands.items():
      done = runs.call(command)
      wrong = []
      if name == 'filled caches' and done.code == 0:
        wrong = _same_but_places(whole, place.root / 'ro')
      result = of_process(done.code, done.error, wrong)
      found.append(Outcome(kind, result, f'{name}: {done.error[-1500:]}'))
    return found


def _deleted(place: Place) -> list[Outcome]:
  """Files that go while a run is writing; the same command goes on."""
  kind, found = 'deleted during a run', []
  names = ('metrics.jsonl', 'checkpoints/latest', 'config.json', '.')
  for name in (*names, 'caches'):
    folder = place.root / f'deleted-{len(found)}'
    given: dict = {'num_steps': 400}
    if name == 'caches':
      # What it has mapped goes too.
      given |= {
        'data__memory_budget_mib': 0,
        'data__cache_dir': str(folder / name),
      }
    command = runs.train(place, folder, 'tl', **given)
    process = runs.start(command)
    wait_for_step(folder, process, 3)
    gone = folder / name
    if gone.is_file():
      gone.unlink()
    else:
      shutil.rmtree(gone, ignore_errors=True)
    done = runs.wait(process, 300)
    result = of_process(done.code, done.error, [])
    found.append(Outcome(kind, result, f'{name}: {done.error[-1500:]}'))
    again = runs.call(command)
    result = of_process(again.code, again.error, [])
    found.append(Outcome(kind, result, f'{name}, again: {again.error[-1500:]}'))
  return found


def _homes(place: Place) -> list[Outcome]:
  """Surroundings that are not as usual."""
  kind, found = 'home, network, temporary folder, clock', []
  run_, full = runs.unbroken(place)[0], place.root / 'full-tmp'
  with runs.small_disk(full, 16_384) as made:
    (full / 'x').write_bytes(b'0' * 8192 if made else b'')
    no_home = f'{place.root / "file"}/home'
    (place.root / 'file').touch()
    surroundings: list[tuple[str, dict[str, str | None]]] = [
      ('no network', {}),
      ('no HOME', {'HOME': None, 'XDG_CACHE_HOME': None}),
      ('HOME cannot be made', {'HOME': no_home, 'XDG_CACHE_HOME': None}),
    ]
    if made:
      # Where nothing can be made, root or not.
      surroundings.append(
        ('HOME is read-only', {'HOME': '/proc', 'XDG_CACHE_HOME': None})
      )
      surroundings.append(('full temporary folder', {'TMPDIR': str(full)}))
    for name, environment in surroundings:
      folder = place.root / name.replace(' ', '-')
      command = runs.train(place, folder)
      # The cache of programs is in the home by default.
      command = [c for c in command if not c.startswith('--compilation')]
      # In a network of its own, without a device.
      alone = ('unshare', '--net') if name == 'no network' else ()
      if alone and subprocess.run([*alone, 'true']).returncode:
        continue
      done = runs.call(command, prefix=alone, **environment)
      wrong = runs.differences(run_, folder) if done.code == 0 else []
      result = of_process(done.code, done.error, wrong)
      what = f'{name}: {wrong or done.error[-1500:]}'
      found.append(Outcome(kind, result, what))
  return found + _clocks(place)


def _clocks(place: Place) -> list[Outcome]:
  """A clock that is set back, between two starts and while a run goes on."""
  kind, found = 'home, network, temporary folder, clock', []
  whole, folder = runs.unbroken(place)[0], place.root / 'future'
  process = runs.start(runs.train(place, folder))
  wait_for_step(folder / 'teacher', process, 3)
  runs.kill(process)
  runs.wait(process)
  later = time.time() + 10 * 86400
  for path in folder.rglob('*'):
    os.utime(path, (later, later))
  during = place.root / 'set-back'
  commands = {
    folder: runs.train(place, folder),
    during: ['-c', _SET_BACK, *runs.train(place, during)[1:]],
  }
  for at, command in commands.items():
    done = runs.call(command)
    wrong = runs.differences(whole, at) if done.code == 0 else []
    result = of_process(done.code, done.error, wrong)
    what = f'{at.name}: {wrong or done.error[-1500:]}'
    found.append(Outcome(kind, result, what))
  return found
