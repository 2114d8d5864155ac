"""Exported files: damage that is found, disks that fill, a run's cost."""

import pathlib
import shutil

import numpy as np

from tests.reliability import runs, storage
from tests.reliability.outcomes import Outcome, of_process
from tests.reliability.runs import Place
from tlkd_jax.export import formats, hub, reading
from tlkd_jax.export.student import load_student

_FORMATS = {
  'safetensors': (['--format=safetensors'], 'a.safetensors'),
  'hub': (['--format=hub'], 'hub'),
  'onnx': (['--format=onnx', '--with-preprocessing'], 'a.onnx'),
  'int8': (['--format=onnx', *runs.INT8], 'int8.onnx'),
}
_NEED_ONNX = ('onnx', 'int8')


def inject(place: Place) -> list[Outcome]:
  """All of it takes a finished run: only in the long form."""
  if not place.long:
    return []
  return runs.together(place, [_damage, _rounding, _full_disks, _read_only])


def _known() -> dict[str, tuple[list[str], str]]:
  lacking = formats.missing('onnx')
  return {
    name: value
    for name, value in _FORMATS.items()
    if not (lacking and name in _NEED_ONNX)
  }


def _command(place: Place, name: str, folder: pathlib.Path) -> list[str]:
  arguments, out = _FORMATS[name]
  return runs.export(place, *arguments, f'--out={folder / out}')


def _damage(place: Place) -> list[Outcome]:
  """Each file is as it was, or named."""
  found, student = [], load_student(runs.unbroken(place)[0])
  image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  for name in _known():
    kind = f'damage: export, {name}'
    folder, draw = place.root / f'export-{name}', place.draw(kind)
    folder.mkdir()
    done = runs.call(_command(place, name, folder))
    if done.code != 0:
      found.append(Outcome(kind, 'traceback', done.error[-2000:]))
      continue
    out = folder / _FORMATS[name][1]
    # What is no part of the network is not read.
    files = (
      [out / n for n in (hub.WEIGHTS, hub.ONNX)] if name == 'hub' else [out]
    )
    for path in filter(pathlib.Path.exists, files):
      versions = storage.damaged(path.read_bytes(), draw, 100, 20)

      def read(out=out):
        return [one.run(image) for one in reading.read(out, student)]

      found += storage.try_each(kind, path, read, versions)
    if name == 'safetensors':
      beside = out.with_name(f'{out.name}.json')
      versions = storage.damaged(beside.read_bytes(), draw, 40, 5)
      found += storage.try_each(kind, beside, read, versions, named=out.name)
  return found


def _rounding(place: Place) -> list[Outcome]:
  """The checkpoint of a student that learned to round."""
  folder = place.root / 'rounding'
  done = runs.call(runs.rounding(place, folder))
  kind = 'damage: checkpoint of a student that rounds'
  if done.code != 0:
    return [Outcome(kind, 'traceback', done.error[-2000:])]
  return storage.best_checkpoint(place, kind, folder, (4, 1))


def _full_disks(place: Place) -> list[Outcome]:
  found = []
  for name in _known():
    whole = place.root / f'export-{name}'
    size = sum(p.stat().st_size for p in whole.rglob('*') if p.is_file())
    for share in (0.2, 0.9):
      found += storage.on_a_full_disk(
        'full disk: export',
        place.root / f'full-export-{name}-{share}',
        int(size * share) + 4096,
        lambda at, n=name: _command(place, n, at),
        lambda at, w=whole: _files_differ(w, at),
      )
  return found


def _files_differ(left: pathlib.Path, right: pathlib.Path) -> list[str]:
  paths = [p.relative_to(left) for p in left.rglob('*') if p.is_file()]
  wrong = [
    str(path)
    for path in paths
    if (left / path).read_bytes() != (right / path).read_bytes()
  ]
  return wrong + [str(p) for p in right.rglob('*.tmp')]


def _read_only(place: Place) -> list[Outcome]:
  kind, found = 'read-only folder', []
  with runs.read_only(place.root / 'read-only-export') as made:
    for name in _known() if made else ():
      command = _command(place, name, place.root / 'read-only-export')
      done = runs.call(command)
      result = of_process(done.code, done.error, ['it went on'])
      what = f'export, {name}: {done.error[-1500:]}'
      found.append(Outcome(kind, result, what))
  shutil.rmtree(place.root / 'read-only-export', ignore_errors=True)
  return found
