"""An optimizer's state and averages in parts: the same updates, less memory.

`python -m tests.test_state_sharding DEVICES` prints how far the updates of all
CASES are from those with copies.
"""

import functools
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import tiny
from tests.test_mutual import SEEDS, examples, lessons_between, views
from tests.test_teacher_sharding import bytes_on_a_device, loaded_of
from tests.test_train_step import (
  constants_of,
  make_batch,
  make_lessons_step,
  variables,
)
from tlkd_jax import models
from tlkd_jax.runtime import sharding
from tlkd_jax.settings import with_values
from tlkd_jax.training import (
  checkpoints,
  descriptions,
  lessons,
  nonfinite,
  optimizers,
  placing,
  run,
  updating,
)
from tlkd_jax.training.state import Beginning, State, create

pytestmark = pytest.mark.usefixtures('tiny_models')

# A step of each kind. Without clipping no sum goes over the devices in another
# order, and AdamW's decay is no part of a sum: the updates are the same bits.
CASES = {
  'bitwise': {'optimizer.clip_norm': 0.0},
  'whole': {
    'optimizer.weight_decay': 0.05,
    'optimizer.layer_decay': 0.7,
    'optimizer.accumulate_steps': 2,
  },
  'sgd': {'optimizer.name': 'sgd', 'optimizer.weight_decay': 0.01},
  'head': {'optimizer.train_only': 'head', 'batch_norm': 'train'},
  'skipping': {'on_nonfinite': 'skip', 'optimizer.freeze_until_step': 2},
}
STEPS, RATE = 4, 0.05
# The norm by which gradients are clipped is summed in parts first, and the
# compiler contracts other products and sums: the last bit of a loss. AdamW
# divides a gradient by its own size, also one that is little more than the
# rounding of a sum: a thousandth of a step of a weight, and where gradients
# cancel, as the largest of the array is to them times ROUNDING (on one
# processor a fiftieth of a step, with a gradient of 1e-11 beside one of 7e-3).
BOUNDS = {'losses': 1e-6, 'state': 1e-3 * RATE}
ROUNDING = float(np.finfo(np.float32).eps)


def updates(devices: int, kind: str, changes: dict, *, mutual: bool):
  """(state, metrics of each step) of a student, or of two that teach another.

  By a loss with a projector and one with a memory.
  """
  config = with_values(
    tiny.make_config('kd', loss='crd+fitnet', optimizer__name='adamw'),
    {'optimizer.sharding': kind, 'ema_decay': 0.9}
    | {'distillation.extra.fitnet.weight': 1.0}
    | changes,
  )
  both, mesh = views(), sharding.make_mesh(devices)
  schedule = optimizers.learning_rate_schedule(RATE, 10, 0.0, 0.0)
  names = tuple(both) if mutual else ('student',)
  learned, begun = lessons_between(config, both, names, schedule, ('student',))
  optimizer_of = {name: lesson.optimizer for name, lesson in learned.items()}
  placed = updating.placed(config, begun, optimizer_of, mesh)
  frozen = {} if mutual else {'peer': both['peer']}
  constants = constants_of(
    mesh,
    rows=lessons.rows(learned, examples()),
    **{name: variables(view, SEEDS[name]) for name, view in frozen.items()},
  )
  step = make_lessons_step(
    learned,
    frozen,
    schedule,
    mesh,
    placed=placed,
    **vars(run.make_mode(config)),
  )
  if config.on_nonfinite == 'skip':
    step = nonfinite.skipping(step, mesh, placed)
  begin = functools.partial(create, optimizers=optimizer_of)
  state = jax.jit(begin, out_shardings=placed)(sharding.replicate(begun, mesh))
  rows = []
  for number in range(STEPS):
    batch = sharding.shard_batch(make_batch(number), mesh)
    before, (state, metrics) = state, step(state, constants, batch)
    assert all(x.is_deleted() for x in jax.tree.leaves(before.learners))
    rows.append(jax.device_get(metrics))
  return state, rows


