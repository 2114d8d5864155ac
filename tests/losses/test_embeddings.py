"""Which embedding of a teacher a loss reads, by name."""

import jax
import numpy as np
import pytest

from tests.losses.outputs import (
  BATCH,
  EXAMPLES,
  hyperparameters,
  make_outputs,
  shapes_of,
)
from tlkd_jax import losses
from tlkd_jax.losses import LOSSES
from tlkd_jax.losses.stages import EMBEDDINGS

BY_NAME = [
  name for name in LOSSES if 'embedding' in losses.hyperparameters_of(name)
]
WIDTHS = {'class': 5, 'mean': 7, 'attention': 8}


def outputs_of_tokens():
  rng = np.random.default_rng(7)
  return make_outputs(1) | {
    EMBEDDINGS[name]: rng.normal(size=(BATCH, width)).astype(np.float32)
    for name, width in WIDTHS.items()
  }


def evaluate(name, student, teacher, **options):
  """The value with a projector and memory of its own."""
  options |= hyperparameters(name)
  extras = losses.init_extras(
    name,
    jax.random.key(0),
    shapes_of(student),
    shapes_of(teacher),
    EXAMPLES,
    **options,
  )
  value, _ = losses.compute(
    name,
    student,
    teacher,
    None,
    **extras,
    index=np.arange(BATCH),
    key=jax.random.key(1),
    **options,
  )
  return value


def test_losses_on_embeddings_may_choose_one():
  # Those that read the teacher's head read what it reads.
  heads = {'srrl', 'simkd'}
  on_embeddings = {
    name
    for name, loss in LOSSES.items()
    if loss.reads == 'embedding' and loss.guide == 'teacher'
  }
  assert set(BY_NAME) == on_embeddings - heads


@pytest.mark.parametrize('name', BY_NAME)
def test_a_loss_reads_the_embedding_that_is_chosen(name):
  """The value is that of a network whose `pre_logits` is that embedding."""
  student, teacher = make_outputs(0), outputs_of_tokens()
  for chosen in WIDTHS if name in ('cosine', 'crd') else ['mean']:
    plain = {'logits': teacher['logits'], 'pre_logits': None}
    plain['pre_logits'] = teacher[EMBEDDINGS[chosen]]
    both = (
      evaluate(name, student, plain),
      evaluate(name, student, teacher, embedding=chosen),
    )
    assert both[0] == both[1] != evaluate(name, student, teacher)
    loss = LOSSES[name]
    assert loss.teacher_outputs({'embedding': chosen}) == (
      'logits',
      EMBEDDINGS[chosen],
    )
    assert loss.teacher_outputs({}) == ('logits', 'pre_logits')
    (line,) = losses.bridges(name, student, teacher, embedding=chosen)
    assert f'with {EMBEDDINGS[chosen]} {WIDTHS[chosen]} of the teac' in line


@pytest.mark.parametrize('name', BY_NAME)
@pytest.mark.parametrize('chosen', WIDTHS)
def test_an_embedding_that_a_teacher_lacks_is_named(name, chosen):
  shapes = shapes_of((make_outputs(0), make_outputs(1)))
  told = f'embedding {chosen!r}; accepted: pooled'
  with pytest.raises(ValueError, match=told):
    jax.eval_shape(
      lambda *sides: evaluate(name, *sides, embedding=chosen), *shapes
    )


def test_a_map_is_learned_at_equal_widths_too():
  sides = shapes_of((make_outputs(0), make_outputs(1)))
  for name in ('cosine', 'smooth_l1'):
    made = jax.eval_shape(
      lambda name=name: losses.init_extras(
        name, jax.random.key(0), *sides, EXAMPLES
      )
    )
    assert made['projector']['pre_logits']['kernel'].shape == (6, 6)
