"""Steps of the pairs with weights by rule and generated images, and their time.

What a part asks for: the compiled program of an arm, arguments on the devices,
and how to call it again. Nothing is read or fetched.
"""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import scaling
from benchmarks.scaling import Pair
from tlkd_jax import models
from tlkd_jax.data import augment
from tlkd_jax.models import describe
from tlkd_jax.models.network import DTYPES, Network, head_alone
from tlkd_jax.runtime import sharding
from tlkd_jax.training import optimizers, views

# A step's arms, and what a probed teacher says of an image: one forward pass,
# from which its features and the targets to store come.
ARMS = ('tl', 'online', 'stored', 'probed')


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program and its arguments.

  Attributes:
    lowered: before the backend's compiler.
    compiled: after it.
    compile_seconds: of both.
    arguments: of the first call, on the devices.
    after: (arguments, result) -> arguments of the next call; a step's state is
      donated.
  """

  lowered: Any
  compiled: Any
  compile_seconds: float
  arguments: tuple
  after: Callable[[tuple, Any], tuple]


def by_rule(shapes: Any, seed: int = 0, gain: float = 0.5) -> Any:
  """Weights of these shapes, float32 on the host, the same everywhere.

  Scales and variances are uniform in 0.5 to 1.5, kernels normal with `gain`
  over the root of their inputs (half keeps the sums of 50 residual blocks
  small), others a tenth of that without inputs.
  """
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if path.rpartition('.')[2] in ('scale', 'var'):
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    size = 0.1 if len(leaf.shape) < 2 else math.prod(leaf.shape[:-1]) ** -0.5
    values = rng.standard_normal(leaf.shape, np.float32)
    return values * np.float32(gain * size)

  return optimizers.map_with_path(draw, shapes)


@functools.lru_cache(maxsize=4)
def weights(name: str, classes: int, seed: int, gain: float = 0.5) -> tuple:
  """(params, model_state) of a variant by the rule."""
  model = models.create_model(name, num_classes=classes)
  shapes = model.params_shape, model.model_state_shape
  return by_rule(shapes[0], seed, gain), by_rule(shapes[1], seed + 1, gain)


def make_batch(shapes: dict, classes: int, seed: int = 0) -> dict:
  """Host arrays of a batch with these shapes."""
  rng = np.random.default_rng(seed)
  size = shapes['label'].shape[0]
  batch = {
    'image': rng.integers(0, 256, shapes['image'].shape, np.uint8),
    'label': rng.integers(0, classes, size, np.int32),
    'mask': np.ones(size, np.float32),
    'index': np.arange(size, dtype=np.int32),
    'view': np.zeros(size, np.int32),
  }
  if 'targets' in shapes:
    said = rng.standard_normal((size, classes), np.float32)
    batch['targets'] = {'teacher': {'logits': said}}
  return batch


def make(pair: Pair, arm: str, batch_size: int, dtype: str, mesh) -> Program:
  """The program of an arm, compiled."""
  if arm == 'probed':
    return _of_teacher(pair, batch_size, dtype, mesh)
  step, abstract, (learner, _, state) = scaling.make_step(
    pair, mesh, batch_size, arm=arm, dtype=dtype
  )
  lowered, compiled, seconds = _compile(step, abstract)
  begun, constants = start(pair, arm, learner, state, mesh)
  batch = sharding.shard_batch(make_batch(abstract[2], pair.classes), mesh)
  return Program(
    lowered,
    compiled,
    seconds,
    (begun, constants, batch),
    lambda given, result: (result[0], *given[1:]),
  )


def start(pair: Pair, arm: str, learner, state, mesh, gain=0.5) -> tuple:
  """(state, constants) of a step of scaling.make_step, on the devices."""
  own = sharding.replicate(weights(pair.student, pair.classes, 0, gain), mesh)
  begun = jax.jit(state, out_shardings=sharding.replicated(mesh))(*own)
  guides = {}
  if arm != 'tl':
    params, model_state = weights(pair.teacher, pair.classes, 10, gain)
    if arm == 'stored':
      teacher = models.create_model(pair.teacher, num_classes=pair.classes)
      params, model_state = head_alone(teacher, params), {}
    guides['teacher'] = {'params': params, 'model_state': model_state}
  constants = {'guides': guides, 'seed': np.int32(0)}
  return begun, sharding.replicate(constants, mesh)


def _of_teacher(pair: Pair, batch_size: int, dtype: str, mesh) -> Program:
  model = models.create_model(pair.teacher, num_classes=pair.classes)
  network = Network(model, pair.image_size, DTYPES[dtype])
  seen = functools.partial(_view, image_size=pair.image_size)
  names = ('logits', 'pre_logits')
  compute = views.make_compute(network, seen, names, mesh)
  stored = -(-pair.image_size * 8 // 7)
  shapes = {
    'image': jax.ShapeDtypeStruct((batch_size, stored, stored, 3), jnp.uint8),
    'label': jax.ShapeDtypeStruct((batch_size,), jnp.int32),
  }
  params, model_state = weights(pair.teacher, pair.classes, 10)
  constants = {'params': params, 'model_state': model_state}
  given = sharding.replicate((constants, np.int32(0)), mesh)
  batch = sharding.shard_batch(make_batch(shapes, pair.classes), mesh)
  lowered, compiled, seconds = _compile(compute, (*given, batch))
  return Program(
    lowered, compiled, seconds, (*given, batch), lambda given, _: given
  )


def _view(images, index, view, *, seed, image_size):
  return augment.augment(images, seed, index, view, image_size=image_size)


def _compile(function, arguments: tuple) -> tuple:
  begun = time.perf_counter()
  lowered = function.lower(*arguments)
  compiled = lowered.compile()
  return lowered, compiled, round(time.perf_counter() - begun, 1)


def model_flop(pair: Pair, arm: str) -> float:
  """Operations of one image by the package's own count of multiply-adds.

  Two a multiply-add; a network that learns is passed three times (forward,
  and backward by inputs and by weights), one that is asked once.
  """

  def forward(name):
    found = describe.describe(name, pair.image_size, num_classes=pair.classes)
    return 2.0 * (found.macs + found.attention_macs)

  passes = {'tl': (3, 0), 'online': (3, 1), 'stored': (3, 0), 'probed': (0, 1)}
  own, theirs = passes[arm]
  total = own * forward(pair.student)
  return total + (theirs * forward(pair.teacher) if theirs else 0.0)


def time_calls(
  program: Program, seconds: float, rounds: int
) -> tuple[dict, Any]:
  """Milliseconds a call in rounds of as many as fit, without a host transfer.

  Returns:
    ({'ms', 'ms_min_max', 'rounds', 'steps', 'send_ms'}, the last result);
    'send_ms' is when the first call of a round came back.

  Raises:
    jax.errors.JaxRuntimeError: of the devices, out of memory among others.
  """
  given, result = program.arguments, None

  def run(count: int) -> tuple[float, float]:
    nonlocal given, result
    begun = time.perf_counter()
    sent = begun
    with jax.transfer_guard('disallow'):
      for number in range(count):
        result = program.compiled(*given)
        given = program.after(given, result)
        sent = sent if number else time.perf_counter()
    jax.block_until_ready(result)
    return (time.perf_counter() - begun) / count, sent - begun

  run(2)
  one, _ = run(1)
  steps = max(1, min(50, int(seconds / rounds / one)))
  found = [run(steps) for _ in range(rounds)]
  each = [1e3 * spent for spent, _ in found]
  return {
    'ms': round(statistics.median(each), 3),
    'ms_min_max': [round(min(each), 3), round(max(each), 3)],
    'rounds': rounds,
    'steps': steps,
    'send_ms': round(1e3 * statistics.median(s for _, s in found), 3),
  }, result


def costs(program: Program) -> dict:
  """XLA's counts of a call: of the program it was given and of its own.

  A backend that calls libraries may count nothing for them in its own, and
  those of plug-ins do not count what they were given.
  """

  def of(stage, name) -> float | None:
    try:
      counted = stage.cost_analysis()
    except jax.errors.JaxRuntimeError:
      return None
    counted = counted[0] if isinstance(counted, list) else counted
    value = (counted or {}).get(name)
    return None if value is None or value < 0 else float(value)

  memory = program.compiled.memory_analysis()
  kept = None if memory is None else memory.temp_size_in_bytes
  return {
    'xla_flop': of(program.compiled, 'flops'),
    'xla_flop_given': of(program.lowered, 'flops'),
    'xla_bytes': of(program.compiled, 'bytes accessed'),
    'temporary_mib': None if kept is None else round(kept / 2**20),
  }
