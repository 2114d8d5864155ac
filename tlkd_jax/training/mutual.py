"""Mutual learning: the network of role 'teacher' learns beside the student.

Zhang et al. 2018, "Deep Mutual Learning", arXiv 1706.00384. Two networks see
the same batch, and each has for its teacher what the other says of it at that
step. The other one, the peer, is a student in all respects: its weights,
projectors and statistics are in the TrainState, its optimizer is its own.
"""

from typing import Any

import jax
import numpy as np

from tlkd_jax import data
from tlkd_jax.models.network import Loaded, Network
from tlkd_jax.training import build
from tlkd_jax.training.objective import Objective

# Sets what is drawn for the peer's start apart from the student's.
_OTHER_SEED = 2**30


def check(config: Any) -> None:
  """Checks what config.distillation.mutual is combined with.

  Raises:
    ValueError: something that needs a teacher which stays as it is.
  """
  section = config.distillation
  if not section.mutual:
    return
  refused = {
    'distillation.more_teachers': (tuple(section.more_teachers), ()),
    'distillation.assistants': (tuple(section.assistants), ()),
    'distillation.generations': (section.generations, 1),
    'targets.mode': (config.targets.mode, 'online'),
    'teacher.num_steps': (config.teacher.num_steps, 0),
  }
  for name, (value, accepted) in refused.items():
    if value != accepted:
      raise ValueError(
        f'{name} is {value!r}, and with distillation.mutual the teacher learns '
        f'beside the student, step by step; accepted: {accepted!r}'
      )
  if section.hard_weight <= 0:
    raise ValueError(
      f'distillation.hard_weight is {section.hard_weight}, and with '
      'distillation.mutual neither network would learn from labels; it must be '
      'above 0'
    )


def load_peer(config: Any, student: Loaded, class_names: list[str]) -> Loaded:
  """The network of config.teacher, to learn beside the student.

  It starts as a student does: from teacher.checkpoint, teacher.weights or from
  scratch, with new layers of another seed than the student's.

  Args:
    config: the run's configuration.
    student: as it starts.
    class_names: of the data.

  Raises:
    ValueError: as build.load_model; or both start as one network.
  """
  own = config.copy_and_resolve_references()
  own.seed = config.seed ^ _OTHER_SEED
  peer = build.load_model(own, 'teacher', class_names)
  if _alike(student, peer):
    raise ValueError(
      'distillation.mutual: student and teacher start as one network, the same '
      'weights at the same image size, so that neither has anything to tell '
      'the other; choose another teacher.name or teacher.image_size, or '
      "teacher.head_init='small_random'"
    )
  return peer


def peer_extras(
  objective: Objective,
  peer: Loaded,
  student: Network,
  dataset: data.Dataset,
  seed: int,
) -> dict[str, Any]:
  """A peer as it starts, and what its losses need, as parts of the TrainState.

  Args:
    objective: the loss of both networks.
    peer: from `load_peer`.
    student: its teacher.
    dataset: of the run.
    seed: of the run.

  Returns:
    {'peer': for TrainState.params, 'peer_state': for TrainState.peer}.
  """
  extras = build.distillation_extras(
    objective, peer.network, (student,), dataset, seed ^ _OTHER_SEED
  )
  return {
    'peer': {'student': peer.params, 'projector': extras['projector']},
    'peer_state': {
      'model_state': peer.model_state,
      'memory': extras['memory'],
    },
  }


def _alike(student: Loaded, peer: Loaded) -> bool:
  views = student.network, peer.network
  if len({(view.model.name, view.image_size) for view in views}) > 1:
    return False
  same = jax.tree.map(np.array_equal, student.params, peer.params)
  return all(jax.tree.leaves(same))
