"""Is what a device computes right? Against this machine's processor.

Each check gives rows {'key', 'check', 'of', 'found', 'bound', 'ok'}. The
command runs all of them and goes on where one fails; the tests marked `gpu`
assert them one by one. The processor's side is always float32. The device's is
float32 with the highest precision of products, or bfloat16; where the device is
the processor itself, as in the small form, its side has the forms that an
accelerator gets (lax convolutions), so that the two differ there too.
"""

import contextlib
import functools
import math
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh

from benchmarks import scaling
from benchmarks.accelerator import programs
from benchmarks.scaling import Pair
from tlkd_jax import losses, models
from tlkd_jax.data import augment
from tlkd_jax.losses import LOSSES
from tlkd_jax.models.layers.convolutions import lax_convolutions
from tlkd_jax.runtime import sharding
from tlkd_jax.training.checkpoints import Checkpoints, abstract_like

# What a check may find: the largest difference of logits over their standard
# deviation (in bfloat16 its root mean square), the relative difference of a
# loss, the norm of the difference of gradients, or of what updates changed,
# over their norm, and grey levels of 255 for augmented images.
# Float32 differs by the order of sums alone, 1e-6 to 1e-5 for these networks;
# TensorFloat-32, were it used, by 1e-3. bfloat16 has 8 bits: half a percent an
# operation, 1 to 2 % for a whole network.
BOUNDS = {
  'logits, float32': 3e-4,
  'loss, float32': 1e-4,
  'gradients, float32': 1e-3,
  'logits, bfloat16': 0.05,
  'loss, bfloat16': 0.02,
  'gradients, bfloat16': 0.1,
  'losses': 1e-4,
  'gradients of losses': 1e-3,
  'augmentation': 0.05,
  'losses of updates': 1e-3,
  'weights after updates': 1e-2,
  'losses of more devices': 1e-4,
}
# SGD: AdamW's first updates are signs, of which rounding turns the smallest.
_CHANGES = {'optimizer.name': 'sgd', 'optimizer.head_multiplier': 1.0}
_RATE = 0.05


def processor() -> Mesh:
  """One device of this machine's processor.

  Raises:
    RuntimeError: JAX_PLATFORMS names accelerators alone.
  """
  devices = jax.local_devices(backend='cpu')[:1]
  types = (AxisType.Auto,)
  return jax.make_mesh((1,), ('data',), axis_types=types, devices=devices)


@contextlib.contextmanager
def _exact(mesh: Mesh, reference: bool):
  """Products in full float32; an accelerator's forms on the device's side."""
  forms = contextlib.nullcontext() if reference else lax_convolutions()
  with jax.default_matmul_precision('highest'), forms, _default(mesh):
    yield


def _default(mesh: Mesh):
  return jax.default_device(mesh.devices.flat[0])


def row(check: str, of: str, found: float, bound: float | None = None) -> dict:
  """A check's row; `bound` is BOUNDS[check] where it is not given."""
  limit = BOUNDS[check] if bound is None else bound
  ok = bool(np.isfinite(found) and found <= limit)
  row = {'key': f'{check}: {of}', 'check': check, 'of': of}
  return row | {'found': float(f'{found:.3g}'), 'bound': limit, 'ok': ok}


def apart(found: Any, expected: Any) -> float:
  """Norm of the difference of two trees over that of the second."""
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
  off = total = 0.0
  for a, b in pairs:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    off, total = off + np.sum((a - b) ** 2), total + np.sum(b**2)
  return math.sqrt(off / total) if total else math.inf


def of_model(name: str, size: int, batch: int = 4, classes: int = 10) -> list:
  """Logits, a loss and its gradients of one variant, float32 and bfloat16."""
  found = {
    dtype: _outputs(name, size, batch, classes, dtype, False)
    for dtype in ('float32', 'bfloat16')
  }
  expected = _outputs(name, size, batch, classes, 'float32', True)
  rows = []
  for dtype, (logits, loss, grads) in found.items():
    away = np.abs(logits - expected[0])
    if dtype == 'bfloat16':
      away = np.sqrt(np.mean(away**2))
    values = {
      'logits': float(np.max(away) / expected[0].std()),
      'loss': abs(loss - expected[1]) / abs(expected[1]),
      'gradients': apart(grads, expected[2]),
    }
    rows += [row(f'{k}, {dtype}', name, v) for k, v in values.items()]
  return rows


