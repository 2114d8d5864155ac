"""The parts of the command: each a generator of rows, in a process of its own.

A row has a 'key', by which a repeated command knows that it is there. A part
stops starting new measurements when its time is spent, and says what it left
out with {'left_out': text}.
"""

import dataclasses
import functools
import gc
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import input_pipeline, loop_overhead, machine
from benchmarks.accelerator import cards, checks, depthwise, programs
from benchmarks.scaling import Pair
from tlkd_jax.models.network import DTYPES
from tlkd_jax.runtime import allocator, devices, sharding

Rows = Iterator[dict[str, Any]]
# Where the first batch of a sweep does not fit, it is halved down to this one.
_SMALLEST = 8


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What is measured; `SMALL` rehearses the command on a processor.

  Attributes:
    pairs: name -> pair; `batch` is the first of the sweep.
    largest: batch of the sweep.
    seconds: of a timing.
    rounds: of it.
    families: (variant, pixels) whose outputs are checked.
    updated: the pair of the checks of updates.
    jpegs: of the input path.
    stored: side of these, pixels.
    send_mib: a batch of so many is sent to the device.
    depthwise_batch: of the depthwise cases; their maps are divided by
      `depthwise_share`.
    depthwise_share: see there.
    loops: (pixels, batch, steps, rounds) of the loop.
  """

  pairs: dict[str, Pair]
  largest: int
  seconds: float
  rounds: int
  families: tuple[tuple[str, int], ...]
  updated: Pair
  jpegs: int
  stored: int
  send_mib: int
  depthwise_batch: int
  depthwise_share: int
  loops: tuple[tuple[int, int, int, int], ...]


_LITE = 'efficientnet_lite0', 'efficientnet_lite2'
_RESNET = 'resnet50', 'resnet152'
_VIT = 'vit_small_patch16_224', 'vit_large_patch16_224'
LARGE = Sizes(
  pairs={
    'default': Pair(*_LITE, 224, 128, 1000),
    'resnet': Pair(*_RESNET, 224, 64, 1000),
    'vit': Pair(*_VIT, 224, 64, 1000),
  },
  largest=4096,
  seconds=2.0,
  rounds=9,
  families=(
    ('efficientnet_lite0', 64),
    ('mobilenet_v3_small', 64),
    ('resnet18', 64),
    ('convnext_atto', 64),
    ('vit_tiny_patch16_224', 64),
  ),
  updated=Pair(*_LITE, 64, 8, 10),
  jpegs=4000,
  stored=256,
  send_mib=64,
  depthwise_batch=64,
  depthwise_share=1,
  loops=((64, 32, 40, 5), (128, 128, 20, 5)),
)
SMALL = Sizes(
  pairs={
    'default': Pair(*_LITE, 32, 2, 10),
    'resnet': Pair('resnet18', 'resnet34', 32, 4, 10),
    'vit': Pair('vit_tiny_patch16_224', 'vit_small_patch16_224', 32, 4, 10),
  },
  # The default pair's alone is swept.
  largest=4,
  seconds=0.1,
  rounds=3,
  families=(('efficientnet_lite0', 32), ('vit_tiny_patch16_224', 32)),
  updated=Pair(*_LITE, 32, 4, 10),
  jpegs=60,
  stored=40,
  send_mib=1,
  depthwise_batch=2,
  depthwise_share=8,
  loops=((32, 8, 3, 1),),
)


@dataclasses.dataclass(frozen=True)
class Given:
  """What a part is told.

  Attributes:
    sizes: what is measured.
    until: when no new measurement is started, by time.monotonic.
    done: the rows that are there, by their keys.
  """

  sizes: Sizes
  until: float
  done: Mapping[str, dict] = dataclasses.field(default_factory=dict)

  def wants(self, key: str, left: list[str]) -> bool:
    """Whether to measure this now; what time does not allow is kept."""
    if key in self.done:
      return False
    if time.monotonic() > self.until:
      left.append(key)
      return False
    return True


def left_out(keys: list[str]) -> Rows:
  """The line of what was left out, none where nothing was."""
  if keys:
    yield {'left_out': ', '.join(keys)}


def of_device(given: Given) -> Rows:
  """What JAX runs on."""
  del given
  found = jax.devices()
  stats = found[0].memory_stats() or {}
  limit = stats.get('bytes_limit')
  yield {
    'key': 'device',
    'platform': found[0].platform,
    'kind': found[0].device_kind,
    'devices': len(found),
    'memory_gib': round(limit / 2**30, 1) if limit else None,
    'cores': devices.cores(),
  }


def of_checks(given: Given) -> Rows:
  """Is it right: every check of checks.py."""
  sizes = given.sizes
  pair = sizes.updated
  wanted: dict[str, Callable[[], list[dict]]] = {
    f'model {name}': lambda name=name, size=size: checks.of_model(name, size)
    for name, size in sizes.families
  }
  wanted |= {
    'losses': checks.of_losses,
    'augmentation': checks.of_augmentation,
    'updates': lambda: checks.of_updates(pair),
    'resuming': lambda: checks.of_resuming(pair),
    'devices': lambda: checks.of_devices(pair),
  }
  yield from _checked(given, wanted)


def of_determinism(given: Given) -> Rows:
  """Resuming once more, where the backend was told to be deterministic."""
  pair = given.sizes.updated

  def run():
    rows = checks.of_resuming(pair)
    return [row | {'key': f'deterministic {row["key"]}'} for row in rows]

  yield from _checked(given, {'deterministic resuming': run})


def _checked(given: Given, wanted: dict[str, Callable]) -> Rows:
  """A check that breaks has failed; the next one runs."""
  left: list[str] = []
  for name, check in wanted.items():
    group = f'checked: {name}'
    if not given.wants(group, left):
      continue
    try:
      found = check()
    except Exception as error:
      said = f'{type(error).__name__}: {error}'[:500]
      found = [{'key': name, 'check': name, 'of': said, 'ok': False}]
    yield from found
    # Last, so that a check that was cut off is run again.
    yield {'key': group}
  yield from left_out(left)


def is_out_of_memory(error: Exception) -> bool:
  """Whether a backend said that a program does not fit."""
  said = str(error)
  return 'RESOURCE_EXHAUSTED' in said or 'out of memory' in said.lower()


def attempt(measure: Callable[[], dict]) -> dict[str, Any]:
  """What was measured; or that it does not fit, or that it broke.

  A device that refuses one program is asked for the next one all the same.
  """
  try:
    return measure()
  # Not a class of its own for a device's memory in every version.
  except Exception as error:
    said = f'{type(error).__name__}: {error}'.splitlines()[0][:300]
    if is_out_of_memory(error):
      return {'out_of_memory': said}
    return {'broken': said, 'ok': False}


def of_speed(name: str, given: Given) -> Rows:
  """The arms of a pair: at the first batch, then swept to the limit.

  First every arm at the first batch, then TL+KD with its teacher in the step
  at doubled ones (halved where the first does not fit), then the other arms at
  the fastest of these.
  """
  sizes, pair = given.sizes, given.sizes.pairs[name]
  left: list[str] = []
  swept: dict[int, dict] = {}
  mesh = sharding.make_mesh(1)

  def run(arm: str, batch: int) -> Rows:
    key = f'{name} {arm} {batch}'
    row = given.done.get(key)
    if row is None and given.wants(key, left):
      row = measure(name, pair, arm, batch, sizes, mesh)
      yield row
    if row is not None and arm == 'online':
      swept[batch] = row

  def fits(batch: int) -> bool:
    return 'ms' in swept.get(batch, {})

  for arm in programs.ARMS:
    yield from run(arm, pair.batch)
  batch = pair.batch
  while fits(batch) and batch < sizes.largest:
    batch *= 2
    yield from run('online', batch)
  if pair.batch in swept and not fits(pair.batch):
    while batch > _SMALLEST and not fits(batch):
      batch //= 2
      yield from run('online', batch)
  rates = {n: r['images_per_second'] for n, r in swept.items() if fits(n)}
  best = max(rates, key=rates.__getitem__, default=pair.batch)
  for arm in programs.ARMS:
    if best != pair.batch and arm != 'online':
      yield from run(arm, best)
  yield from left_out(left)


def measure(
  name: str, pair: Pair, arm: str, batch: int, sizes: Sizes, mesh
) -> dict[str, Any]:
  """A row of an arm and a batch, see `attempt`."""
  row: dict[str, Any] = {'key': f'{name} {arm} {batch}', 'pair': name}
  row |= {'arm': arm, 'batch': batch, 'image_size': pair.image_size}
  row |= {'student': pair.student, 'teacher': pair.teacher}
  row |= {'classes': pair.classes}
  row |= attempt(lambda: _measured(pair, arm, batch, sizes, mesh))
  gc.collect()
  jax.clear_caches()
  return row


def _measured(pair: Pair, arm: str, batch: int, sizes: Sizes, mesh) -> dict:
  program = programs.make(pair, arm, batch, 'bfloat16', mesh)
  found, result = programs.time_calls(program, sizes.seconds, sizes.rounds)
  spent = found['ms'] / 1e3
  flop = batch * programs.model_flop(pair, arm)
  device = mesh.devices.flat[0]
  card = cards.find(device.device_kind)
  found |= {
    'images_per_second': round(batch / spent, 1),
    'compile_s': program.compile_seconds,
    'model_flop': flop,
    **programs.costs(program),
  }
  used = cards.utilisation(flop, spent, card)
  if used is not None:
    found['mfu'] = round(used, 4)
  peak = (device.memory_stats() or {}).get('peak_bytes_in_use')
  if peak is not None:
    # Of the process until now: the largest of its rows so far.
    found['peak_mib'] = round(peak / 2**20)
  says = result[1]['loss'] if arm != 'probed' else jnp.sum(result['logits'])
  found['finite'] = bool(np.isfinite(float(says)))
  return found


def of_depthwise(given: Given) -> Rows:
  """lax against shifted products, forward and gradients."""
  left: list[str] = []
  for case in depthwise.CASES:
    for dtype in DTYPES:
      if given.wants(f'{case} {dtype}', left):
        sizes = given.sizes.depthwise_batch, given.sizes.depthwise_share
        run = functools.partial(
          depthwise.measure, case, dtype, *sizes, given.sizes.rounds
        )
        yield {'key': f'{case} {dtype}'} | attempt(run)
  yield from left_out(left)


def of_input(given: Given) -> Rows:
  """Decoding on all cores, sending to the device, augmenting there."""
  sizes, left = given.sizes, list[str]()
  if given.wants('send', left):
    yield {'key': 'send'} | attempt(lambda: send(sizes.send_mib))
  if given.wants('decode', left):
    yield {'key': 'decode'} | attempt(lambda: decode(sizes))
  yield from left_out(left)


def decode(sizes: Sizes) -> dict[str, Any]:
  """Images a second of generated JPEGs, see benchmarks/input_pipeline.py."""
  size = sizes.pairs['default'].image_size
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    file = root / 'images.zip'
    input_pipeline.write_images(file, sizes.jpegs, sizes.stored)
    rates = input_pipeline.one_round(
      f'folder:{file}', root / 'cache', size, min(128, sizes.jpegs // 8)
    )
  return {
    'image_size': size,
    'cores': devices.cores(),
    'images_per_second': {part: round(r, 1) for part, r in rates.items()},
  }


def send(mib: int, rounds: int = 9) -> dict[str, Any]:
  """GB/s of uint8 images from the host to the device, by sharding's way."""
  mesh = sharding.make_mesh(1)
  images = np.zeros((mib * 2**20 // (256 * 256 * 3), 256, 256, 3), np.uint8)
  rates = []
  for _ in range(rounds + 1):
    begun = time.perf_counter()
    jax.block_until_ready(sharding.shard_batch({'image': images}, mesh))
    rates.append(images.nbytes / 1e9 / (time.perf_counter() - begun))
  return machine.summary('send', rates[1:], 'gb_per_second', 2)


def of_loop(given: Given) -> Rows:
  """The training loop against the bare step."""
  left: list[str] = []
  for size, batch, steps, rounds in given.sizes.loops:
    if given.wants(f'loop {size}', left):
      model = 'efficientnet_lite0'
      shape = size, batch, steps, rounds
      run = functools.partial(loop_overhead.measure, model, *shape)
      yield {'key': f'loop {size}'} | attempt(run)
  yield from left_out(left)


# What a part of the command runs in its process.
RUN: dict[str, Callable[[Given], Rows]] = {
  'device': of_device,
  'checks': of_checks,
  'determinism': of_determinism,
  'speed default': lambda given: of_speed('default', given),
  'speed resnet': lambda given: of_speed('resnet', given),
  'speed vit': lambda given: of_speed('vit', given),
  'depthwise': of_depthwise,
  'input': of_input,
  'loop': of_loop,
}


def run(name: str, given: Given) -> Rows:
  """The rows of a part that are missing."""
  allocator.keep_freed_memory()
  yield from RUN[name](given)
