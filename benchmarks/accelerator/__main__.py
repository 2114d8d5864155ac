"""Accelerators in one command: right first, then how fast.

  python -m benchmarks.accelerator --out docs/accelerator.json
  python -m benchmarks.accelerator --show docs/accelerator.json

Takes at most `--minutes` (18) on one card. Nothing is fetched: weights are by
rule, images are generated. Each part is a process of its own and has a share of
the time; what it had no time for is said, and measured when the command is
repeated: rows of the same code and the same device are kept. A check that does
not hold, or a part that breaks, is recorded, the others run, and the exit
status is 1.

Parts: checks (logits, losses, gradients, updates, resuming, one and more
devices, against this machine's processor), determinism (resuming where XLA is
told to be deterministic), speed of three pairs (TL; TL+KD with its teacher in
the step and with stored targets; a probed teacher; batches doubled to the limit
of memory), torch (the same steps by PyTorch, if this Python has it or `--torch`
names one that has), depthwise (lax or shifted), input (decoding, sending,
augmenting), loop (against the bare step).

Without an accelerator everything runs in a small form on the processor: a
rehearsal, whose figures say nothing.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks import machine
from benchmarks.accelerator import cards, record, tables

PAIRS = ('default', 'resnet', 'vit')
# part: its share of the time. What one leaves is shared by those after it.
SHARES = {
  'checks': 0.18,
  'speed default': 0.14,
  'speed resnet': 0.16,
  'speed vit': 0.16,
  'torch default': 0.07,
  'torch resnet': 0.08,
  'torch vit': 0.07,
  'depthwise': 0.05,
  'input': 0.03,
  'loop': 0.04,
  'determinism': 0.02,
}
# A part that is over its time ends itself between two measurements.
_GRACE = 90.0
_DEVICE_SECONDS = 300.0
_STOPPED = 'stopped after'
_DETERMINISTIC = '--xla_gpu_deterministic_ops=true'
# Two devices, so that one can be held against two; code that compiles fast.
_SMALL_FLAGS = (
  '--xla_force_host_platform_device_count=2 '
  '--xla_backend_optimization_level=0 '
  '--xla_llvm_disable_expensive_passes=true '
  '--xla_cpu_use_fusion_emitters=false'
)


def environment(name: str, small: bool, base: dict[str, str]) -> dict[str, str]:
  """Variables of a part's process."""
  cache = pathlib.Path.home() / '.cache' / 'tlkd_jax' / 'compiled'
  found = {
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    # To the limit of memory: JAX takes three quarters otherwise.
    'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.9',
  } | base
  flags = found.get('XLA_FLAGS', '')
  if small:
    found['JAX_PLATFORMS'] = 'cpu'
    flags = f'{flags} {_SMALL_FLAGS}'
  told = found.get('JAX_PLATFORMS', '')
  if told and 'cpu' not in told.split(','):
    # The processor's side of the checks.
    found['JAX_PLATFORMS'] = f'{told},cpu'
  if name == 'determinism':
    flags = f'{flags} {_DETERMINISTIC}'
  if flags:
    found['XLA_FLAGS'] = flags.strip()
  return found


def run_process(
  command: list[str],
  env: dict[str, str],
  seconds: float,
  take: Callable[[dict], None],
) -> str | None:
  """Runs a part; hands on each line of JSON as it comes.

  Returns:
    None where it ended well, else the end of what it said, or that it was
    stopped.
  """
  late = threading.Event()
  with (
    tempfile.TemporaryFile('w+') as errors,
    subprocess.Popen(
      command,
      stdout=subprocess.PIPE,
      stderr=errors,
      text=True,
      env=env,
      cwd=record.ROOT,
      # Of its own, so that what it started ends with it.
      start_new_session=True,
    ) as process,
  ):

    def end():
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)

    def stop():
      late.set()
      end()

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
      assert process.stdout is not None
      for line in process.stdout:
        # Others write there too, and a line may be cut off.
        if line.startswith('{"') and line.endswith('}\n'):
          take(json.loads(line))
      status = process.wait()
    finally:
      timer.cancel()
      end()
    if late.is_set():
      return f'{_STOPPED} {seconds:.0f} s'
    if not status:
      return None
    errors.seek(0)
    return f'ended with {status}: {errors.read()[-2000:]}'