def _outputs(name, size, batch, classes, dtype, reference) -> tuple:
  mesh = processor() if reference else sharding.make_mesh(1)
  model = models.create_model(name, num_classes=classes, dropout=0.0)
  rng = np.random.default_rng(1)
  images = rng.standard_normal((batch, size, size, 3), np.float32)
  labels = np.arange(batch) % classes

  def loss_of(params, model_state, images):
    outputs, _ = model.apply(params, model_state, images.astype(dtype))
    logits = outputs['logits'].astype(jnp.float32)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return each.mean(), logits

  with _exact(mesh, reference):
    given = (*programs.weights(name, classes, 0, 1.0), images)
    given = jax.device_put(given, mesh.devices.flat[0])
    both = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(*given)
  (loss, logits), grads = jax.device_get(both)
  return logits, float(loss), grads


def of_losses() -> list[dict]:
  """Values and gradients of every loss that needs nothing but outputs."""
  found, expected = _losses(False), _losses(True)
  rows = []
  for name, (value, grads) in found.items():
    theirs, their_grads = expected[name]
    away = abs(float(value - theirs)) / max(abs(float(theirs)), 1e-3)
    rows.append(row('losses', name, away))
    # Nothing but labels: no gradient by the maps, say.
    if any(np.any(leaf) for leaf in jax.tree.leaves(their_grads)):
      rows.append(row('gradients of losses', name, apart(grads, their_grads)))
  return rows


def _losses(reference: bool) -> dict:
  rng = np.random.default_rng(2)

  def outputs():
    def normal(*shape):
      return rng.standard_normal((16, *shape), np.float32)

    maps = {'stage1': normal(8, 8, 12), 'stage2': normal(4, 4, 24)}
    return {
      'logits': 3 * normal(10),
      'pre_logits': normal(24),
      'features': maps,
    }

  names = [
    name
    for name, loss in LOSSES.items()
    if loss.projector is None and loss.memory is None
    if loss.guide != 'start' and loss.same_as is None
    if loss.reads != 'params'
  ]
  labels = np.arange(16, dtype=np.int32) % 10

  def every(student, teacher, labels):
    def one(student, name):
      key = jax.random.key(3)
      return losses.compute(name, student, teacher, labels, key=key)[0]

    return {
      name: jax.value_and_grad(functools.partial(one, name=name))(student)
      for name in names
    }

  mesh = processor() if reference else sharding.make_mesh(1)
  with _exact(mesh, reference):
    given = jax.device_put((outputs(), outputs(), labels), mesh.devices.flat[0])
    return jax.device_get(jax.jit(every)(*given))


