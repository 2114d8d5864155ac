"""What caches hold is listed, and what nobody uses is removed."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import test_feature_store, test_target_store, tiny
from tlkd_jax import caches
from tlkd_jax.data import Dataset
from tlkd_jax.runtime import locked
from tlkd_jax.training import decoding

pytestmark = pytest.mark.usefixtures('tiny_models')

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def filled(tmp_path_factory):
  """A folder with entries of each kind."""
  folder = tmp_path_factory.mktemp('filled')
  for size in (2, 3):
    with tiny.registered():
      load(folder, size)
    images = np.zeros((4, 8, 8, 3), np.uint8) + size
    Dataset.from_arrays(*[(images, [0, 1, 0, 1])] * 3, cache_dir=folder)
    dtype = f'float{size * 16 - 16}'
    test_feature_store.filled(folder / 'features', dtype=dtype, of=size)
    store, layout = test_target_store.make_store(folder / 'targets', of=size)
    with store.claimed():
      test_target_store.fill(store, layout)
  compiled = folder / 'compiled'
  compiled.mkdir()
  for name in ('a', 'b'):
    (compiled / f'jit_{name}-{"0" * 64}-cache').write_bytes(b'0' * 99)
  return folder


@pytest.fixture
def cache(filled, tmp_path):
  """A copy of it, which nobody uses."""
  yield pathlib.Path(shutil.copytree(filled, tmp_path / 'cache'))
  let_go()


def load(folder, size):
  config = tiny.make_config(
    'tl', folder, data__memory_budget_mib=0, data__train_size=size * 10
  )
  return decoding.load_dataset(config)


def let_go():
  """As where the process that used it has ended."""
  for file in locked._kept.values():
    os.close(file)
  locked._kept.clear()


def counts(folder) -> dict[str, int]:
  found = [entry.kind for entry in caches.entries(folder)]
  return {kind: found.count(kind) for kind in dict.fromkeys(found)}


def contents(folder) -> list[str]:
  """Files, but for those of locks."""
  return sorted(
    str(path.relative_to(folder))
    for path in folder.rglob('*')
    if path.is_file() and 'locks' not in path.parts
  )


def test_each_kind_goes_alone_and_only_what_is_ours(cache, capsys):
  before = counts(cache)
  assert before.keys() == caches.KINDS.keys()
  assert all(number >= 1 for number in before.values())
  mine = [
    cache / 'decoded' / 'photographs.npy',
    cache / 'features' / 'notes' / 'fingerprint.json',
    cache / 'prepared' / 'mine' / 'a.png',
    cache / 'compiled' / 'README',
    cache / 'index' / 'mine.npz',
    cache / 'targets' / 'list.txt',
  ]
  for path in mine:
    path.parent.mkdir(exist_ok=True)
    path.write_text('mine')
  assert counts(cache) == before
  for kind in caches.KINDS:
    caches.main([str(cache), f'--clear={kind}'])
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith(f'  {before.pop(kind)} removed, '), said
    assert counts(cache) == before, kind
  assert contents(cache) == sorted(str(p.relative_to(cache)) for p in mine)


def test_what_was_cleared_is_made_again(cache):
  right = [s.fingerprint() for s in load(cache, 2).splits.values()]
  let_go()
  caches.main([str(cache), '--clear=decoded,prepared,index'])
  found = [s.fingerprint() for s in load(cache, 2).splits.values()]
  assert found == right


def test_what_a_process_uses_stays(cache, capsys):
  """And goes once that process has ended, however that was."""
  code = (
    'import sys, pathlib; from tlkd_jax.runtime import locked\n'
    'for name in sys.argv[1:]: locked.keep(pathlib.Path(name))\n'
    'print("kept", flush=True); sys.stdin.read()'
  )
  found = caches.entries(cache)
  held = [
    next(e for e in found if e.kind == kind)
    for kind in ('features', 'targets', 'decoded', 'prepared', 'arrays')
  ]
  process = subprocess.Popen(
    [sys.executable, '-c', code, *(str(entry.lock) for entry in held)],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  assert process.stdout is not None
  process.stdout.readline()
  kinds = ','.join(entry.kind for entry in held)
  try:
    assert [e.is_in_use() for e in found] == [e in held for e in found]
    caches.main([str(cache), f'--clear={kinds}'])
    assert '5 in use, or used since, stay' in capsys.readouterr().out
    assert all(path.exists() for entry in held for path in entry.paths)
    left = [e for e in caches.entries(cache) if e.kind in kinds.split(',')]
    assert len(left) == len(held) and all(entry in held for entry in left)
  finally:
    process.kill()
    process.communicate()
  caches.main([str(cache), f'--clear={kinds}'])
  assert not any(path.exists() for entry in held for path in entry.paths)


def test_what_was_used_lately_stays(cache, capsys):
  old = time.time() - 40 * 86400
  store = next(e for e in caches.entries(cache) if e.kind == 'features')
  for path in [*store.paths, store.lock]:
    os.utime(path, (old, old))
  arguments = [str(cache), '--clear=features', '--unused_days']
  caches.main([*arguments, '41'])
  assert counts(cache)['features'] == 2
  caches.main([*arguments, '39'])
  assert counts(cache)['features'] == 1
  assert '1 removed' in capsys.readouterr().out
  assert store not in caches.entries(cache)
  # An older version's, without a file of when it was used.
  (left,) = (e for e in caches.entries(cache) if e.kind == 'features')
  left.lock.unlink()
  for path in left.paths:
    os.utime(path, (old, old))
  assert not left.is_in_use() and not left.lock.exists()
  caches.main([*arguments, '39'])
  assert 'features' not in counts(cache)


def test_of_a_clock_that_was_set_back(cache):
  later = time.time() + 86400
  for path in (cache / 'features').rglob('*'):
    os.utime(path, (later, later))
  caches.main([str(cache), '--clear=features', '--unused_days=1'])
  assert counts(cache)['features'] == 2
  caches.main([str(cache), '--clear=features'])
  assert 'features' not in counts(cache)


@pytest.mark.parametrize('kind', ['features', 'targets'])
def test_a_folder_of_stores_is_given_by_itself(kind, cache, capsys):
  """As with targets.dir and targets.features_dir, of whatever name."""
  elsewhere = (cache / kind).rename(cache / 'elsewhere')
  assert counts(elsewhere) == {kind: 2}
  assert kind not in counts(cache)
  caches.main([str(elsewhere), f'--clear={kind}'])
  assert not list(elsewhere.iterdir())


def test_the_table(cache, capsys):
  load(cache, 2)
  caches.main([str(cache)])
  lines = capsys.readouterr().out.splitlines()
  rows = {line.split()[0]: line.split()[1:] for line in lines[2:]}
  assert lines[0] == str(cache) and rows.keys() == caches.KINDS.keys()
  # This process's own.
  in_use = {kind: int(row[2]) for kind, row in rows.items() if row[2] != '0'}
  assert in_use.keys() == {'decoded', 'prepared'}
  assert rows['compiled'][:3] == ['2', '0.0', '0']
  caches.main([str(cache / 'locks')])
  assert capsys.readouterr().out == f'{cache / "locks"}: nothing\n'


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--clear=feature'], "kind of cache 'feature': did you mean features"),
    (['--clear='], "unknown kind of cache ''"),
    (['--clear=all'], "unknown kind of cache 'all'"),
    (['--unused_days=3'], '--unused_days is of --clear'),
    (['--clear=index', '--unused_days=-1'], 'is -1.0; accepted: 0 or more'),
    (['--clear=index', '--unused_days=nan'], 'is nan; accepted: 0 or more'),
    (['nowhere'], 'nowhere: no such folder'),
    (['~nobody-of-this-name/x'], 'no home folder'),
  ],
)
def test_mistakes(arguments, message, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as stop:
    caches.main(arguments)
  assert stop.value.code == 2
  said = ' '.join(capsys.readouterr().err.split())
  assert re.search(re.escape(message), said), said


def test_a_removal_that_was_killed_leaves_a_whole_copy_or_none(
  cache, monkeypatch
):
  def killed(path):
    raise KeyboardInterrupt

  monkeypatch.setattr(caches.shutil, 'rmtree', killed)
  with pytest.raises(KeyboardInterrupt):
    caches.main([str(cache), '--clear=prepared'])
  monkeypatch.undo()
  assert 'prepared' not in counts(cache)
  load(cache, 2)
  assert counts(cache)['prepared'] == 1
  assert not list((cache / 'prepared').glob('.*-*'))
