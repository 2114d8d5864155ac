"""Classes of unequal size: what a run says of them, and does about them."""

import numpy as np

from tlkd_jax.data import Dataset
from tlkd_jax.evaluation import metrics
from tlkd_jax.settings import Settings
from tlkd_jax.settings.top import AUTOMATIC

# The largest class over the smallest, beyond which accuracy is that of a few
# classes.
LARGE_RATIO = 10.0
_PLAIN, _MACRO = 'top1', 'macro_f1'
_LISTED = 12


def counts(dataset: Dataset, split: str) -> np.ndarray:
  """int64[K]: labelled images of each class in a split."""
  labels = dataset.splits[split].labels
  return np.bincount(labels[labels >= 0], minlength=len(dataset.class_names))


def ratio(dataset: Dataset) -> float:
  """The largest class over the smallest, in train or in validation.

  The larger of the two: one is learned from, the other chosen on. A class that
  a split lacks does not count.
  """
  found = [1.0]
  for split in ('train', 'validation'):
    present = counts(dataset, split)
    present = present[present > 0]
    if present.size:
      found.append(float(present.max() / present.min()))
  return max(found)


def best_metric(settings: Settings, dataset: Dataset) -> str:
  """The metric of validation that chooses the best step.

  Raises:
    ValueError: the data's number of classes leaves it undefined.
  """
  if (
    settings.best_metric == 'top5'
    and len(dataset.class_names) < metrics.TOP5_CLASSES
  ):
    raise ValueError(
      f"best_metric is 'top5', and {dataset.name} has "
      f'{len(dataset.class_names)} classes; accepted: another metric, e.g. '
      f'{_PLAIN}'
    )
  if settings.best_metric != AUTOMATIC:
    return settings.best_metric
  return _MACRO if ratio(dataset) > LARGE_RATIO else _PLAIN


def adjustment(
  settings: Settings, dataset: Dataset | None
) -> tuple[float, ...] | None:
  """What the hard loss adds to logits of K classes: tau times the log prior.

  Args:
    settings: of the run.
    dataset: its training images give the prior.

  Returns:
    None where data.balance is not 'logit_adjustment'.
  """
  if dataset is None or settings.data.balance != 'logit_adjustment':
    return None
  number = counts(dataset, 'train').astype(np.float64)
  log_prior = np.log(number / number.sum())
  return tuple((settings.data.balance_tau * log_prior).tolist())


def lines(settings: Settings, dataset: Dataset) -> list[str]:
  """What a run says at its start of its classes' sizes, a sentence each."""
  train = counts(dataset, 'train')
  equal = train.max() == train.min()
  each = str(train[0]) if equal else _listed(dataset, train)
  found = [f'training images of each class: {each}']
  found += _about_metric(settings, dataset)
  if settings.data.balance == 'none':
    return found
  how = {
    'sampling': 'each class is drawn equally often',
    'logit_adjustment': (
      f'the hard loss adds {settings.data.balance_tau:g} log prior to logits'
    ),
  }[settings.data.balance]
  if equal:
    how += f'; it changes nothing, as each has {train[0]} images'
  return [*found, f"data.balance is '{settings.data.balance}': {how}"]


def _about_metric(settings: Settings, dataset: Dataset) -> list[str]:
  unequal, chosen = ratio(dataset), best_metric(settings, dataset)
  if unequal <= LARGE_RATIO:
    return []
  why = f'the largest class has {unequal:.3g} times the images of the smallest'
  if settings.best_metric == AUTOMATIC:
    return [f'best_metric is {chosen}, a mean over classes: {why}']
  return [f'best_metric is {chosen}, as it was set; {why}']


def _listed(dataset: Dataset, number: np.ndarray) -> str:
  """The sizes of all classes, or of the largest and smallest."""
  order = np.argsort(-number, kind='stable').tolist()
  shown = [f'{dataset.class_names[k]} {number[k]}' for k in order]
  if len(shown) > _LISTED:
    half = _LISTED // 2
    shown[half:-half] = [f'... ({len(shown) - 2 * half} more)']
  return ', '.join(shown)