def of_augmentation(size: int = 32, batch: int = 16) -> list[dict]:
  """Random views: the same draws, and pixels to a fraction of a grey level."""
  stored = -(-size * 8 // 7)
  rng = np.random.default_rng(4)
  images = rng.integers(0, 256, (batch, stored, stored, 3), np.uint8)
  index = np.arange(batch, dtype=np.int32)

  def views(images, index):
    return augment.augment(
      images, 0, index, index, image_size=size, brightness=0.2, saturation=0.2
    )

  found = []
  for reference in (False, True):
    mesh = processor() if reference else sharding.make_mesh(1)
    with _exact(mesh, reference):
      given = jax.device_put((images, index), mesh.devices.flat[0])
      found.append(np.asarray(jax.jit(views)(*given)))
  away = np.abs(found[0] - found[1]).max()
  return [row('augmentation', f'{size} px', float(away))]


def _updates(pair: Pair, mesh: Mesh, count: int, reference: bool) -> tuple:
  """(losses of so many updates of TL+KD, weights before, weights after)."""
  with _exact(mesh, reference):
    advance, begun, batches = _step(pair, mesh, count)
    before = _host(begun.learners['student'].params)
    state, values = begun, []
    for batch in batches:
      state, metrics = advance(state, batch)
      values.append(float(metrics['loss']))
  after = _host(state.learners['student'].params)
  return np.array(values), before, after


def _host(tree: Any) -> Any:
  """A copy that stays when the arrays are donated, as on a processor."""
  return jax.tree.map(np.array, jax.device_get(tree))


def _step(pair: Pair, mesh: Mesh, count: int, **options) -> tuple:
  """(function of state and batch, the first state, batches)."""
  step, abstract, (learner, _, state) = scaling.make_step(
    pair, mesh, pair.batch, rate=_RATE, changes=_CHANGES, **options
  )
  begun, constants = programs.start(pair, 'online', learner, state, mesh, 1.0)
  batches = [
    sharding.shard_batch(
      programs.make_batch(abstract[2], pair.classes, seed), mesh
    )
    for seed in range(count)
  ]
  return lambda state, batch: step(state, constants, batch), begun, batches


def of_updates(pair: Pair, count: int = 3) -> list[dict]:
  """A few updates of TL+KD: losses and weights of device and processor."""
  values, before, after = _updates(pair, sharding.make_mesh(1), count, False)
  theirs, _, expected = _updates(pair, processor(), count, True)
  changed = jax.tree.map(np.subtract, after, before)
  should = jax.tree.map(np.subtract, expected, before)
  of = f'{pair.teacher} -> {pair.student}'
  return [
    row('losses of updates', of, float(np.max(np.abs(values / theirs - 1)))),
    row('weights after updates', of, apart(changed, should)),
  ]


def of_devices(pair: Pair, count: int = 3) -> list[dict]:
  """Losses of one and of all devices, the same global batch; [] of one."""
  devices = jax.device_count()
  while pair.batch % devices:
    devices -= 1
  if devices < 2:
    return []
  one, _, _ = _updates(pair, sharding.make_mesh(1), count, False)
  more, _, _ = _updates(pair, sharding.make_mesh(devices), count, False)
  away = float(np.max(np.abs(more / one - 1)))
  return [row('losses of more devices', f'1 and {devices}', away)]


def of_resuming(pair: Pair, dtype: str = 'float32') -> list[dict]:
  """Four updates at once, again, and with a checkpoint between: equal bits.

  As a run computes: default precision, the backend's own forms. `found` is the
  share of the state's numbers that differ.
  """
  mesh = sharding.make_mesh(1)
  advance, begun, batches = _step(pair, mesh, 4, dtype=dtype)
  kept = _host(begun)
  abstract = abstract_like(begun, sharding.replicated(mesh))

  def run(state, batches):
    for batch in batches:
      state, _ = advance(state, batch)
    return state

  def again():
    # A donated state is gone: a copy each time, that its arrays own.
    given = sharding.replicate(kept, mesh)
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(given)

  whole, repeated = (_host(run(again(), batches)) for _ in range(2))
  with tempfile.TemporaryDirectory() as folder:
    checkpoints = Checkpoints(folder, 1)
    try:
      checkpoints.save(run(again(), batches[:2]), {})
    finally:
      checkpoints.close()
    checkpoints = Checkpoints(folder, 1)
    try:
      restored, _ = checkpoints.restore(abstract)
    finally:
      checkpoints.close()
  resumed = _host(run(restored, batches[2:]))
  of = f'{pair.teacher} -> {pair.student}, {dtype}'
  return [
    row('repeated, bit for bit', of, _differing(repeated, whole), 0.0),
    row('resumed, bit for bit', of, _differing(resumed, whole), 0.0),
  ]


def _differing(found: Any, expected: Any) -> float:
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
  counts = [(np.sum(a != b), np.size(b)) for a, b in pairs]
  return sum(int(n) for n, _ in counts) / sum(int(n) for _, n in counts)
