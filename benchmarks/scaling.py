"""What a TL+KD step costs on 1 to 256 chips: computed, and measured here.

  python -m benchmarks.scaling --compute [--pair default] [--chips 1 8 64 256]
  python -m benchmarks.scaling --compute --sharded [--chips 8 64 256]
  python -m benchmarks.scaling --measure

`--compute` compiles the step of each pair for so many devices, without running
it or allocating an array, and prints one JSON line for each: floating-point
operations and bytes per chip from XLA's cost analysis, and the collectives in
the compiled program. The batch per chip is constant. Convolutions are the lax
primitives, as on accelerators; float32, since XLA on CPU widens bfloat16.
With `--sharded` what the optimizer keeps is in parts (`optimizer.sharding`).
benchmarks/tables.py makes docs/scaling.md's tables of them.

`--measure` runs the same step, global batch 32, on 1, 2 and 4 CPU devices of
this machine and in 1 and 2 processes, and prints the losses (which must agree)
and the time of a step: the extra time is the collectives' and the threads'.
Each case is a process of its own, all of them in turn, twice: some minutes on
two cores.
"""

import argparse
import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from typing import NamedTuple

from benchmarks import machine

_BYTES = {'f32': 4, 'f16': 2, 'bf16': 2, 's32': 4, 'u32': 4, 'pred': 1, 's8': 1}
_FAST = '--xla_backend_optimization_level=0'
_COLLECTIVES = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)


class Pair(NamedTuple):
  """What is trained: models, side of the images, batch per chip, classes."""

  student: str
  teacher: str
  image_size: int
  batch: int
  classes: int


PAIRS = {
  'default': Pair('efficientnet_lite0', 'efficientnet_lite2', 64, 32, 10),
  'resnet': Pair('resnet50', 'resnet152', 224, 64, 1000),
  'vit': Pair('vit_small_patch16_224', 'vit_large_patch16_224', 224, 64, 1000),
}


# What of a teacher is in a step: nothing, its forward pass, or its outputs.
ARMS = ('tl', 'online', 'stored')


