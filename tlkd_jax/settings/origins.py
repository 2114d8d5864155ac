"""The runs that a run was made from, wherever they lie now.

RUN/origins.json keeps, for each run or file that the settings name, the way to
it from RUN and what it is known by. A folder of runs may then be moved: who
lies beside is found beside, and who was given by another path is recognised;
and a run is not gone on with where others have taken their places.
"""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tlkd_jax.runtime import sealed
from tlkd_jax.runtime.paths import expanded
from tlkd_jax.settings.older import in_todays_keys

KEYS = (
  'student.checkpoint',
  'teacher.checkpoint',
  'distillation.more_teachers',
)
# Where they name a file, the others.
PLACES = (
  *KEYS,
  'student.weights',
  'teacher.weights',
  'teacher.text_weights',
  'teacher.tokenizer',
)
_FILE = 'origins.json'
# Of a checkpoint's files the larger ones have names that no other has.
_READ_BYTES = 4096

Config = dict[str, Any]


def write(folder: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Writes what is known of the runs that a configuration names.

  Args:
    folder: of the run that is made from them.
    config: of this run, nested dicts.
  """
  own = os.path.realpath(folder)
  found = {
    key: [
      {
        'way': os.path.relpath(os.path.realpath(expanded(place)), own),
        'identity': identity(place),
        'predictions': _predictions(place),
      }
      for place in _places(config, key)
      if key in KEYS or expanded(place).is_file()
    ]
    for key in PLACES
  }
  kept = {key: known for key, known in found.items() if known}
  if kept:
    sealed.write_text(folder / _FILE, json.dumps(kept, indent=1) + '\n')


def located(folder: pathlib.Path, config: Config) -> Config:
  """A recorded configuration: today's keys, its runs where they lie now.

  Args:
    folder: of the run.
    config: that it has recorded, nested dicts.

  Raises:
    ValueError: its record of them is damaged.
  """
  known = _read(folder)
  if not isinstance(config, dict):
    return config
  config = {
    name: value.copy() if isinstance(value, dict) else value
    for name, value in in_todays_keys(config).items()
  }
  for key, origins in known.items():
    places = _places(config, key)
    if len(places) != len(origins):
      continue
    found = [
      _locate(folder, place, origin)
      for place, origin in zip(places, origins, strict=True)
    ]
    section, name = key.split('.')
    single = isinstance(config[section][name], str)
    config[section][name] = found[0] if single else found
  return config


def same(folder: pathlib.Path, key: str, value: Any) -> bool:
  """Whether other paths lead to the runs that a run was made from.

  Args:
    folder: of the run.
    key: one of PLACES.
    value: of it now.

  Raises:
    ValueError: its record of them is damaged.
  """
  known = [origin['identity'] for origin in _read(folder).get(key, [])]
  places = [value] if isinstance(value, str) else value or []
  return None not in known and known == [identity(place) for place in places]


def changed(folder: pathlib.Path, config: Mapping[str, Any]) -> list[str]:
  """What lies in the place of what a run was made from, 'KEY: PLACE' each.

  Nothing is said of what is gone, nor of a run that was made again and answers
  as it did.

  Args:
    folder: of the run.
    config: of it now, nested dicts.

  Raises:
    ValueError: its record of them is damaged.
  """
  found = []
  for key, origins in _read(folder).items():
    for place, origin in zip(_places(config, key), origins, strict=False):
      now, then = identity(place), origin['identity']
      again = origin['predictions'] and origin['predictions'] == _predictions(
        place
      )
      if None not in (now, then) and now != then and not again:
        found.append(f'{key}: {place}')
  return found


def has_record(folder: pathlib.Path) -> bool:
  """Whether a run knows what it was made from; older versions did not ask."""
  return (folder / _FILE).exists()


def identity(place: str | os.PathLike) -> str | None:
  """What a run is known by, its best checkpoint; or the bytes of a file.

  None where there is neither. It says which one it is, not whether it is whole.
  """
  path = expanded(place)
  if path.is_file():
    about = path.stat()
    return _digest_of(path, about.st_size, about.st_mtime_ns)
  best = path / 'checkpoints' / 'best'
  files = sorted(file for file in best.rglob('*') if file.is_file())
  if not files:
    return None
  digest = _digest()
  for file in files:
    size = file.stat().st_size
    digest.update(f'{file.relative_to(best).as_posix()} {size}\n'.encode())
    if size <= _READ_BYTES:
      digest.update(file.read_bytes())
  return digest.hexdigest()


def _predictions(place: str | os.PathLike) -> str | None:
  """What a finished run answered, which a run made again answers too."""
  files = sorted((expanded(place) / 'predictions').glob('*.npz'))
  if not files:
    return None
  digest = _digest()
  for file in files:
    digest.update(file.name.encode() + file.read_bytes())
  return digest.hexdigest()


@functools.lru_cache
def _digest_of(path: pathlib.Path, size: int, stamp: int) -> str:
  """Of a file's bytes; read again where size or time say so."""
  del size, stamp
  with path.open('rb') as stream:
    return hashlib.file_digest(stream, _digest).hexdigest()


def _digest():
  return hashlib.blake2b(digest_size=16)


def _places(config: Mapping[str, Any], key: str) -> list[str]:
  section, name = key.split('.')
  inner = config.get(section)
  value = inner.get(name) if isinstance(inner, dict) else None
  return [value] if isinstance(value, str) else list(value or ())


def _locate(folder: pathlib.Path, place: str, origin: Mapping[str, Any]) -> str:
  """Where it was, unless it is beside the run instead, having moved along."""
  known = origin['identity']
  there, beside = expanded(place), folder / origin['way']
  now = identity(beside)
  moved = known is not None and now == known and identity(there) != known
  # What was removed when all was done is known by nothing.
  gone = now is None and beside.exists() and not there.exists()
  return os.path.normpath(beside) if moved or gone else place


def _read(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
  path = folder / _FILE
  if not path.exists():
    return {}
  found = sealed.read_json(path)
  try:
    return {
      key: [
        {
          'way': str(origin['way']),
          'identity': origin['identity'],
          'predictions': origin.get('predictions'),
        }
        for origin in origins
      ]
      for key, origins in found.items()
      if key in PLACES
    }
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{path} is damaged: {error}') from error
