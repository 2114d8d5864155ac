"""Commands with the tiny models, and whether two runs are the same."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from typing import IO

import numpy as np

from tests import tiny
from tests.reliability import outcomes
from tests.reliability.outcomes import Outcome
from tests.workdirs import arrays
from tlkd_jax.training.metric_writers import read_rows

ROOT = pathlib.Path(__file__).resolve().parents[2]
_CLOCK = ('seconds', 'images_per_second', 'wall_seconds')
# A run of teacher and student on stored targets.
KD = {
  'num_steps': 12,
  'log_every_steps': 3,
  'eval_every_steps': 4,
  'batch_norm': 'train',
  'ema_decay': 0.9,
  'targets__mode': 'cached',
  'targets__views': 2,
}

# Of an export: whatever it costs a student of a few steps.
INT8 = ('--quantize=int8', '--max-accuracy-drop=1')


@dataclasses.dataclass(frozen=True)
class Place:
  """Where the injections are made.

  Attributes:
    root: an empty folder.
    long: whether there is time for the long form.
    seed: of what is drawn.
    cache_dir: prepared copies of the data.
    compiled: compiled programs.
    soak_minutes: of the soak at least; 0 leaves it out.
    until: a file that is there once the soak may end; None is from the first.
  """

  root: pathlib.Path
  long: bool
  seed: int
  cache_dir: pathlib.Path
  compiled: pathlib.Path
  soak_minutes: float = 0.0
  until: pathlib.Path | None = None

  def draw(self, name: str) -> np.random.Generator:
    """A generator for one kind of injection."""
    return np.random.default_rng([self.seed, *name.encode()])


@dataclasses.dataclass(frozen=True)
class Done:
  """A command that ended: its exit code, None where killed; its output."""

  code: int | None
  error: str


def together(
  place: Place, parts: Sequence[Callable[[Place], list[Outcome]]]
) -> list[Outcome]:
  """The outcomes of parts, one after the other, with their times on stderr.

  One that raises is an outcome, and the others go on.
  """
  found: list[Outcome] = []
  for part in parts:
    began = time.monotonic()
    name = f'{part.__module__.rpartition(".")[2]}: {part.__name__.strip("_")}'
    try:
      some = part(place)
    except Exception:
      some = [Outcome(name, 'traceback', traceback.format_exc()[-3000:])]
    seconds, bad = time.monotonic() - began, len(outcomes.bad(some))
    said = f'{seconds:5.0f} s  {name}: {len(some)} injected, {bad} bad'
    print(f'{time.strftime("%H:%M:%S")} {said}', file=sys.stderr, flush=True)
    found += some
  return found


def train(
  place: Place, workdir: pathlib.Path, arm='kd', **changes
) -> list[str]:
  """Arguments of Python for a run."""
  given = (KD if arm == 'kd' else {}) | {
    'targets__dir': str(workdir / 'targets')
  }
  return [
    *('-m', 'tests.tiny', f'--compilation_cache={place.compiled}'),
    *tiny.arguments(arm, place.cache_dir, **given | changes),
    f'--workdir={workdir}',
  ]


def evaluate(place: Place, run: pathlib.Path, suite: str) -> list[str]:
  """Arguments of Python for a suite of a finished run."""
  return [
    *('-m', 'tests.tiny', f'--compilation_cache={place.compiled}'),
    *('--mode=evaluate', f'--checkpoint={run}', f'--suite={suite}'),
    *['--max_images=8'] * (suite != 'clean'),
  ]


def rounding(place: Place, workdir: pathlib.Path) -> list[str]:
  """Arguments of Python for a student that learns to round."""
  changes = {
    'num_steps': 8,
    'eval_every_steps': 2,
    'quantize.observe_fraction': 0.5,
    'quantize.calibration_images': 20,
    'optimizer.learning_rate': 1e-2,
  }
  return [
    *('-m', 'tests.tiny', f'--compilation_cache={place.compiled}'),
    f'--config=configs/qat.py:checkpoint={unbroken(place)[0]}',
    *(f'--config.{key}={value}' for key, value in changes.items()),
    f'--workdir={workdir}',
  ]


def export(place: Place, *arguments: str) -> list[str]:
  """Arguments of Python for an export of the student of `unbroken`."""
  given = [f'--checkpoint={unbroken(place)[0]}', *arguments]
  code = (
    'from tlkd_jax.runtime import interrupts; interrupts.end_at_once()\n'
    'from tests import tiny\nfrom tlkd_jax.export import __main__ as export\n'
    f'with tiny.registered(): export.main({given!r})'
  )
  return ['-c', code]


def study(place: Place, root: pathlib.Path, *more: str) -> list[str]:
  """Arguments of Python for a small study."""
  changes = {
    'study__run_arms': ('tl', 'kd'),
    'study__sizes': (2,),
    'study__seeds': 2,
    'num_steps': 6,
    'eval_every_steps': 3,
  }
  return [
    *('-m', 'tests.tiny_study', f'--compilation_cache={place.compiled}'),
    *tiny.arguments('study', place.cache_dir, **changes),
    *(f'--workdir={root}', *more),
  ]


def start(
  arguments: list[str],
  *,
  prefix: tuple[str, ...] = (),
  output: int | IO[str] = subprocess.PIPE,
  **environment: str | None,
) -> subprocess.Popen:
  """Starts Python in a session of its own; None takes a variable away.

  Its output stays in a pipe until `wait`, and who fills that stands still: what
  is to run for long needs a file.
  """
  env = os.environ | {'JAX_PLATFORMS': 'cpu'}
  for name, value in environment.items():
    env.pop(name, None)
    if value is not None:
      env[name] = value
  return subprocess.Popen(
    [*prefix, sys.executable, *arguments],
    cwd=ROOT,
    env=env,
    stdin=subprocess.DEVNULL,
    stdout=output,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


def wait(process: subprocess.Popen, timeout: float = 900.0) -> Done:
  """Waits for a command; one that hangs is killed with all that it started."""
  try:
    text, _ = process.communicate(timeout=timeout)
  except subprocess.TimeoutExpired:
    kill(process)
    text, _ = process.communicate()
    return Done(None, text or '')
  return Done(process.returncode, text or '')


def call(arguments: list[str], **options) -> Done:
  """Runs a command to its end."""
  return wait(start(arguments, **options))


def kill(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
  """Sends a signal to a command and all that it started."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, number)