def differences(devices: int, changes: dict, *, mutual: bool = False) -> dict:
  """The largest of the losses and of the state, and bytes on a device."""
  copies, rows = updates(devices, 'none', changes, mutual=mutual)
  parts, others = updates(devices, 'state', changes, mutual=mutual)
  losses = [name for name in rows[0] if name.endswith('loss')]
  whole, allowed = jax.device_get((copies, parts)), rounding_of(copies, parts)
  far = jax.tree_util.tree_map_with_path(
    lambda path, a, b: float(
      np.max(
        np.abs(np.subtract(a, b, dtype=float))
        - RATE * allowed.get(tail_of(path), 0.0)
      )
    ),
    *whole,
  )
  away = [
    max(abs(float(a[name] / b[name]) - 1) for name in losses)
    for a, b in zip(rows, others, strict=True)
  ]
  return {
    'first': away[0],
    'losses': max(away),
    'state': max(jax.tree.leaves(far)),
    'share': bytes_on_a_device(kept_of(parts))
    / bytes_on_a_device(kept_of(copies)),
    'whole': all(
      leaf.is_fully_replicated
      for learner in parts.learners.values()
      for leaf in jax.tree.leaves((learner.params, learner.memory))
    ),
  }


def rounding_of(state: State, other: State) -> dict[str, np.ndarray]:
  """Weight -> steps that rounding of its gradients is, by the second moment."""
  found = {}
  # A sum may be 0 in one order and not in another.
  both = jax.tree.map(np.maximum, *jax.device_get((state, other)))
  for path, leaf in jax.tree_util.tree_leaves_with_path(both):
    if '.nu[' in jax.tree_util.keystr(path):
      root = np.sqrt(np.asarray(leaf, float))
      steps = ROUNDING * root.max() / np.where(root > 0, root, np.inf)
      found[tail_of(path)] = np.minimum(steps, STEPS)
  return found


def tail_of(path) -> str:
  """Whose learner's, and the weight, of a weight, a moment or an average."""
  name = jax.tree_util.keystr(path).replace("['weights']", '')
  found = re.match(r"\.learners\['(\w+)'\].*\.(?:params|ema|nu)(\[.*)", name)
  return ' '.join(found.groups()) if found else name


def kept_of(state: State):
  """What is spread of a state."""
  return [(own.opt_state, own.ema) for own in state.learners.values()]


def assert_equal_updates(found: dict, name: str, devices: int):
  assert found['first'] == 0, found
  for what, bound in BOUNDS.items():
    assert found[what] <= (0 if name == 'bitwise' else bound), found
  assert found['whole'] and found['share'] < 1.5 / devices, found


def test_updates_are_the_same(monkeypatch):
  """With an average, accumulation, groups of parameters and clipping."""
  monkeypatch.setattr(sharding, '_LEAST', 1)
  found = differences(4, CASES['whole'])
  assert_equal_updates(found, 'whole', 4)


@pytest.mark.slow
def test_updates_of_each_kind_on_eight_devices():
  """Of two networks that teach each other among them."""
  flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=8'
  done = subprocess.run(
    [sys.executable, '-m', 'tests.test_state_sharding', '8'],
    stdout=subprocess.PIPE,
    env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
    check=True,
    text=True,
  )
  found = json.loads(done.stdout.splitlines()[-1])
  assert found.keys() == CASES.keys()
  for name, each in found.items():
    assert_equal_updates(each, name, 8)


def abstract_run(kind: str, devices: int, **given):
  """(where its state lies, shapes of the state) of one larger network."""
  config = tiny.make_config('tl', optimizer__sharding=kind, **given)
  model = models.create_model('resnet18', num_classes=10)
  optimizer = optimizers.make_optimizer(model, lambda _: 0.1, config.optimizer)
  begun = {
    'student': Beginning(
      {'weights': model.params_shape, 'projector': {}},
      model.model_state_shape,
      {},
      averaged=config.ema_decay > 0,
    )
  }
  optimizer_of = {'student': optimizer}
  shapes = jax.eval_shape(
    functools.partial(create, optimizers=optimizer_of), begun
  )
  mesh = sharding.make_mesh(devices)
  return updating.placed(config, begun, optimizer_of, mesh), shapes


