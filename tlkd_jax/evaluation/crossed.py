"""How sure a mean over seeds and images is, where both were drawn.

Values y[s, i] of S seeds on the same N images are a mean, a part of the seed, a
part of the image, and what is left:

  y[s, i] = mean + a[s] + b[i] + e[s, i],
  var(mean of y) = var(a) / S + var(b) / N + var(e) / (S N).

That is the two-way model with random effects (Cornfield and Tukey 1956); its
variances come from the mean squares of seeds, images and the rest. More seeds
make the first and the last part smaller and never the second, and an interval
over seeds alone does not hold it. Resampling seeds and images at once (Owen
2007, the pigeonhole bootstrap) estimates the same sum and counts the last part
up to three times.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Parts:
  """Parts of the variance of a mean over seeds and images.

  Attributes:
    images: var(b) / N, at least 0.
    rest: var(e) / (S N): what the seeds' own spread holds at least.
    freedom: degrees of freedom of `images`, N - 1.
    unseen: what is added where hardly an image differs, from which no variance
      can be estimated; it has no degrees of freedom of its own.
  """

  images: float
  rest: float
  freedom: float
  unseen: float = 0.0


def parts(values: np.ndarray) -> Parts:
  """The parts of values [S, N]; with one seed `images` holds the rest too."""
  values = np.asarray(values, np.float64)
  seeds, count = values.shape
  over_seeds = values.mean(axis=0)
  between = float(np.var(over_seeds, ddof=1)) if count > 1 else 0.0
  if seeds < 2 or count < 2:
    return Parts(between / count, 0.0, max(count - 1, 1))
  rest = values - over_seeds
  rest = rest - rest.mean(axis=1, keepdims=True)
  noise = float((rest**2).sum()) / ((seeds - 1) * (count - 1))
  images = max(between - noise / seeds, 0.0) / count
  return Parts(images, noise / (seeds * count), count - 1)


def freedom(first, its: float, second, other: float):
  """Degrees of freedom of a sum of two variances (Satterthwaite 1946).

  Args:
    first: a variance, or an array of them.
    its: degrees of freedom of the first.
    second: a variance, or an array of the same shape.
    other: degrees of freedom of the second.

  Returns:
    float64 of that shape; `its` where both variances are 0.
  """
  first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
  below = first**2 / its + second**2 / other
  some = below > 0
  return np.where(some, (first + second) ** 2 / np.where(some, below, 1), its)


def changed(values: np.ndarray, step: float) -> tuple[Parts, Parts]:
  """Least and largest parts where two entries of one seed change by `step`.

  Bounds, not the exact extremes: those take a look at every pair of images.

  Args:
    values: [S, N], each at most 1 in size.
    step: size of a change, of either sign.
  """
  found, (seeds, count) = parts(values), np.shape(values)
  if seeds < 2 or count < 2:
    return found, found
  over_seeds, over_images = values.mean(axis=0), values.mean(axis=1)
  grand, both = abs(float(values.mean())), 2 * step

  def square(largest: float, share: float) -> float:
    """How much two squares of at most `largest` change by share of step."""
    return 2 * (2 * largest * step * share + (step * share) ** 2)

  def mean_square(size: float, of: int) -> float:
    """How much `of` x the square of a mean over `of` changes."""
    return 2 * size * both + both**2 / of

  columns = square(float(np.abs(over_seeds).max()), 1 / seeds)
  total = mean_square(grand, seeds * count)
  between = (columns + total / seeds) / (count - 1)
  noise = square(float(np.abs(values).max()), 1.0) + seeds * columns + total
  noise += mean_square(float(np.abs(over_images).max()), count)
  noise /= (seeds - 1) * (count - 1)
  images = (between + noise / seeds) / count
  rest = noise / (seeds * count)
  return (
    Parts(
      max(found.images - images, 0.0),
      max(found.rest - rest, 0.0),
      found.freedom,
    ),
    Parts(found.images + images, found.rest + rest, found.freedom),
  )
