"""NaN and infinity in loss, gradient, weights, inputs and targets."""

import contextlib
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from tests import tiny
from tests.reliability.outcomes import Outcome
from tests.reliability.runs import Place
from tests.workdirs import arrays
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import RunError, UserError
from tlkd_jax.training import decoding, loop, networks, run, target_store
from tlkd_jax.training.state import State

_KIND = 'numbers that are not finite'
_VALUES = {'NaN': float('nan'), 'inf': float('inf')}


def inject(place: Place) -> list[Outcome]:
  """Each place where such a number can come from."""
  found = []
  for name, value in _VALUES.items():
    for where in ('loss', 'gradient', 'weights') if place.long else ('loss',):
      found.append(_in_a_step(place, where, name, value))
    found.append(_at_the_start(place, name, value))
    found.append(_in_targets(name, value))
    if not place.long:
      break
  found += [_in_a_step(place, 'loss', 'NaN', _VALUES['NaN'], skip=True)]
  if place.long:
    found += [_in_a_step(place, 'weights', 'inf', _VALUES['inf'], skip=True)]
  return found


@contextlib.contextmanager
def _replaced(owner, name: str, value):
  before = getattr(owner, name)
  setattr(owner, name, value)
  try:
    yield
  finally:
    setattr(owner, name, before)


def _spoiling(where: str, at: int, value: float):
  """In place of shared_step: a step of which number `at` is spoilt."""
  make_step = run.shared_step

  def make(*arguments):
    step = make_step(*arguments)

    def call(state, constants, batch):
      # An infinity times 0 would be NaN, in every step.
      spoil = jnp.where(state.step + 1 == at, value, 0.0)
      after, metrics = step(state, constants, batch)
      learners = after.learners
      if where == 'weights':
        learners = {
          name: dataclasses.replace(
            one, params=jax.tree.map(lambda x: x + spoil, one.params)
          )
          for name, one in learners.items()
        }
      else:
        key = 'loss' if where == 'loss' else 'gradient_norm'
        metrics = metrics | {key: metrics[key] + spoil}
      return State(after.step, learners), metrics

    return jax.jit(call, donate_argnums=0)

  return _replaced(run, 'shared_step', make)


def _fine_tune(place: Place, folder: pathlib.Path, **changes):
  given = {'num_steps': 8, 'log_every_steps': 2, 'eval_every_steps': 2}
  config = tiny.make_config('tl', place.cache_dir, **given | changes)
  dataset = decoding.load_dataset(config)
  return loop.fine_tune(config, folder, dataset, sharding.make_mesh(1))


def _in_a_step(place, where, name, value, *, skip=False) -> Outcome:
  what = f'{name} in {where}{", skipped" if skip else ""}'
  folder = place.root / what.replace(' ', '-')
  changes = {'on_nonfinite': 'skip'} if skip else {}
  try:
    with _spoiling(where, 5, value):
      summary = _fine_tune(place, folder, **changes)
  except RunError as error:
    # Spoilt weights are seen in what they say next.
    clear = all(
      part in str(error)
      for part in ('step', 'finite', 'last good checkpoint: step 4')
    )
    result = 'refused' if clear and not skip else 'traceback'
    return Outcome(_KIND, result, f'{what}: {error}')
  except Exception as error:
    return Outcome(_KIND, 'traceback', f'{what}: {error!r}')
  good = skip and summary['skipped_steps'] == 1
  good = good and all(np.isfinite(v).all() for v in arrays(folder).values())
  return Outcome(_KIND, 'survived' if good else 'wrong', what)


def _at_the_start(place: Place, name: str, value: float) -> Outcome:
  load, what = networks.load_learners, f'{name} in the first weights'

  def spoilt(*arguments):
    found = load(*arguments)
    params = jax.tree.map(np.array, found['student'].params)
    jax.tree.leaves(params)[0].flat[0] = value
    return {'student': dataclasses.replace(found['student'], params=params)}

  try:
    with _replaced(networks, 'load_learners', spoilt):
      _fine_tune(place, place.root / what.replace(' ', '-'))
  except UserError as error:
    clear = 'not finite' in str(error) and 'params' in str(error)
    return Outcome(_KIND, 'refused' if clear else 'traceback', f'{error}')
  except Exception as error:
    return Outcome(_KIND, 'traceback', f'{what}: {error!r}')
  return Outcome(_KIND, 'wrong', what)


def _in_targets(name: str, value: float) -> Outcome:
  layout = target_store.Layout({'logits': 4}, 'float16')
  logits = np.zeros((3, 4), np.float32)
  logits[1, 2] = value
  try:
    layout.encode({'logits': logits})
  except ValueError as error:
    clear = "teacher's logits are not finite" in str(error)
    return Outcome(_KIND, 'refused' if clear else 'traceback', f'{error}')
  return Outcome(_KIND, 'wrong', f'{name} in targets')
