"""Makes all injections and prints the table; exit code 1 where one is bad."""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

# Before JAX is imported, which reads it: compiling is most of the time.
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_backend_optimization_level=0 '
  '--xla_llvm_disable_expensive_passes=true '
  '--xla_cpu_use_fusion_emitters=false',
)

from absl import logging

from tests import tiny
from tests.reliability import every, outcomes
from tests.reliability.outcomes import Outcome
from tests.reliability.runs import ROOT, Place
from tlkd_jax.runtime import devices, made

_LEAST_SOAK = 9.0


def main() -> int:
  """Runs them, each kind in a process of its own."""
  given = _arguments()
  if given.only is not None:
    return _one(given)
  names = [n for n in every.KINDS if n != 'soak' or given.long]
  if given.kinds is not None:
    names = [name for name in names if name in given.kinds]
  began, load = time.monotonic(), os.getloadavg()
  start = datetime.datetime.now().astimezone()
  with tempfile.TemporaryDirectory(prefix='reliability') as folder:
    ended = _all(names, given, pathlib.Path(folder))
  found = [one for name in names for one in ended[name][0]]
  seconds = {name: ended[name][1] for name in names}
  text = _page(found, seconds, given, start, time.monotonic() - began, load)
  print(text)
  if given.out is not None:
    given.out.write_text(text + '\n', encoding='utf-8')
  return bool(outcomes.bad(found))


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m tests.reliability', description=__doc__
  )
  parser.add_argument(
    '--long', action='store_true', help='about 25 minutes of two cores'
  )
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument(
    '--only', choices=every.KINDS, help='one kind, in this process'
  )
  parser.add_argument(
    '--kinds',
    type=lambda text: text.split(','),
    help=f'some of {",".join(every.KINDS)}',
  )
  parser.add_argument(
    '--jobs', type=int, default=2, help='kinds at once, beside the soak'
  )
  parser.add_argument(
    '--soak_minutes',
    type=float,
    help='beside the other kinds; default: as long as these take, and '
    f'{_LEAST_SOAK:.0f} at least',
  )
  parser.add_argument('--out', type=pathlib.Path, help='the table, Markdown')
  parser.add_argument('--found', type=pathlib.Path, help=argparse.SUPPRESS)
  parser.add_argument('--until', type=pathlib.Path, help=argparse.SUPPRESS)
  given = parser.parse_args()
  wrong = [name for name in given.kinds or [] if name not in every.KINDS]
  if wrong:
    parser.error(f'--kinds {wrong[0]}: accepted: {", ".join(every.KINDS)}')
  return given


def _one(given: argparse.Namespace) -> int:
  """One kind; its outcomes go to a file where another process waits."""
  began = time.monotonic()
  with tempfile.TemporaryDirectory(prefix='reliability') as folder:
    root = pathlib.Path(folder)
    place = Place(
      *(root, given.long, given.seed, root / 'cache', root / 'compiled'),
      _LEAST_SOAK if given.soak_minutes is None else given.soak_minutes,
      given.until,
    )
    # Each damage is a warning.
    logging.set_verbosity(logging.ERROR)
    with tiny.registered():
      found = every.KINDS[given.only](place)
  if given.found is not None:
    text = json.dumps([dataclasses.asdict(one) for one in found])
    given.found.write_text(text)
    return 0
  print(outcomes.table(found))
  print(f'{given.only}: {(time.monotonic() - began) / 60:.1f} minutes')
  print(*outcomes.bad(found), sep='\n', file=sys.stderr)
  return bool(outcomes.bad(found))


def _all(names, given, folder) -> dict[str, tuple[list[Outcome], float]]:
  """name -> (outcomes, seconds) of kinds, `--jobs` of them at once.

  The soak is beside them, since it waits most of the time, and ends after them.
  """
  others = [name for name in names if name != 'soak']
  until = folder / 'others-have-ended'
  running: dict[str, tuple[subprocess.Popen, float]] = {}
  ended: dict[str, tuple[list[Outcome], float]] = {}
  began = time.monotonic()
  if 'soak' in names:
    running['soak'] = _started('soak', given, folder, until), began
  while others or running:
    while others and len(running.keys() - {'soak'}) < given.jobs:
      name = others.pop(0)
      running[name] = _started(name, given, folder, until), time.monotonic()
    if not others and not running.keys() - {'soak'}:
      until.touch()
    for name in [n for n, (p, _) in running.items() if p.poll() is not None]:
      process, since = running.pop(name)
      seconds = time.monotonic() - since
      ended[name] = _found(name, process, folder), seconds
      bad = outcomes.bad(ended[name][0])
      _say(began, f'{name}: ended after {seconds:.0f} s, {len(bad)} bad')
      for line in bad:
        print(line, file=sys.stderr, flush=True)
    time.sleep(0.2)
  return ended


def _started(name, given, folder, until) -> subprocess.Popen:
  more = [] if given.soak_minutes is None else [given.soak_minutes]
  return subprocess.Popen(
    [
      *(sys.executable, '-m', 'tests.reliability', f'--only={name}'),
      *(f'--seed={given.seed}', f'--found={folder / name}'),
      *(f'--until={until}', *['--long'] * given.long),
      *(f'--soak_minutes={minutes}' for minutes in more),
    ],
    cwd=ROOT,
  )


def _found(name, process, folder) -> list[Outcome]:
  path = folder / name
  if not path.exists():
    return [Outcome(name, 'traceback', f'ended with {process.returncode}')]
  return [Outcome(**one) for one in json.loads(path.read_text())]


def _say(began: float, text: str) -> None:
  minutes = (time.monotonic() - began) / 60
  print(f'{minutes:5.1f} min  {text}', file=sys.stderr, flush=True)


def _page(found, seconds, given, start, took, load) -> str:
  """The table in Markdown, with where and when it was made."""
  command = 'python -m tests.reliability' + ' --long' * given.long
  command += f' --seed {given.seed}' * bool(given.seed)
  command += f' --kinds {",".join(given.kinds)}' if given.kinds else ''
  versions = ', '.join(f'{k} {v}' for k, v in made.versions().items())
  rows = [f'| {name} | {one:.0f} |' for name, one in seconds.items()]
  notes = [
    f'- {one.kind}: {one.what}' for one in found if one.kind.startswith('soak')
  ]
  lines = [
    f'`{command}`, {start:%Y-%m-%d %H:%M %Z}, {took / 60:.1f} minutes,',
    f'commit {made.commit()}, {devices.cores()} cores of {made.processor()},',
    f'{versions}; load {load[0]:.1f} before, {os.getloadavg()[0]:.1f} after.',
    '',
    outcomes.table(found),
    '',
    *notes,
    '' if notes else None,
    '| kinds, two at a time | seconds |'
    if given.jobs == 2
    else '| kinds | seconds |',
    '| --- | --- |',
    *rows,
  ]
  bad = [f'    {line[:2000]}' for line in outcomes.bad(found)]
  return '\n'.join(
    [line for line in lines if line is not None] + ([''] + bad if bad else [])
  )


if __name__ == '__main__':
  sys.exit(main())