@pytest.mark.parametrize(
  ('given', 'copies'),
  [
    ({'optimizer__name': 'adamw'}, 2),
    ({'optimizer__name': 'sgd'}, 1),
    ({'optimizer__name': 'adamw', 'ema_decay': 0.9}, 3),
    ({'optimizer__name': 'adamw', 'optimizer__accumulate_steps': 2}, 3),
    ({'optimizer__name': 'sgd', 'optimizer__freeze_until_step': 3}, 1),
  ],
)
@pytest.mark.parametrize('devices', [1, 2, 4])
def test_what_is_spread(given, copies, devices):
  """The moments and the average, but for what is too small."""
  where, shapes = abstract_run('state', devices, **given)
  abstract = checkpoints.abstract_like(shapes, where)

  def held(tree):
    return sum(
      4 * int(np.prod(leaf.sharding.shard_shape(leaf.shape)))
      for leaf in jax.tree.leaves(tree)
    )

  whole = held(abstract.learners['student'].params)
  kept = held(kept_of(abstract))
  assert copies * whole / devices <= kept < 1.02 * copies * whole / devices
  copied, _ = abstract_run('none', devices, **given)
  assert copied == sharding.replicated(sharding.make_mesh(devices))
  assert (where == copied) == (devices == 1)


def test_a_checkpoint_is_the_same_in_parts(tmp_path, monkeypatch):
  """Its digests too; it is read in parts and whole."""
  monkeypatch.setattr(sharding, '_LEAST', 1)
  mesh, draw = sharding.make_mesh(4), np.random.default_rng(0)
  values = {'a': draw.normal(size=(8, 12)), 'b': draw.normal(size=5)}
  values = jax.tree.map(lambda x: x.astype(np.float32), values)
  digests = []
  for place in (sharding.replicate, sharding.in_parts):
    digests.append(descriptions.digest(place(values, mesh)))
  assert digests == [descriptions.digest(values)] * 2
  changed = {'a': values['a'].copy(), 'b': values['b']}
  # In the last device's part.
  changed['a'][-1, -1] += 1
  assert descriptions.digest(sharding.in_parts(changed, mesh)) != digests[0]
  parts = sharding.in_parts(values, mesh)
  again = sharding.whole(parts, mesh)
  assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(again))
  jax.tree.map(np.testing.assert_array_equal, again, values)
  assert sharding.whole(again, mesh) is again


@pytest.mark.parametrize('devices', [2, 4])
def test_the_place_of_a_teacher_counts_what_is_in_parts(devices, monkeypatch):
  """Weights and gradients whole, two moments in parts."""
  monkeypatch.setattr(sharding, '_LEAST', 1)
  mesh = sharding.make_mesh(devices)
  teachers = {'teacher': loaded_of('teacher')['teacher'].network}
  learners, base = loaded_of('student'), tiny.make_config('kd')
  frozen, learned, part = (
    placing.bytes_of(models.create_model(name, num_classes=10), count)
    for name, count in (('tiny_teacher', 1), ('tiny', 1), ('tiny', devices))
  )
  needed = {
    'none': frozen + 4 * learned,
    'state': frozen + 2 * learned + 2 * part,
  }
  assert needed['state'] < needed['none']
  for kind, size in needed.items():
    settings = with_values(base, {'optimizer.sharding': kind})
    for free, expected in ((2 * size, False), (2 * size - 2, True)):
      found = placing.in_parts(settings, learners, teachers, mesh, free=free)
      assert found == expected


if __name__ == '__main__':
  sharding._LEAST = 1
  with tiny.registered():
    count = int(sys.argv[1])
    found = {
      name: differences(count, changes, mutual=name == 'whole')
      for name, changes in CASES.items()
    }
    print(json.dumps(found))
