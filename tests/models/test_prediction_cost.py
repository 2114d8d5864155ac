"""Costs of predictions: figures by hand, a measurement of a tiny network."""

import dataclasses
import json

import jax
import pytest

from tests import tiny
from tlkd_jax import models
from tlkd_jax.models import describe, serving
from tlkd_jax.runtime import timing

pytestmark = pytest.mark.usefixtures('tiny_models')


@pytest.fixture
def quick(monkeypatch):
  """Calls are made once and timed by no clock."""

  def take(call):
    call()
    return timing.Taken(2.0, 1.0, 3.0, 7, 0.0)

  monkeypatch.setattr(serving.timing, 'take', take)


def make(**changes):
  found = serving.Timing('JAX', 1, 5.0, 4.0, 6.0, 9, 'cpu', 2, 0.1, 100, None)
  return dataclasses.replace(found, **changes)


def test_figures_are_those_of_the_shapes():
  found = serving.figures('tiny', 16, 10)
  known = describe.describe('tiny', 16, num_classes=10)
  assert (found.macs, found.parameters) == (known.macs, known.parameters)
  model = models.create_model('tiny', num_classes=10)
  count = sum(
    leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, _key()))
  )
  # BatchNorm's statistics are in a file too.
  assert found.bytes == 4 * count > 4 * found.parameters


def _key():
  return jax.eval_shape(lambda: jax.random.key(0))


def test_attention_counts():
  found = serving.figures('tiny_vit', 16, 10)
  assert found.all_macs == found.macs + found.attention_macs > found.macs


def test_more_classes_and_pixels_cost_more():
  small, wide, large = (
    serving.figures('tiny', *sizes) for sizes in ((16, 10), (16, 99), (32, 10))
  )
  assert wide.bytes > small.bytes and wide.macs > small.macs
  assert large.bytes == small.bytes and large.macs > small.macs


def test_several_side_by_side():
  one, two = (serving.figures(name, 16, 10) for name in ('tiny', 'tiny x2'))
  assert 1.5 < two.all_macs / one.all_macs < 2.5


def test_a_measurement(quick):
  own = serving.figures('tiny', 16, 10)
  found = serving.measure(own, batches=(1, 2))
  assert [one.batch for one in found.timings] == [1, 2]
  one, two = found.timings
  assert (one.ms, one.low, one.high, one.passes) == (2.0, 1.0, 3.0, 7)
  assert one.runtime == serving.JAX and one.cores >= 1 and one.device
  # Weights, images and results at least; more images take more.
  assert two.memory > one.memory > own.bytes
  assert found.find('JAX', 2) is two and found.find('JAX', 3) is None
  stored = json.loads(json.dumps(serving.as_json(found)))
  assert serving.from_json(stored) == found


def test_what_was_not_measured_is_kept():
  found = serving.Serving(serving.figures('tiny', 16, 10), (), ('x: no',))
  assert serving.from_json(serving.as_json(found)) == found


def test_figures_alone_are_a_cost_without_times():
  own = serving.figures('tiny', 16, 10)
  assert serving.from_json(dataclasses.asdict(own)) == serving.Serving(own)


@pytest.mark.parametrize('name', ['model', 'macs', 'bytes', 'compute_dtype'])
def test_a_damaged_cost_is_named(name):
  stored = dataclasses.asdict(serving.figures('tiny', 16, 10))
  del stored[name]
  with pytest.raises(ValueError, match=f"damaged: '{name}'"):
    serving.from_json(stored)


def test_a_timing_of_another_version_is_damaged():
  stored = serving.as_json(
    serving.Serving(serving.figures('tiny', 16, 10), (make(),))
  )
  stored['measured'][0]['colour'] = 'red'
  with pytest.raises(ValueError, match='colour'):
    serving.from_json(stored)


@pytest.mark.parametrize(
  ('beside', 'disturbed'), [(None, False), (0.1, False), (0.9, True)]
)
def test_whether_others_were_at_work(beside, disturbed):
  assert make(beside=beside).disturbed == disturbed


def test_a_size_that_the_network_refuses():
  with pytest.raises(ValueError):
    serving.figures('tiny_vit', 17, 10)
  assert 'tiny_vit' in tiny.SPECS
