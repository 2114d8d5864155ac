"""What a teacher's targets hold beside the label: is there anything to learn?

A teacher that was fitted to the very images that it teaches says little more
than their labels, whatever it knows of others. So its targets are measured on
training views and on validation images, at the temperature of the loss.
"""

from typing import Any

import numpy as np
import scipy

from tlkd_jax.evaluation import calibration, metrics, reliability

# Mean p(label) on training views from which targets are labels, and how much
# lower it is on validation where the teacher has merely seen the images.
SATURATED = 0.95
SEEN_BEFORE = 0.1


def describe(logits, labels, temperature: float) -> dict[str, float]:
  """How much targets say, and how right they are.

  Args:
    logits: [N, K] of the teacher.
    labels: int [N].
    temperature: of the softened probabilities p.

  Returns:
    `p_label`, the mean p of the label; `entropy` of p in nats, a mean;
    `effective_classes`, exp of the mean entropy, in [1, K]; `agreement`, the
    share of images whose largest p is the label's; `ece` and `nll` of p.
  """
  softened = np.asarray(logits, np.float64) / temperature
  logs = scipy.special.log_softmax(softened, axis=-1)
  picked = np.take_along_axis(logs, np.asarray(labels)[:, None], axis=-1)
  entropy = float(-(np.exp(logs) * logs).sum(axis=-1).mean())
  return {
    'p_label': float(np.exp(picked).mean()),
    'entropy': entropy,
    'effective_classes': float(np.exp(entropy)),
    'agreement': metrics.top1(softened, labels),
    'ece': reliability.ece(softened, labels),
    'nll': float(-picked.mean()),
  }


def scaled_nll(logits, labels) -> float:
  """NLL after temperature scaling: how much is known, however surely said.

  Args:
    logits: [N, K].
    labels: int [N]; the temperature is fitted to them too.
  """
  temperature = calibration.fit_temperature(logits, labels)
  return metrics.nll(np.asarray(logits, np.float64) / temperature, labels)


def warnings(
  training: dict[str, float],
  validation: dict[str, float],
  teacher_nll: float = 0.0,
  probe_nll: float | None = None,
) -> list[str]:
  """What should worry whoever learns from these targets, with the remedy.

  Args:
    training: `describe` of training views.
    validation: `describe` of validation images.
    teacher_nll: `scaled_nll` of the teacher on validation images.
    probe_nll: that of a probe of the student's own features; None without one.
  """
  found = []
  seen, unseen = training['p_label'], validation['p_label']
  if seen > SATURATED and seen - unseen >= SEEN_BEFORE:
    found.append(_saturated(seen, unseen))
  if probe_nll is not None and teacher_nll > probe_nll:
    found.append(
      'it knows less of these classes than logistic regression on the '
      f"student's own features (validation NLL {teacher_nll:.3f} and "
      f'{probe_nll:.3f}, each after temperature scaling), so that little is to '
      'be learned from it. A larger or better pretrained teacher.name, a '
      "larger teacher.image_size, teacher.fit='probed' or 'early', or more "
      'teacher.num_steps may know more'
    )
  return found


def _saturated(seen: float, unseen: float) -> str:
  return (
    f'its targets on training views are little more than the labels (p(label) '
    f'{seen:.3f}, on validation images {unseen:.3f}): it was fitted to these '
    "images. teacher.fit='crossfitted' gives each image the target of a "
    "teacher that never saw it, 'probed' one that fits less; or use a teacher "
    'of other images of these classes'
  )


def lines(said: dict[str, dict[str, Any]]) -> list[str]:
  """One line for each place where targets were measured."""
  return [
    f'{place}: p(label) {values["p_label"]:.3f}, '
    f'{values["effective_classes"]:.1f} classes in effect, agreement '
    f'{values["agreement"]:.3f}, NLL {values["nll"]:.3f}, ECE '
    f'{values["ece"]:.3f}'
    for place, values in said.items()
  ]
