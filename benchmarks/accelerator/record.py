"""The file of the command: what was measured, on what, by which code.

{'identity': {'code', 'device', 'devices', 'small'},    # rows of one alone
 'commit', 'machine', 'card',
 'parts': {name: {'rows': [{'key': ..., ...}], 'seconds', 'left_out': [...],
                  'failed': the end of a process's errors}}}
"""

import hashlib
import json
import pathlib
import subprocess
from typing import Any

from tlkd_jax.runtime.atomic import replace_text

ROOT = pathlib.Path(__file__).resolve().parents[2]
_CODE = ('tlkd_jax/**/*.py', 'benchmarks/*.py', 'benchmarks/accelerator/*.py')
# Read what others measured; changing them changes no figure.
_READERS = ('tables.py', 'run_all.py', 'publish.py', 'study_tables.py')


def code(root: pathlib.Path = ROOT) -> str:
  """Digest of all that a figure depends on; of a copy without git too."""
  digest = hashlib.blake2b(digest_size=8)
  files = sorted(path for pattern in _CODE for path in root.glob(pattern))
  for path in files:
    if path.name not in _READERS:
      digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
  return digest.hexdigest()


def commit(root: pathlib.Path = ROOT) -> str | None:
  """Of the work tree, '-changed' behind it where files differ from it."""

  def git(*arguments: str) -> str:
    return subprocess.run(
      ['git', *arguments],
      cwd=root,
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()

  try:
    head = git('rev-parse', 'HEAD')
    return f'{head}-changed' if git('status', '--porcelain', '-uno') else head
  except (OSError, subprocess.CalledProcessError):
    return None


def load(path: pathlib.Path) -> dict[str, Any]:
  """The file, {} where there is none.

  Raises:
    ValueError: it is no record of this command.
  """
  if not path.exists():
    return {}
  found = json.loads(path.read_text())
  if not isinstance(found, dict) or found.get('benchmark') != 'accelerator':
    raise ValueError(f'{path} is no file of benchmarks.accelerator')
  return found


def store(path: pathlib.Path, found: dict[str, Any]) -> None:
  """Writes the file, whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  replace_text(path, json.dumps(found, indent=1) + '\n')


def begin(old: dict, identity: dict, facts: dict, *, again: bool) -> dict:
  """The record to go on with: the old one's parts where it is of the same."""
  same = old.get('identity') == identity and not again
  parts = old['parts'] if same else {}
  return {
    'benchmark': 'accelerator',
    'identity': identity,
    **facts,
    'parts': parts,
  }


def part_of(found: dict, name: str) -> dict:
  """A part, empty where nothing of it was measured."""
  return found['parts'].setdefault(
    name, {'rows': [], 'seconds': 0.0, 'left_out': []}
  )


def rows(found: dict, *names: str) -> list[dict]:
  """Of these parts, in the order of the file."""
  return [
    row
    for name, part in found['parts'].items()
    if name in names
    for row in part['rows']
  ]


def is_finished(part: dict) -> bool:
  """Whether nothing of it was left out, and nothing broke."""
  done = part['rows'] or 'skipped' in part
  whole = not any('broken' in row for row in part['rows'])
  whole &= not part['left_out'] and 'failed' not in part
  return bool(done) and whole


def failed_checks(found: dict) -> list[dict]:
  """The checks that did not hold, and what broke."""
  every = (row for part in found['parts'].values() for row in part['rows'])
  return [row for row in every if row.get('ok') is False]
