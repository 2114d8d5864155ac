"""A made-up study of any size, for growth.py: cells as they lie on disk.

Ten arms, seed after seed; every record has what a real one has.
"""

import itertools
from typing import Any

import numpy as np

_SIZES = (10, 20, 50, 100, 200)
# Arm -> share that it gets right; all but two are students without a teacher.
_ARMS = {
  'teacher': 0.9,
  'tl': 0.5,
  'kd': 0.52,
  'tl_label_smoothing': 0.505,
  'tl_self_distillation': 0.51,
  'self_training': 0.515,
  'linear_probe': 0.45,
  'tl_long': 0.505,
  'tl_more_augmentation': 0.5,
  'kd_high_temperature': 0.53,
}
_TAUGHT = ('kd', 'kd_high_temperature')
_TESTED, _CLASSES, _EVALUATIONS = 1000, 10, 8
_MADE = {
  'commit': '0123456789ab',
  'cores': 1,
  'device': '1 x cpu',
  'versions': {'jax': '0', 'numpy': '0'},
}
# As models.serving.Figures; a network of its own would be traced.
_COST = {
  'image_size': 64,
  'num_classes': _CLASSES,
  'compute_dtype': 'float32',
  'parameters': 4_000_000,
  'macs': 400_000_000,
  'attention_macs': 0,
  'bytes': 16_000_000,
}


def rows(count: int, places: int = 10) -> list[dict[str, Any]]:
  """Rows of results.json, as results.collect makes them.

  Args:
    count: of cells, seed after seed.
    places: of every seed, a multiple of five: sizes of a data set.
  """
  data = [f'data{number}' for number in range(places // len(_SIZES))]
  every = [*itertools.product(data, _SIZES, _ARMS)]
  found = [
    _row(*every[number % len(every)], number // len(every))
    for number in range(count)
  ]
  found.sort(key=lambda r: (r['dataset'], r['size'], r['arm'], r['seed']))
  return found


def _row(dataset: str, size: int, arm: str, seed: int) -> dict[str, Any]:
  from tlkd_jax.answer.rows import Answers, pack
  from tlkd_jax.evaluation.metrics import METRICS, SCALED

  numbers = [int(dataset[4:]), size, [*_ARMS].index(arm), seed]
  rng = np.random.default_rng(numbers)
  share = _ARMS[arm] + 0.002 * size / 10 + 0.02 * rng.standard_normal()
  right = rng.random(_TESTED) < share
  top1 = float(right.mean())
  labels = np.arange(_TESTED) % _CLASSES
  said = np.where(right, labels, rng.integers(0, _CLASSES, _TESTED))
  confusion = np.zeros((_CLASSES, _CLASSES), int)
  np.add.at(confusion, (labels, said), 1)
  metrics = {
    name: float(top1 + 0.1 * rng.standard_normal())
    for metric in METRICS
    for name in (metric, metric + SCALED)
  }
  taught = arm in _TAUGHT
  agreement = {'teacher_agreement': 0.7} if taught else {}
  model = 'efficientnet_lite2' if arm == 'teacher' else 'efficientnet_lite0'
  logits = np.log(rng.dirichlet(np.full(_CLASSES, 0.3), _TESTED) + 1e-9)
  bins = _sums(logits, right)
  steps = range(1, _EVALUATIONS + 1)
  row: dict[str, Any] = {
    'dataset': dataset,
    'size': size,
    'arm': arm,
    'seed': seed,
    'trial': {},
    'label': arm.replace('_', ' '),
    'kind': 'teacher' if arm == 'teacher' else 'kd' if taught else 'tl',
    'changes': {'label_smoothing': 0.1},
    'teachers': ['teacher'] if taught else [],
    'model': model,
    'image_size': 64,
    'num_train': _CLASSES * size,
    'best_step': 20,
    'best_metric': 'top1',
    'validation': metrics | {'top1': top1},
    'test': metrics | {'top1': top1} | agreement,
    'temperature': 1.1,
    'hits': pack(Answers(dataset, right)),
    'reliability': {'before': bins, 'after': bins},
    'confusion': confusion.tolist(),
    'classes': [f'class {number}' for number in range(_CLASSES)],
    'curve': [[5 * n, 1.0 * n, top1 * (1 - 0.5**n)] for n in steps],
    'train_images': 320,
    'teacher_images': 320 * taught,
    'seconds': 10.0,
    'wall_seconds': 20.0,
    'made': _MADE,
    'prediction_cost': _COST | {'model': model},
    'chosen': True,
    'trials': 1,
    'folder': f'cells/{dataset}/{size}/{arm}/seed{seed}',
  }
  if taught:
    row['agreed'] = pack(Answers(dataset, rng.random(_TESTED) < 0.7))
  if arm in ('teacher', 'tl', 'kd'):
    row['degraded'] = _degraded(top1, rng)
  return row


def _sums(logits: np.ndarray, right: np.ndarray) -> dict[str, list[float]]:
  from tlkd_jax.evaluation import reliability

  top = logits.argmax(axis=1)
  labels = np.where(right, top, (top + 1) % _CLASSES)
  found = reliability.top_label_sums(logits, labels)
  return {name: values.tolist() for name, values in found.items()}


def _degraded(top1: float, rng: np.random.Generator) -> dict[str, Any]:
  from tlkd_jax.evaluation import degradation

  groups = ('clean', 'noise', 'blur', 'weather', 'digital', 'standard')
  lower = {name: top1 - 0.3 * rng.random() for name in groups}
  found: dict[str, Any] = {
    'count': _TESTED,
    'top1': lower | {'clean': top1},
    'errors': {
      name: float(1 - top1 + 0.3 * rng.random())
      for name in degradation.STANDARD
    },
    'nll_clean': 1.0,
    'ece_clean': 0.1,
  }
  for metric in ('top1', 'nll', 'ece'):
    found[f'{metric}_by_severity'] = [
      float(top1 - 0.05 * n + 0.01 * rng.random()) for n in range(5)
    ]
  return found
