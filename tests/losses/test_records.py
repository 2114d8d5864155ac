"""Every record of LOSSES says of its function what is so."""

import inspect
import typing

import jax
import numpy as np
import pytest

from tests.losses.outputs import (
  ALL_LABELS,
  CLASSES,
  LABELS,
  NAMES,
  call,
  make_extras,
  make_sides,
  run,
)
from tlkd_jax import losses
from tlkd_jax.losses import LOSSES

# The part of a model's outputs that a kind of loss is named after.
PARTS = {'logits': 'logits', 'embedding': 'pre_logits', 'maps': 'features'}


def without(outputs, *parts):
  return {k: v for k, v in outputs.items() if k not in parts}


@pytest.mark.parametrize('name', LOSSES)
def test_a_record_fits_its_function(name):
  loss = LOSSES[name]
  parameters = inspect.signature(loss.function).parameters.values()
  keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
  assert [p.name for p in parameters if p.name not in keywords] == [
    'student_outputs',
    'teacher_outputs',
    'labels',
  ]
  assert ('projector' in keywords) == (loss.projector is not None)
  assert ('memory' in keywords) == (loss.memory is not None)
  assert loss.reads in typing.get_args(losses.Reads)
  assert loss.guide in typing.get_args(losses.Guide)
  assert loss.p_label_at in typing.get_args(losses.LabelAt)
  # Maps are chosen by name; logits and parameters have no stages.
  assert 'stages' in keywords or loss.reads != 'maps'
  assert 'stages' not in keywords or loss.reads in ('maps', 'embedding')
  assert loss.weight > 0 and 0 <= loss.warmup < 1


def test_second_names_are_those_of_a_loss():
  functions = []
  for name, loss in LOSSES.items():
    if loss.same_as is None:
      functions.append(loss.function)
    else:
      first = LOSSES[loss.same_as]
      assert first.same_as is None and first.function is loss.function, name
  assert len(functions) == len(set(functions))


@pytest.mark.parametrize('name', NAMES)
def test_labels_matter_where_they_are_needed(name):
  """Of the batch, or of the training set that a memory was made for."""
  sides = make_sides(name)
  (value, _), _ = run(name, *sides, *make_extras(name))
  extras = make_extras(name, labels=(ALL_LABELS + ALL_LABELS // 2) % 4)
  (other, _), _ = run(name, *sides, *extras, (LABELS + 1) % CLASSES)
  assert (value != other) == LOSSES[name].needs_labels


@pytest.mark.parametrize('name', NAMES)
def test_a_loss_reads_what_its_record_says(name):
  """All of it, and nothing beyond."""
  kinds = list(PARTS)
  reads = LOSSES[name].reads
  unread = [PARTS[kind] for kind in kinds[kinds.index(reads) + 1 :]]
  sides, extras = make_sides(name), make_extras(name)
  if unread:
    (value, _), _ = run(name, *sides, *extras)
    less = [without(side, *unread) for side in sides]
    (again, _), _ = run(name, *less, *make_extras(name, sides=less))
    np.testing.assert_array_equal(again, value)
  least = [without(side, *unread, PARTS[reads]) for side in sides]
  with pytest.raises((KeyError, ValueError), match=f'{PARTS[reads]}|no common'):
    jax.eval_shape(lambda: call(name, *least, *extras))


def test_stages_turn_a_loss_on_embeddings_to_maps():
  for name in ('srrl', 'simkd'):
    loss = LOSSES[name]
    assert loss.reads_of({'stages': None}) == loss.reads_of({}) == 'embedding'
    assert loss.reads_of({'stages': ('stage2',)}) == 'maps'
    sides = make_sides(name)
    (line,) = losses.bridges(name, *sides, stages=('stage1',))
    assert line.startswith(f'{name}: stage1 4x4x5 of the student')
    (line,) = losses.bridges(name, *sides)
    assert line.startswith(f'{name}: pre_logits 6 of the student')
  assert LOSSES['kd'].reads_of({}) == 'logits'
  assert LOSSES['at'].reads_of({'stages': None}) == 'maps'


@pytest.mark.parametrize('name', losses.LOSSES)
def test_what_asks_for_no_shapes_is_made_without_them(name):
  options = losses.hyperparameters_of(name)
  if losses.find(name).asks_shapes(options):
    return
  extras = losses.init_extras(name, jax.random.key(0), {}, {}, 4, **options)
  assert extras == {'projector': {}, 'memory': {}}
  assert losses.bridges(name, {}, {}, **options) == []