def seconds_of(name: str, waiting: list[str], left: float) -> float:
  """A part's time: its share of what is left for it and those after it."""
  return max(left, 0.0) * SHARES[name] / sum(SHARES[n] for n in waiting)


def driver() -> str | None:
  """'name, driver, memory' of each NVIDIA card, as nvidia-smi says it."""
  command = ['nvidia-smi', '--query-gpu=name,driver_version,memory.total']
  try:
    return subprocess.run(
      [*command, '--format=csv,noheader'],
      capture_output=True,
      text=True,
      timeout=30,
      check=True,
    ).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None


def find_device(small: bool) -> dict[str, Any]:
  """The row of the part 'device'.

  Raises:
    SystemExit: JAX does not start here.
  """
  found: list[dict] = []
  env = environment('device', small, dict(os.environ))
  said = run_process(
    child('device', _DEVICE_SECONDS, pathlib.Path(os.devnull), small),
    env,
    _DEVICE_SECONDS,
    found.append,
  )
  if said or not found:
    raise SystemExit(f'JAX does not start: {said or "it said nothing"}')
  return found[0]


def child(
  name: str, seconds: float, path: pathlib.Path, small: bool
) -> list[str]:
  """The command of a part's process."""
  command = [sys.executable, '-m', 'benchmarks.accelerator.child', name]
  command += [f'{seconds:.0f}', str(path.resolve())]
  return [*command, 'small'] if small else command


def torch_job(found: dict, pair: str, seconds: float, small: bool) -> dict:
  """What torch_side is to measure: the arms at our first and best batch."""
  ours = [
    row
    for row in record.rows(found, f'speed {pair}')
    if row.get('arm') in ('tl', 'online') and 'ms' in row
  ]
  if not ours:
    return {}
  online = [row for row in ours if row['arm'] == 'online'] or ours
  best = max(online, key=lambda row: row['images_per_second'])['batch']
  first = min(row['batch'] for row in ours)
  done = [row['key'] for row in record.rows(found, f'torch {pair}')]
  head = ours[0]
  return {
    'pair': pair,
    'student': head['student'],
    'teacher': head['teacher'],
    'image_size': head['image_size'],
    'classes': head['classes'],
    'batches': {arm: sorted({first, best}) for arm in ('tl', 'online')},
    'modes': ['eager'] if small else ['eager', 'compiled'],
    'done': done,
    'seconds': seconds,
    'timing': 0.1 if small else 2.0,
    'rounds': 3 if small else 9,
  }


def why_skipped(
  name: str, found: dict, python: str | None, pair_job: dict
) -> str | None:
  """Why a part cannot be measured here; None where it can."""
  platform = found['machine']['platform']
  if name == 'determinism' and platform in ('cpu', 'tpu'):
    return 'XLA has such a setting for GPUs'
  if name.startswith('torch'):
    if python is None:
      return 'PyTorch not at hand'
    if platform == 'tpu':
      return 'PyTorch on this device is not measured'
    if not pair_job:
      return 'no step of ours was measured'
  return None