def make_step(
  pair: Pair,
  mesh,
  batch_size: int,
  *,
  arm: str = 'online',
  dtype: str = 'float32',
  rate: float = 1e-3,
  changes: dict | None = None,
):
  """The jitted step of a pair, and the shapes of its arguments.

  Args:
    pair: what is trained.
    mesh: devices.
    batch_size: on all devices.
    arm: one of ARMS.
    dtype: of the compute, a key of network.DTYPES.
    rate: learning rate.
    changes: of settings, by their paths.

  Returns:
    (step, the shapes of its state, constants and batch, (student, teacher,
    function from the student's variables to the state)).
  """
  import jax
  import jax.numpy as jnp

  from tlkd_jax import models, settings
  from tlkd_jax.data import augment
  from tlkd_jax.models.network import DTYPES, Network, head_alone
  from tlkd_jax.training import lessons, optimizers, updating
  from tlkd_jax.training.showing import Views
  from tlkd_jax.training.state import Beginning, create
  from tlkd_jax.training.step import Lesson, Mode
  from tlkd_jax.training.step import make_step as make

  student, teacher, size, _, classes = pair
  config = settings.make('kd', student=student, teacher=teacher)
  config = settings.with_values(config, changes or {})
  views = [
    Network(models.create_model(name, num_classes=classes), size, DTYPES[dtype])
    for name in (student, teacher)
  ]
  schedule = optimizers.learning_rate_schedule(rate, 100, 0.1, 0.0)
  optimizer = optimizers.make_optimizer(
    views[0].model, schedule, config.optimizer
  )

  def view_of(images, index, view, *, seed):
    return augment.augment(images, seed, index, view, image_size=size)

  guided = arm != 'tl'
  objective = lessons.make_objective(config, None, guided=guided)
  lesson = Lesson(
    views[0], objective, optimizer, ('teacher',) if guided else ()
  )

  def begun(params, model_state):
    params = {'weights': params, 'projector': {}}
    return {'student': Beginning(params, model_state, {})}

  learner, guide = (view.model for view in views)
  begins = learner.params_shape, learner.model_state_shape
  optimizer_of = {'student': optimizer}
  step = make(
    {'student': lesson},
    {'teacher': views[1]} if guided else {},
    Views(view_of),
    schedule,
    Mode(),
    mesh,
    updating.placed(config, begun(*begins), optimizer_of, mesh),
  )

  def state(params, model_state):
    return create(begun(params, model_state), optimizer_of)

  stored = -(-size * 8 // 7)
  shapes = {
    'image': ((batch_size, stored, stored, 3), jnp.uint8),
    'label': ((batch_size,), jnp.int32),
    'mask': ((batch_size,), jnp.float32),
    'index': ((batch_size,), jnp.int32),
    'view': ((batch_size,), jnp.int32),
  }
  batch: dict = {k: jax.ShapeDtypeStruct(*v) for k, v in shapes.items()}
  theirs = {
    'params': guide.params_shape,
    'model_state': guide.model_state_shape,
  }
  if arm == 'stored':
    said = jax.ShapeDtypeStruct((batch_size, classes), jnp.float32)
    batch['targets'] = {'teacher': {'logits': said}}
    theirs = {
      'params': head_alone(guide, guide.params_shape),
      'model_state': {},
    }
  seed = jax.ShapeDtypeStruct((), jnp.int32)
  abstract = (
    jax.eval_shape(state, *begins),
    {'guides': {'teacher': theirs} if guided else {}, 'seed': seed},
    batch,
  )
  return step, abstract, (learner, guide, state)


def collectives(text: str) -> dict[str, dict[str, int]]:
  """Number and bytes of each kind of collective in compiled HLO."""
  found: dict[str, dict[str, int]] = {}
  pattern = rf'= (.+?) ({"|".join(_COLLECTIVES)})(?:-start)?\('
  for shapes, kind in re.findall(pattern, text):
    total = 0
    for dtype, dims in re.findall(r'(\w+)\[([\d,]*)\]', shapes):
      count = 1
      for dim in filter(None, dims.split(',')):
        count *= int(dim)
      total += count * _BYTES[dtype]
    entry = found.setdefault(kind, {'count': 0, 'bytes': 0})
    entry['count'] += 1
    entry['bytes'] += total
  return found


def compute(pair: str, chips: int, *, sharded: bool = False) -> dict:
  """Compiles one step for `chips` devices of this process.

  Args:
    pair: a key of PAIRS.
    chips: devices.
    sharded: whether the optimizer's state is in parts.
  """
  import jax

  from tlkd_jax.models.layers import convolutions
  from tlkd_jax.runtime import sharding

  chosen = PAIRS[pair]
  mesh = sharding.make_mesh(chips)
  with convolutions.lax_convolutions():
    step, abstract, (learner, guide, _) = make_step(
      chosen,
      mesh,
      chosen.batch * chips,
      changes={'optimizer.sharding': 'state'} if sharded else None,
    )
    lowered = step.lower(*abstract)
  # Less optimisation of machine code: the program's structure is the same.
  compiled = lowered.compile(
    compiler_options={
      'xla_backend_optimization_level': 0,
      'xla_llvm_disable_expensive_passes': True,
    }
  )
  cost = compiled.cost_analysis()
  memory = compiled.memory_analysis()

  def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

  kept = abstract[0].learners['student'].opt_state
  where = (
    sharding.parts_of(kept, mesh) if sharded else sharding.replicated(mesh)
  )
  parts = jax.tree.map(
    lambda x, at: 4 * math.prod(at.shard_shape(x.shape)),
    kept,
    jax.tree.broadcast(where, kept),
  )
  return {
    'pair': pair,
    'student': chosen.student,
    'teacher': chosen.teacher,
    'image_size': chosen.image_size,
    'batch_per_chip': chosen.batch,
    'chips': chips,
    'flops_per_chip': cost['flops'],
    'bytes_per_chip': cost['bytes accessed'],
    'temporary_mib': round(memory.temp_size_in_bytes / 2**20),
    'student_parameters': size(learner.params_shape),
    'teacher_parameters': size(guide.params_shape),
    'optimizer_bytes_per_chip': sum(jax.tree.leaves(parts)),
    'sharded': sharded,
    'collectives': collectives(compiled.as_text()),
  }


def measure(pair: str, steps: int) -> dict:
  """Runs the step on all devices of all processes, global batch 32."""
  import jax

  from tlkd_jax.runtime import allocator, sharding

  allocator.keep_freed_memory()
  mesh = sharding.make_mesh()
  losses, times = run(PAIRS[pair], mesh, 32, steps)
  return {
    'pair': pair,
    'devices': jax.device_count(),
    'processes': jax.process_count(),
    'losses': losses[:4],
    'step': [1e3 * seconds for seconds in times[1:]],
  }


def run(pair: Pair, mesh, batch_size: int, steps: int) -> tuple[list, list]:
  """Losses and seconds of each step on random images, from random weights."""
  import jax
  import numpy as np

  from tlkd_jax.runtime import sharding

  step, abstract, (*modules, state) = make_step(pair, mesh, batch_size)
  rng = np.random.default_rng(0)
  values = {
    'image': rng.integers(0, 256, abstract[2]['image'].shape, np.uint8),
    'label': rng.integers(0, pair.classes, batch_size, np.int32),
    'mask': np.ones(batch_size, np.float32),
    'index': np.arange(batch_size, dtype=np.int32),
    'view': np.zeros(batch_size, np.int32),
  }
  share = batch_size // jax.process_count()
  first = jax.process_index() * share
  local = {k: v[first : first + share] for k, v in values.items()}
  batch = sharding.shard_batch(local, mesh)
  # Compiling the initialisation takes longer than running it piecewise.
  weights = jax.device_get([m.init(jax.random.key(0)) for m in modules])
  start, teacher = sharding.replicate(weights, mesh)
  theirs = dict(zip(('params', 'model_state'), teacher, strict=True))
  constants = {'guides': {'teacher': theirs}, 'seed': np.int32(0)}
  constants = sharding.replicate(constants, mesh)
  current = jax.jit(state, out_shardings=sharding.replicated(mesh))(*start)
  losses, times = [], []
  for _ in range(steps):
    begin = time.perf_counter()
    current, metrics = step(current, constants, batch)
    losses.append(float(metrics['loss']))
    times.append(time.perf_counter() - begin)
  return losses, times


def _child(
  arguments: list[str], devices: int, flags: str = ''
) -> subprocess.Popen:
  flags += f' --xla_force_host_platform_device_count={devices}'
  flags = f'{os.environ.get("XLA_FLAGS", "")} {flags}'
  return subprocess.Popen(
    [sys.executable, '-m', 'benchmarks.scaling', *arguments],
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
  )


def _lines(processes: list[subprocess.Popen]) -> str:
  outputs = [process.communicate()[0] for process in processes]
  if any(process.returncode for process in processes):
    raise RuntimeError('a child failed; its message is above')
  # Gloo greets on the same stream.
  lines = outputs[0].splitlines()
  return '\n'.join(line for line in lines if line.startswith('{'))


def _measure_alone(pair: str, steps: int, devices: int, processes: int) -> dict:
  """`measure` in new processes that share the devices."""
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    port = listener.getsockname()[1]
  children = []
  for index in range(processes):
    arguments = ['--child-measure', pair, '--steps', str(steps)]
    if processes > 1:
      arguments += ['--join', f'127.0.0.1:{port}', str(processes), str(index)]
    children.append(_child(arguments, devices // processes))
  return json.loads(_lines(children))


def measure_all(pair: str, steps: int, rounds: int) -> None:
  """Every case in turn; prints a line for each."""
  cases = ((1, 1), (2, 1), (4, 1), (2, 2))
  runs = [
    [_measure_alone(pair, steps, *case) for case in cases]
    for _ in range(rounds)
  ]
  first = runs[0][0]
  for found in zip(*runs, strict=True):
    row = found[0]
    row |= machine.summary('step', sum((run.pop('step') for run in found), []))
    pairs = zip(row['losses'], first['losses'], strict=True)
    row['loss_difference'] = max(abs(a - b) for a, b in pairs)
    row['overhead'] = round(row['step_ms'] / first['step_ms'] - 1, 3)
    row = {'benchmark': 'scaling_measured'} | row | machine.versions()
    print(json.dumps(row), flush=True)


def main() -> None:
  """Parses the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--compute', action='store_true')
  parser.add_argument('--measure', action='store_true')
  parser.add_argument('--pair', choices=PAIRS, action='append')
  parser.add_argument('--chips', type=int, nargs='+', default=[1, 8, 64, 256])
  parser.add_argument('--sharded', action='store_true')
  parser.add_argument('--steps', type=int, default=12)
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument('--child-compute', nargs=2, help=argparse.SUPPRESS)
  parser.add_argument('--child-measure', help=argparse.SUPPRESS)
  parser.add_argument('--join', nargs=3, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.child_compute:
    pair, chips = arguments.child_compute
    row = compute(pair, int(chips), sharded=arguments.sharded)
    print(json.dumps(row))
  elif arguments.child_measure:
    if arguments.join:
      import jax

      address, count, index = arguments.join
      jax.distributed.initialize(address, int(count), int(index))
    print(json.dumps(measure(arguments.child_measure, arguments.steps)))
  elif arguments.measure:
    pair = (arguments.pair or ['default'])[0]
    measure_all(pair, arguments.steps, arguments.rounds)
  elif arguments.compute:
    for pair in arguments.pair or PAIRS:
      for chips in arguments.chips:
        # The program is not run: machine code need not be good.
        of_child = ['--child-compute', pair, str(chips)]
        of_child += ['--sharded'] * arguments.sharded
        child = _child(of_child, chips, _FAST)
        print(_lines([child]), flush=True)
  else:
    parser.error('one of --compute, --measure')


if __name__ == '__main__':
  main()
