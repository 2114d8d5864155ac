"""Losses on labels: cross-entropy, label smoothing, soft labels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax.losses

from tlkd_jax.losses.numerics import LOGIT_LIMIT, as_float32


def cross_entropy(
  logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
  """Mean cross-entropy with targets (1 - e) * onehot + e / K.

  Label smoothing: Szegedy et al., CVPR 2016, arXiv:1512.00567, section 7.

  Args:
    logits: [B, K], any floating precision; computed in float32.
    labels: [B] integer class indices.
    label_smoothing: e, in [0, 1).

  Returns:
    Scalar float32, nats.
  """
  logits = as_float32(logits, LOGIT_LIMIT)
  onehot = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
  targets = optax.losses.smooth_labels(onehot, label_smoothing)
  return jnp.mean(optax.losses.softmax_cross_entropy(logits, targets))


def soft_cross_entropy(
  logits: jax.Array, probabilities: jax.Array
) -> jax.Array:
  """Mean cross-entropy against soft labels, as mixup and cutmix give.

  Args:
    logits: [B, K], any floating precision; computed in float32.
    probabilities: [B, K], rows sum to one, or to less where only a share of
      the image has a label (an unlabelled image is a row of zeros).

  Returns:
    Scalar float32, nats: the sum over the batch divided by the sum of the
    rows; 0 without any label.
  """
  logits = as_float32(logits, LOGIT_LIMIT)
  targets = jnp.asarray(probabilities, jnp.float32)
  total = jnp.sum(optax.losses.softmax_cross_entropy(logits, targets))
  mass = jnp.sum(targets)
  return total / jnp.where(mass > 0, mass, 1.0)


def adjusted(
  logits: jax.Array, offsets: jax.Array | Sequence[float]
) -> jax.Array:
  """Logits as the loss sees them where classes are of unequal size.

  With offsets tau log pi, pi the share of each class in the training images,
  the cross-entropy of the sum is the logit adjusted one of Menon et al., ICLR
  2021, arXiv:2007.07314. The model's own logits are then those of balanced
  classes, so that nothing is added when it is used.

  Args:
    logits: [B, K], any floating precision.
    offsets: [K].

  Returns:
    [B, K] float32.
  """
  offsets = jnp.asarray(offsets, jnp.float32)[None, :]
  return as_float32(logits, LOGIT_LIMIT) + offsets


def soft_labels(
  labels: jax.Array, num_classes: int, label_smoothing: float = 0.0
) -> jax.Array:
  """(1 - e) * onehot + e / K, and zeros where there is no label.

  Args:
    labels: [B] integer class indices, -1 for unlabelled.
    num_classes: K.
    label_smoothing: e, in [0, 1).

  Returns:
    [B, K] float32.
  """
  onehot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
  smooth = optax.losses.smooth_labels(onehot, label_smoothing)
  return jnp.where((labels >= 0)[:, None], smooth, 0.0)


def accuracy(logits: jax.Array, soft_labels: jax.Array) -> jax.Array:
  """Share of the labelled images whose largest label is predicted."""
  labelled = jnp.sum(soft_labels, -1) > 0
  right = jnp.argmax(logits, -1) == jnp.argmax(soft_labels, -1)
  return jnp.sum(right & labelled) / jnp.maximum(jnp.sum(labelled), 1)
