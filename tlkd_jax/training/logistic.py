"""Multinomial logistic regression on frozen features, by scikit-learn.

The strength of its L2 penalty is chosen by cross-validation over images: all
views of an image lie in one fold. `cross_fit` makes a head for each fold from
the others, whose strength too is chosen without that fold, so that what it
says of an image depends on no label of that image (Dao et al. 2021, "Knowledge
Distillation as Semiparametric Inference", arXiv 2104.09732).

Classes of unequal size are balanced as they are where networks learn from
labels, by the sizes among the images that a head is fitted to.
"""

import dataclasses
import warnings

import numpy as np
import scipy
import threadpoolctl

from tlkd_jax.settings import Data

# scikit-learn's C, of features with deviation 1 and images that count once.
STRENGTHS = tuple(10.0 ** (power / 2) for power in range(-8, 1))
# scikit-learn's tol: of heads that are kept, and of those that are compared.
EXACT, ROUGH = 1e-8, 1e-4
_MAX_ITERATIONS = {EXACT: 2000, ROUGH: 200}
_PLAIN = Data()


@dataclasses.dataclass(frozen=True)
class Head:
  """logits = features @ kernel + bias; float32 [D, K] and [K]."""

  kernel: np.ndarray
  bias: np.ndarray

  def logits(self, features: np.ndarray) -> np.ndarray:
    """[..., D] -> [..., K]."""
    return features @ self.kernel + self.bias


