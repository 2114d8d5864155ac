"""Temperature scaling, and how small an ECE can be expected to get.

Calibration errors and reliability diagrams are in `reliability`.
"""

import numpy as np
import scipy

from tlkd_jax.evaluation import metrics, predictions, reliability

# Searched in log space. The NLL of a model that ranks no better than chance
# falls for ever as T grows, so the optimum must be bounded.
MIN_TEMPERATURE = 0.02
MAX_TEMPERATURE = 50.0

# What a temperature can change (it never changes the predicted class).
SCALED_METRICS = (
  'nll',
  'brier',
  'ece',
  'ece_equal_mass',
  'ece_classwise',
  'mce',
  'rms_calibration_error',
  'aurc',
  'mean_entropy',
  'mean_confidence',
  'overconfidence',
)


def fit_temperature(logits, labels) -> float:
  """Temperature T that minimises the NLL of softmax(logits / T).

  Guo et al. 2017, "On Calibration of Modern Neural Networks". The NLL is
  convex in 1 / T, so T is the root of its slope, found by bisection (Brent)
  in log T over [MIN_TEMPERATURE, MAX_TEMPERATURE]; a minimum beyond is cut
  off there. Fit on validation data, never on the data it is judged on.

  Args:
    logits: [N, K].
    labels: int [N].

  Returns:
    T; 1.0 where the NLL does not depend on T (all rows constant).
  """
  logits, labels = predictions.check_split(logits, labels)
  own = np.take_along_axis(logits, labels[:, None], axis=1)
  margins = logits - own

  def slope(log_temperature: float) -> float:
    """Derivative of the NLL by 1 / T: E_p[z] - z_label."""
    probs = predictions.softmax(logits / np.exp(log_temperature))
    return float((probs * margins).sum(axis=1).mean())

  if not margins.any():
    return 1.0
  low, high = np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)
  if slope(low) <= 0:
    return MIN_TEMPERATURE
  if slope(high) >= 0:
    return MAX_TEMPERATURE
  return float(np.exp(scipy.optimize.brentq(slope, low, high, xtol=1e-12)))


def is_at_bound(temperature: float) -> bool:
  """Whether the best temperature may lie outside of the searched range."""
  return temperature in (MIN_TEMPERATURE, MAX_TEMPERATURE)


def temperature_scaling(val_logits, val_labels, logits, labels) -> dict:
  """Fits T on validation and measures another split before and after.

  Args:
    val_logits: [M, K] logits of the validation split.
    val_labels: int [M].
    logits: [N, K] logits of the split to judge.
    labels: int [N].

  Returns:
    `temperature`, `at_bound` (the optimum lies outside of the searched
    range), and the dicts `before` and `after` of SCALED_METRICS.
  """
  temperature = fit_temperature(val_logits, val_labels)
  logits, labels = predictions.check_split(logits, labels)

  def measured(scaled: np.ndarray) -> dict[str, float]:
    return {n: metrics.METRICS[n](scaled, labels) for n in SCALED_METRICS}

  return {
    'temperature': temperature,
    'at_bound': is_at_bound(temperature),
    'before': measured(logits),
    'after': measured(logits / temperature),
  }


def scaled_metrics(
  val_logits, val_labels, logits, labels, names=SCALED_METRICS
) -> dict[str, float]:
  """Metrics of a split after temperature scaling, 'NAME_scaled' -> value.

  Arguments as of `temperature_scaling`; `names` are of SCALED_METRICS. NaN
  where the best temperature lies beyond those that are searched, as where all
  of validation is right: what a bound makes of the NLL is the bound's.
  """
  temperature = fit_temperature(val_logits, val_labels)
  if is_at_bound(temperature):
    return {name + metrics.SCALED: float('nan') for name in names}
  logits, labels = predictions.check_split(logits, labels)
  scaled = logits / temperature
  return {
    name + metrics.SCALED: metrics.METRICS[name](scaled, labels)
    for name in names
  }


def calibrated_ece_level(
  logits,
  seed: int,
  num_simulations: int = 1000,
  num_bins: int = reliability.NUM_BINS,
) -> dict[str, float]:
  """The ECE that a perfectly calibrated model with these outputs would get.

  The ECE of a finite split is positive even then. Outcomes are drawn from
  the predicted probabilities themselves (consistency resampling, Bröcker and
  Smith 2007): the top prediction is right with probability = its confidence.

  Args:
    logits: [N, K].
    seed: of the draws; the same seed gives the same result.
    num_simulations: splits drawn.
    num_bins: equal-width bins, as in `reliability.ece`.

  Returns:
    `mean` and `quantile_95` of the simulated ECE. An observed ECE above the
    latter is evidence of miscalibration.
  """
  scores = predictions.confidence(predictions.check_logits(logits))
  bins = reliability.equal_width_bins(scores, num_bins)
  in_bin = np.eye(num_bins)[bins]
  expected = scores @ in_bin
  rng = np.random.default_rng(seed)
  levels = np.empty(num_simulations)
  for i in range(num_simulations):
    hits = (rng.random(len(scores)) < scores).astype(np.float64)
    levels[i] = np.abs(hits @ in_bin - expected).sum() / len(scores)
  return {
    'mean': float(levels.mean()),
    'quantile_95': float(np.quantile(levels, 0.95)),
  }
