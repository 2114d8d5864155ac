"""Outputs of two small networks, and every loss on them, compiled once.

Losses with a projector see networks of different widths and resolutions.
"""

import functools

import jax
import numpy as np

from tlkd_jax import losses
from tlkd_jax.losses import LOSSES

BATCH, CLASSES, WIDTH = 4, 3, 6
# Of the training set that memories remember.
EXAMPLES = 20
LABELS = np.arange(BATCH) % CLASSES
ALL_LABELS = np.arange(EXAMPLES) % 4
# One name per loss; what compares a student with its start has tests of its
# own, but for delta, which may compare any two networks of one shape.
NAMES = sorted(
  name
  for name, loss in LOSSES.items()
  if loss.same_as is None and (loss.guide != 'start' or name == 'delta')
)
STAGES = {'stage1': (4, 4, 5), 'stage2': (2, 2, WIDTH)}
TEACHER_STAGES = {'stage1': (4, 4, 7), 'stage2': (3, 2, 8)}
TEACHER_WIDTH = 9


def make_outputs(seed, stages=STAGES, width=WIDTH, num_classes=CLASSES):
  """Model outputs, normal numbers; in NumPy, as JAX would compile each line."""
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return rng.normal(size=(BATCH, *shape)).astype(np.float32)

  return {
    'logits': 3 * normal(num_classes),
    'pre_logits': normal(width),
    'features': {name: normal(*shape) for name, shape in stages.items()},
  }


def make_sides(name):
  """Outputs of a student and a teacher, without and with the same widths."""
  student = make_outputs(0)
  if LOSSES[name].projector is not None:
    return student, make_outputs(1, TEACHER_STAGES, width=TEACHER_WIDTH)
  return student, make_outputs(1)


def shapes_of(outputs):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), outputs)


def hyperparameters(name):
  return {'nce_k': 5, 'feat_dim': 4} if name == 'crd' else {}


def teacher_head():
  """Of the teacher that losses with a projector see."""
  kernel = np.linspace(-1, 1, TEACHER_WIDTH * CLASSES, dtype=np.float32)
  kernel = kernel.reshape(TEACHER_WIDTH, CLASSES)
  return {'kernel': kernel, 'bias': np.ones(CLASSES, np.float32)}


@functools.partial(jax.jit, static_argnums=0)
def _init_extras(name, sides, labels):
  return losses.init_extras(
    name,
    jax.random.key(3),
    *shapes_of(sides),
    EXAMPLES,
    labels,
    **hyperparameters(name),
  )


def make_extras(name, *, sides=None, labels=ALL_LABELS):
  """(projector, memory) of two networks and a training set's labels."""
  extras = _init_extras(name, sides or make_sides(name), labels)
  return extras['projector'], extras['memory']


def call(name, student, teacher, projector, memory, labels=LABELS):
  return losses.compute(
    name,
    student,
    teacher,
    labels,
    projector=projector,
    memory=memory,
    index=np.arange(BATCH) * 3,
    key=jax.random.key(5),
    teacher_head=teacher_head(),
    **hyperparameters(name),
  )


@functools.cache
def _compiled(name):
  return jax.jit(
    jax.value_and_grad(
      functools.partial(call, name), argnums=(0, 1, 2), has_aux=True
    ),
  )


def run(name, student, teacher, projector, memory, labels=LABELS):
  """((loss, memory), gradients in student, teacher and projector)."""
  return _compiled(name)(student, teacher, projector, memory, labels)
