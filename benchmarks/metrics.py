"""How long do all metrics of two models take, with their bootstrap intervals?

  python -m benchmarks.metrics [--examples 10000 --classes 100]

Times the paired bootstrap of every metric (two models, 1,000 resamples) and, in
turn with it, what it replaces: METRICS on copied examples, for a few resamples
and scaled up. Both give the same numbers, whose largest relative difference is
told. Prints one JSON line, medians of the rounds with minimum and maximum.
"""

import argparse
import json
import time

import numpy as np

from benchmarks import machine
from tlkd_jax.evaluation import bootstrap, comparison, metrics


def synthetic_logits(rng, labels: np.ndarray, num_classes: int, signal: float):
  """Gaussian float32 logits [N, K] with `signal` added at the label."""
  logits = rng.normal(size=(len(labels), num_classes))
  logits[np.arange(len(labels)), labels] += signal
  return logits.astype(np.float32)


def time_by_copies(logits, labels, counts: np.ndarray) -> tuple[float, float]:
  """Seconds per resample by METRICS, and the largest relative difference."""
  start = time.perf_counter()
  direct = []
  for row in counts:
    drawn = np.repeat(np.arange(len(labels)), row)
    direct.append(metrics.compute_metrics(logits[drawn], labels[drawn]))
  seconds = (time.perf_counter() - start) / len(counts)
  fast = bootstrap.bootstrap_metrics(logits, labels, counts)
  worst = 0.0
  for r, values in enumerate(direct):
    for name, value in values.items():
      if not np.isnan(value):
        gap = abs(fast[name][r] - value) / max(abs(value), 1e-6)
        worst = max(worst, gap)
  return seconds, worst


def main():
  """Runs both sides and prints the JSON line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--examples', type=int, default=10_000)
  parser.add_argument('--classes', type=int, default=100)
  parser.add_argument('--replicates', type=int, default=1000)
  parser.add_argument('--copies', type=int, default=3)
  parser.add_argument('--rounds', type=int, default=3)
  args = parser.parse_args()
  rng = np.random.default_rng(0)
  labels = rng.integers(0, args.classes, args.examples)
  x = synthetic_logits(rng, labels, args.classes, 3.0)
  y = synthetic_logits(rng, labels, args.classes, 2.5)

  counts = bootstrap.resample_counts(args.examples, args.copies, 0)
  times = {'one_model_once': [], 'bootstrap': [], 'by_copying': []}
  for _ in range(args.rounds):
    start = time.perf_counter()
    metrics.compute_metrics(x, labels)
    times['one_model_once'].append(time.perf_counter() - start)
    start = time.perf_counter()
    comparison.paired_bootstrap(
      x, y, labels, num_replicates=args.replicates, seed=0
    )
    times['bootstrap'].append(time.perf_counter() - start)
    per_copy, worst = time_by_copies(x, labels, counts)
    times['by_copying'].append(2 * args.replicates * per_copy)

  row = {
    'benchmark': 'metrics',
    'examples': args.examples,
    'classes': args.classes,
    'metrics': len(metrics.METRICS),
    'replicates': args.replicates,
    'largest_relative_difference': float(f'{worst:.1e}'),
  }
  for name, values in times.items():
    row |= machine.summary(name, values, 'seconds', 2)
  ratio = row['by_copying_seconds'] / row['bootstrap_seconds']
  row['times_as_fast'] = round(ratio, 1)
  print(json.dumps(row | machine.versions()))


if __name__ == '__main__':
  main()
