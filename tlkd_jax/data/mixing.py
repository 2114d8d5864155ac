"""Mixup and CutMix: views that combine two examples of a batch.

They depend on who else is in the batch, so unlike `augment.py` they are keyed
by the step, and stored teacher targets do not apply to them.
"""

import jax
import jax.numpy as jnp


def mix(
  images: jax.Array,
  targets: jax.Array,
  key: jax.Array,
  *,
  mixup_alpha: float = 0.0,
  cutmix_alpha: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Applies mixup, CutMix, or per batch one of them with equal chance.

  Args:
    images: float[B, H, W, C].
    targets: float[B, K], rows that sum to 1.
    key: of the step.
    mixup_alpha: 0 for no mixup.
    cutmix_alpha: 0 for no CutMix.

  Returns:
    Mixed images and targets, of the same shapes.
  """
  choice_key, key = jax.random.split(key)
  if mixup_alpha > 0 and cutmix_alpha > 0:
    return jax.lax.cond(
      jax.random.bernoulli(choice_key),
      lambda: mixup(images, targets, key, mixup_alpha),
      lambda: cutmix(images, targets, key, cutmix_alpha),
    )
  if mixup_alpha > 0:
    return mixup(images, targets, key, mixup_alpha)
  if cutmix_alpha > 0:
    return cutmix(images, targets, key, cutmix_alpha)
  return images, targets


def mixup(
  images: jax.Array, targets: jax.Array, key: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
  """lam * x_i + (1 - lam) * x_j with one lam ~ Beta(alpha, alpha) per batch.

  Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018, equation 2.
  Arguments and results as in `mix`.
  """
  share_key, order_key = jax.random.split(key)
  share = jax.random.beta(share_key, alpha, alpha)
  order = jax.random.permutation(order_key, images.shape[0])
  return (
    share * images + (1 - share) * images[order],
    share * targets + (1 - share) * targets[order],
  )


def cutmix(
  images: jax.Array, targets: jax.Array, key: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
  """Pastes one box of another example; targets by the box's true area.

  Yun et al., CutMix, 2019, equations 1 and 2: box sides are sqrt(1 - lam) of
  the image's, its centre is uniform and it is clipped at the border.
  Arguments and results as in `mix`.
  """
  share_key, order_key, place_key = jax.random.split(key, 3)
  height, width = images.shape[1:3]
  share = jax.random.beta(share_key, alpha, alpha)
  order = jax.random.permutation(order_key, images.shape[0])
  half = jnp.sqrt(1 - share) / 2
  centre = jax.random.uniform(place_key, (2,))
  rows = (jnp.arange(height) + 0.5) / height
  columns = (jnp.arange(width) + 0.5) / width
  inside = (jnp.abs(rows - centre[0]) < half)[:, None] & (
    jnp.abs(columns - centre[1]) < half
  )[None, :]
  kept = 1 - inside.mean()
  return (
    jnp.where(inside[None, :, :, None], images[order], images),
    kept * targets + (1 - kept) * targets[order],
  )
