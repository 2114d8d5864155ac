"""The store of what frozen backbones say: kills, full disks, damage, two."""

import json
import pathlib

import numpy as np

from tests.reliability import kills, runs, storage
from tests.reliability.outcomes import Outcome, of_process, of_reading
from tests.reliability.runs import Place
from tests.test_feature_store import filled, make_store, rows_for

# A teacher that is a probe, whose stored targets are its head on features.
_PROBED = {
  'teacher__fit': 'probed',
  'teacher__probe_views': 2,
  'teacher__probe_folds': 3,
  'augment__crop': 'random_resized',
}
_KEYS = np.arange(60)


def inject(place: Place) -> list[Outcome]:
  """Damage; in the long form commands too."""
  parts = [_damage]
  if place.long:
    parts += [_kills, _damaged_between, _full_disks, _read_only, _two]
  return runs.together(place, parts)


def _damage(place: Place) -> list[Outcome]:
  """Rows as they were, or missing and then computed again."""
  kind, found = 'damage: stored features', []
  store, draw = filled(place.root / 'features', _KEYS), place.draw(kind)
  right = rows_for(_KEYS, view=1)

  def again() -> np.ndarray:
    with store.claimed():
      view = store.read(1)
      missing = _KEYS[view.find(_KEYS.astype(np.uint64)) < 0]
      if missing.size:
        store.write(1, rows_for(missing, view=1))
        view = store.read(1)
      return view.take(view.find(_KEYS.astype(np.uint64)))

  flips, cuts = (150, 30) if place.long else (20, 5)
  files = sorted(p for p in store.folder.iterdir() if p.stat().st_size)
  whole = {path: path.read_bytes() for path in files}
  for path in files:
    for version in storage.damaged(whole[path], draw, flips, cuts):
      for left in store.folder.glob('view*'):
        left.unlink()
      for each, content in whole.items():
        each.write_bytes(content)
      path.write_bytes(version)
      error, same = None, False
      try:
        same = np.array_equal(again(), right)
      # Whatever it is, it is counted.
      except Exception as raised:
        error = raised
      result = of_reading(error, 'damaged', same)
      found.append(Outcome(kind, result, f'{path.name}: {error!r}'))
  other = make_store(place.root / 'features', of='another backbone')
  with other.claimed():
    none = not len(other.read(1).files)
  what = 'another backbone reads nothing'
  return [*found, Outcome(kind, 'survived' if none else 'wrong', what)]


def _train(place: Place, folder: pathlib.Path, **changes) -> list[str]:
  given = _PROBED | {'targets__features_dir': str(folder / 'features')}
  return runs.train(place, folder, **given | changes)


def _unbroken(place: Place) -> pathlib.Path:
  folder = place.root / 'probed'
  if not (folder / 'summary.json').exists():
    done = runs.call(_train(place, folder))
    if done.code != 0:
      raise RuntimeError(done.error)
  return folder


def _differs(left: pathlib.Path, right: pathlib.Path) -> list[str]:
  return [w for w in runs.differences(left, right) if '/features/' not in w]


def _kills(place: Place) -> list[Outcome]:
  return kills.chain_of(
    place,
    'kill: features of a frozen teacher',
    lambda folder: _train(place, folder),
    _differs,
    4,
  )


def _outcome(kind: str, done, whole, folder, what: str) -> Outcome:
  wrong = _differs(whole, folder) if done.code == 0 else []
  result = of_process(done.code, done.error, wrong)
  return Outcome(kind, result, f'{what}: {wrong or done.error[-1500:]}')


def _stored_at(place: Place, kind: str, at: pathlib.Path, what: str) -> Outcome:
  """Of a run whose features are stored there."""
  folder = place.root / f'run-{at.name}-{what.replace(" ", "-")}'
  done = runs.call(_train(place, folder, targets__features_dir=str(at)))
  return _outcome(kind, done, _unbroken(place), folder, what)


def _damaged_between(place: Place) -> list[Outcome]:
  """Of two runs: the second finds a wrong bit, says so, and is the same."""
  kind, whole = 'damage: features between two runs', _unbroken(place)
  draw, found = place.draw(kind), []
  store = whole / 'features'
  for number, path in enumerate(sorted(store.glob('*/view*.npy'))[:3]):
    content = path.read_bytes()
    (version,) = storage.damaged(content, draw, 1, 0)
    path.write_bytes(version)
    folder = place.root / f'probed-again{number}'
    done = runs.call(_train(place, folder, targets__features_dir=str(store)))
    one = _outcome(kind, done, whole, folder, path.name)
    if one.result == 'survived':
      said = f'{path} was damaged' in done.error
      same = path.exists() and path.read_bytes() == content
      if not (said and same):
        one = Outcome(kind, 'wrong', f'{path.name}: {said=}, {same=}')
    found.append(one)
  return found


def _full_disks(place: Place) -> list[Outcome]:
  found = []
  for number, size in enumerate((4096, 16_384, 40_000)):
    at = place.root / f'full-features{number}'
    with runs.small_disk(at, size) as made:
      if made:
        what = f'{size} bytes'
        found.append(_stored_at(place, 'full disk: features', at, what))
  return found


def _read_only(place: Place) -> list[Outcome]:
  """One that is empty, and one in which all is there."""
  whole, found = _unbroken(place), []
  for name, there in {'empty': None, 'filled': whole / 'features'}.items():
    at = place.root / f'read-only-features-{name}'
    with runs.read_only(at, there) as made:
      if made:
        found.append(_stored_at(place, 'read-only features', at, name))
  return found


def _two(place: Place) -> list[Outcome]:
  """Two runs fill one store at once; what is there is what one would write."""
  kind, whole = 'two processes: features', _unbroken(place)
  store = place.root / 'features-of-two'
  folders = [place.root / name for name in ('probed-one', 'probed-other')]
  started = [
    runs.start(_train(place, f, targets__features_dir=str(store)))
    for f in folders
  ]
  found = []
  for folder, process in zip(folders, started, strict=True):
    found.append(_outcome(kind, runs.wait(process), whole, folder, 'run'))
  names = [
    sorted(str(p.relative_to(root)) for p in root.rglob('view*'))
    for root in (store, whole / 'features')
  ]
  same = names[0] == names[1]
  result = 'survived' if same else 'wrong'
  return [*found, Outcome(kind, result, json.dumps(names))]