def make_folds(labels: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
  """A fold for each image, each class spread evenly; int32 [N].

  Raises:
    ValueError: a class with fewer than two images, which a fold would lack.
  """
  generator = np.random.default_rng(seed)
  folds = np.zeros(labels.size, np.int32)
  first = 0
  for label in np.unique(labels):
    rows = generator.permutation(np.flatnonzero(labels == label))
    if rows.size < 2:
      raise ValueError(
        f'class {label} has {rows.size} training image; folds need two of each'
      )
    folds[rows] = (first + np.arange(rows.size)) % num_folds
    # The next class goes on, so that folds are of one size.
    first += rows.size
  return folds


def fit(
  features: np.ndarray,
  labels: np.ndarray,
  num_classes: int,
  strength: float,
  tolerance: float = EXACT,
  data: Data = _PLAIN,
) -> Head:
  """The head with the least penalised loss.

  Args:
    features: [N, V, D], V views of each image, each with weight 1 / V.
    labels: int [N].
    num_classes: K.
    strength: C of scikit-learn: the sum of losses counts C times, the squared
      coefficients (of features scaled to deviation 1) a half; larger is freer.
    tolerance: EXACT, or ROUGH where a head is scored and not kept.
    data: how classes of unequal size are balanced.

  Returns:
    The head, of the features as given. A class without an image has no
    coefficients, and the probability of about one image among those there.
  """
  counted = _class_weights(labels, num_classes, data)
  given = features, labels, num_classes, (strength,)
  (head,) = _path(*given, counted, tolerance)
  if data.balance != 'logit_adjustment':
    return head
  # What the loss adds to logits, which an unpenalised bias takes up whole.
  number = np.bincount(labels, minlength=num_classes)
  log_prior = np.log(np.where(number, number, labels.size) / labels.size)
  bias = head.bias - (data.balance_tau * log_prior).astype(np.float32)
  return dataclasses.replace(head, bias=bias)


def choose(
  features: np.ndarray,
  labels: np.ndarray,
  folds: np.ndarray,
  num_classes: int,
  strengths: tuple[float, ...] = STRENGTHS,
  data: Data = _PLAIN,
) -> float:
  """The strength with the least cross-validated loss.

  Args:
    features: [N, V, D].
    labels: int [N].
    folds: int [N].
    num_classes: K.
    strengths: to choose from, ascending.
    data: as in `fit`; what logit adjustment adds is in this loss too, whose
      heads are therefore those without it.
  """
  losses = np.zeros(len(strengths))
  for fold in np.unique(folds):
    kept, out = folds != fold, folds == fold
    counted = _class_weights(labels[kept], num_classes, data)
    given = features[kept], labels[kept], num_classes, strengths
    tried = features[out], labels[out], counted
    losses += [_loss(head, *tried) for head in _path(*given, counted)]
  return strengths[int(np.argmin(losses))]


def cross_fit(
  features: np.ndarray,
  labels: np.ndarray,
  folds: np.ndarray,
  num_classes: int,
  strengths: tuple[float, ...] = STRENGTHS,
  data: Data = _PLAIN,
) -> tuple[list[Head], list[float]]:
  """A head and a strength for each fold, neither of which saw it.

  The strength of fold k comes from cross-validation over the other folds, of
  heads that saw neither k nor the fold that they are tried on: one for each
  pair of folds, which serves both.

  Args:
    features: [N, V, D].
    labels: int [N].
    folds: int [N] in 0..F-1, F of at least three.
    num_classes: K.
    strengths: to choose from, ascending.
    data: as in `fit` and `choose`.
  """
  num_folds = int(folds.max()) + 1
  losses = np.zeros((num_folds, len(strengths)))
  for one in range(num_folds):
    for other in range(one + 1, num_folds):
      kept = (folds != one) & (folds != other)
      counted = _class_weights(labels[kept], num_classes, data)
      given = features[kept], labels[kept], num_classes, strengths
      heads = _path(*given, counted)
      for without, tried in ((one, other), (other, one)):
        rows = folds == tried
        losses[without] += [
          _loss(head, features[rows], labels[rows], counted) for head in heads
        ]
  chosen = [strengths[int(best)] for best in losses.argmin(axis=1)]
  heads = []
  for fold, strength in enumerate(chosen):
    kept = folds != fold
    given = features[kept], labels[kept], num_classes, strength
    heads.append(fit(*given, data=data))
  return heads, chosen


def mean(heads: list[Head]) -> Head:
  """The head whose logits are the mean of theirs."""
  kernels = [head.kernel for head in heads]
  biases = [head.bias for head in heads]
  return Head(np.mean(kernels, axis=0), np.mean(biases, axis=0))


def _class_weights(
  labels: np.ndarray, num_classes: int, data: Data
) -> np.ndarray:
  """What an image of each class counts, on the mean 1; float64 [K].

  With 'sampling' as much as if each class there were drawn equally often.
  """
  if data.balance != 'sampling':
    return np.ones(num_classes)
  number = np.bincount(labels, minlength=num_classes)
  return labels.size / (np.count_nonzero(number) * np.maximum(number, 1))


def _loss(
  head: Head, features: np.ndarray, labels: np.ndarray, counted: np.ndarray
) -> float:
  """Sum over images, each as it counts, of the mean over views."""
  said = scipy.special.log_softmax(
    head.logits(features).astype(np.float64), axis=-1
  )
  picked = np.take_along_axis(said, labels[:, None, None], axis=-1)
  return -float((picked.mean(axis=1)[:, 0] * counted[labels]).sum())


def _path(
  features: np.ndarray,
  labels: np.ndarray,
  num_classes: int,
  strengths: tuple[float, ...],
  counted: np.ndarray,
  tolerance: float = ROUGH,
) -> list[Head]:
  """A head for each strength, each starting from the one before.

  `counted` is what an image of each class counts; [K].
  """
  # Here and not above: it takes half a second, and most commands need none.
  from sklearn.exceptions import ConvergenceWarning
  from sklearn.linear_model import LogisticRegression

  num_views = features.shape[1]
  rows = features.reshape(-1, features.shape[-1]).astype(np.float64)
  centre, scale = rows.mean(axis=0), rows.std(axis=0)
  # A feature that never changes says nothing.
  scale = np.where(scale > 1e-6 * (np.abs(centre) + 1e-6), scale, np.inf)
  rows = (rows - centre) / scale
  repeated = np.repeat(labels, num_views)
  weights = counted[repeated] / num_views
  model = LogisticRegression(
    warm_start=True, max_iter=_MAX_ITERATIONS[tolerance], tol=tolerance
  )
  heads = []
  # Products of so few rows take four times as long on two threads, which wait
  # for each other; and on one the head does not depend on their number.
  with (
    threadpoolctl.threadpool_limits(1, user_api='blas'),
    warnings.catch_warnings(),
  ):
    # The loosest strengths end early, which the validation judges.
    warnings.simplefilter('ignore', ConvergenceWarning)
    for strength in strengths:
      model.set_params(C=strength)
      model.fit(rows, repeated, sample_weight=weights)
      heads.append(_head(model, centre, scale, num_classes, labels.size))
  return heads


def _head(model, centre, scale, num_classes: int, num_images: int) -> Head:
  coefficients, biases = model.coef_, model.intercept_
  if len(model.classes_) == 2:
    coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
    biases = np.concatenate([-biases / 2, biases / 2])
  kernel = np.zeros((centre.size, num_classes))
  bias = np.full(num_classes, biases.mean() - np.log(num_images + 1))
  kernel[:, model.classes_] = (coefficients / scale).T
  bias[model.classes_] = biases - (coefficients / scale) @ centre
  return Head(kernel.astype(np.float32), bias.astype(np.float32))
