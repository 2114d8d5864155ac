"""Rows of an invented study, as in results.json."""

import types

import numpy as np

from tlkd_jax.answer.rows import Answers

STUDY = types.SimpleNamespace(
  reference='tl', treatment='kd', metrics=('top1', 'nll'), arms={}
)
# Test images: two of them are less than any gain of the tests.
COUNT = 10_000
LABELS = {'tl': 'TL', 'kd': 'TL+KD', 'teacher': 'teacher', 'probe': 'probe'}


def row(arm, seed, top1, *, size=10, dataset='digits', nll=1.0, **more):
  kind = {'teacher': 'teacher', 'kd': 'kd'}.get(arm, 'tl')
  return {
    'dataset': dataset,
    'size': size,
    'arm': arm,
    'seed': seed,
    'trial': {},
    'label': LABELS.get(arm, arm),
    'kind': kind,
    'changes': {},
    'teachers': ['teacher'] if kind == 'kd' else [],
    'model': 'tiny',
    'num_train': 10 * size,
    'test': {'top1': top1, 'nll': nll, 'teacher_agreement': 0.75},
    'validation': {'top1': top1},
    'curve': [[5, 1.0, top1 / 2], [10, 2.0, top1]],
    'train_images': 320,
    'teacher_images': 320 if kind == 'kd' else 0,
    'seconds': 10.0,
    'chosen': True,
    'trials': 1,
    'folder': f'cells/{dataset}/{size}/{arm}/seed{seed}',
  } | more


def answering(rows, count=COUNT):
  """Rows with answers: `top1` of them right, other images for each run."""
  for entry in rows:
    rng = np.random.default_rng([entry['seed'], len(entry['arm'])])
    right = np.zeros(count, bool)
    right[: round(count * entry['test']['top1'])] = True
    name = f'{entry["dataset"]}{count}'
    entry['answers'] = Answers(name, rng.permutation(right))
  return rows


def paired(gains, **options):
  """TL at 0.5 + seed/100 and TL+KD `gains` above it, teacher at 0.9."""
  found = []
  for seed, gain in enumerate(gains):
    plain = 0.5 + seed / 100
    found += [
      row('tl', seed, plain, **options),
      row('kd', seed, plain + gain, **options),
      row('teacher', seed, 0.9, **options),
    ]
  return answering(found)