def measure(
  name: str,
  found: dict,
  path: pathlib.Path,
  seconds: float,
  python: str | None,
) -> None:
  """Runs a part and writes what it says into the record, row by row."""
  small = found['identity']['small']
  part = record.part_of(found, name)
  part['left_out'] = []
  for stale in ('failed', 'skipped'):
    part.pop(stale, None)
  is_torch = name.startswith('torch')
  job = {}
  if is_torch:
    job = torch_job(found, name.partition(' ')[2], seconds, small)
  why = why_skipped(name, found, python, job)
  if why:
    part['skipped'] = why
    print(f'{name}: {why}', flush=True)
    record.store(path, found)
    return

  def take(row: dict) -> None:
    if 'left_out' in row:
      part['left_out'].append(row['left_out'])
    else:
      part['rows'] = [r for r in part['rows'] if r['key'] != row['key']]
      part['rows'].append(row)
    line = tables.line(row)
    if line:
      print(f'  {line}', flush=True)
    record.store(path, found)

  print(f'{name}: at most {seconds:.0f} s', flush=True)
  begun = time.monotonic()
  env = environment(name, small, dict(os.environ))
  with tempfile.TemporaryDirectory() as folder:
    command = child(name, seconds, path, small)
    if is_torch:
      file = pathlib.Path(folder) / 'job.json'
      file.write_text(json.dumps(job))
      module = 'benchmarks.accelerator.torch_side'
      command = [python or sys.executable, '-m', module, str(file)]
    said = run_process(command, env, seconds + _GRACE, take)
  part['seconds'] = round(part['seconds'] + time.monotonic() - begun, 1)
  if said and said.startswith(_STOPPED):
    part['left_out'].append(f'what was under way: {said}')
  elif said:
    part['failed'] = said
    print(f'  {name} {said.splitlines()[-1]}', flush=True)
  record.store(path, found)


def run(arguments: argparse.Namespace) -> int:
  """Measures what is missing; the exit status."""
  begun = time.monotonic()
  device = find_device(arguments.small)
  small = arguments.small or device['platform'] == 'cpu'
  if small and not arguments.small:
    print('no accelerator is here: the small form, a rehearsal', flush=True)
  identity = {
    'code': record.code(),
    'device': device['kind'],
    'devices': device['devices'],
    'small': small,
  }
  old = record.load(arguments.out)
  theirs = old.get('identity', {})
  if small and theirs and not theirs['small']:
    raise SystemExit(
      f'{arguments.out} is the record of {theirs["device"]}; name another file '
      'for a rehearsal'
    )
  card = cards.find(device['kind'])
  facts = {
    'commit': record.commit(),
    'date': time.strftime('%Y-%m-%d'),
    'machine': device | {'driver': driver()} | machine.versions(),
    'card': card._asdict() if card else None,
  }
  found = record.begin(old, identity, facts, again=arguments.again)
  if old and not found['parts']:
    print(f'{arguments.out}: measured anew', flush=True)
  python = arguments.torch
  if python is None and importlib.util.find_spec('torch'):
    python = sys.executable
  waiting = [
    name
    for name in arguments.only or SHARES
    if not record.is_finished(record.part_of(found, name))
  ]
  until = begun + 60 * arguments.minutes
  while waiting:
    name = waiting[0]
    seconds = seconds_of(name, waiting, until - time.monotonic())
    measure(name, found, arguments.out, seconds, python)
    waiting.pop(0)
  found['seconds'] = round(time.monotonic() - begun, 1)
  record.store(arguments.out, found)
  print(tables.summary(found), flush=True)
  broken = any('failed' in part for part in found['parts'].values())
  print(json.dumps(tables.short(found)), flush=True)
  return int(broken or bool(record.failed_checks(found)))


def main() -> None:
  """Parses the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument('--out', type=pathlib.Path, help='the record')
  what.add_argument('--show', type=pathlib.Path, help='its tables, in Markdown')
  parser.add_argument('--small', action='store_true', help='on the processor')
  parser.add_argument('--minutes', type=float, default=18.0)
  parser.add_argument('--torch', metavar='PYTHON', help='that has PyTorch')
  parser.add_argument('--only', choices=SHARES, action='append')
  parser.add_argument('--again', action='store_true', help='keep no row')
  arguments = parser.parse_args()
  try:
    if arguments.show:
      print(tables.markdown(record.load(arguments.show)))
      return
    status = run(arguments)
  except ValueError as error:
    parser.error(str(error))
  raise SystemExit(status)


if __name__ == '__main__':
  main()