def differences(left: pathlib.Path, right: pathlib.Path) -> list[str]:
  """In what two finished commands' runs are not the same, bit for bit.

  Those of teacher and student, where a command made both.
  """
  names = [p.parent.relative_to(left) for p in left.rglob('summary.json')]
  found = [] if names else [f'{left} holds no finished run']
  for name in names:
    found += [f'{name}: {w}' for w in _run_differs(left / name, right / name)]
  return found + leftovers(right)


def _run_differs(left: pathlib.Path, right: pathlib.Path) -> list[str]:
  if not (right / 'summary.json').exists():
    return ['not finished']
  found = []
  # A probe has nothing to go on from.
  kinds = {p.parent.name for p in left.glob('checkpoints/*/[0-9]*')}
  for kind in sorted(kinds):
    a, b = arrays(left, kind), arrays(right, kind)
    if a.keys() != b.keys():
      found.append(f'{kind} holds others')
    found += [
      f'{kind} {name}'
      for name in a.keys() & b.keys()
      if not np.array_equal(a[name], b[name])
    ]
  rows = [
    [without_clock(row) for row in read_rows(run / 'metrics.jsonl')]
    for run in (left, right)
  ]
  found += ['metrics.jsonl'] * (rows[0] != rows[1])
  summaries = [
    without_clock(json.loads((run / 'summary.json').read_text()))
    for run in (left, right)
  ]
  found += ['summary.json'] * (summaries[0] != summaries[1])
  for path in sorted((left / 'predictions').glob('*.npz')):
    with np.load(path) as a, np.load(right / 'predictions' / path.name) as b:
      same = all(np.array_equal(a[name], b[name]) for name in a.files)
    found += [] if same else [path.name]
  return found


def leftovers(folder: pathlib.Path) -> list[str]:
  """Temporary files that should not be there."""
  return [str(p) for p in folder.rglob('*.tmp') if p.is_file()]


def without_clock(value):
  """JSON without what two equal runs cannot have in common."""
  if isinstance(value, dict):
    return {k: without_clock(v) for k, v in value.items() if k not in _CLOCK}
  if isinstance(value, list):
    return [without_clock(item) for item in value]
  return value


@functools.cache
def unbroken(place: Place) -> tuple[pathlib.Path, float]:
  """A finished run of KD that nothing happened to, and its seconds."""
  workdir, began = place.root / 'unbroken', time.monotonic()
  done = call(train(place, workdir))
  if done.code != 0:
    raise RuntimeError(done.error)
  return workdir, time.monotonic() - began


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: int) -> Generator[bool]:
  """A file system of so many bytes at a folder.

  Yields:
    Whether it could be made: it takes the right to mount.
  """
  folder.mkdir(parents=True)
  command = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)]
  made = subprocess.run(command, capture_output=True).returncode == 0
  try:
    yield made
  finally:
    if made:
      subprocess.run(['umount', '-l', str(folder)], check=True)


@contextlib.contextmanager
def read_only(
  folder: pathlib.Path, content: pathlib.Path | None = None
) -> Generator[bool]:
  """The same, with a copy of a folder, to which nothing can be written."""
  with small_disk(folder, 2**26) as made:
    if made:
      if content is not None:
        shutil.copytree(content, folder, dirs_exist_ok=True)
      command = ['mount', '-o', 'remount,ro', str(folder)]
      subprocess.run(command, check=True)
    yield made


def grow(folder: pathlib.Path, size: int = 2**28) -> None:
  """Makes the file system larger."""
  options = f'remount,size={size}'
  subprocess.run(['mount', '-o', options, str(folder)], check=True)
