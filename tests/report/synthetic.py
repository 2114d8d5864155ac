"""Folders that look like finished runs, with answers made to order."""

import json

import numpy as np

from tlkd_jax import settings
from tlkd_jax.evaluation import evaluate, records

CLASSES = ('ant', 'bee', 'cat')
COUNT = 60


def write_run(
  folder,
  arm,
  seed=0,
  accuracy=0.6,
  per_class=10,
  teacher=None,
  data=None,
  classes=CLASSES,
  **changes,
):
  """A run whose share `accuracy` of the test images is right, exactly."""
  config = settings.config_of(arm, 'smoke')
  config.update_from_flattened_dict(
    {'seed': seed, 'num_train_per_class': per_class}
    | {key.replace('__', '.'): value for key, value in changes.items()}
  )
  if teacher is not None:
    config.teacher.checkpoint = str(teacher)
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(config.to_json())
  role = 'teacher' if arm == 'teacher' else 'student'
  rng = np.random.default_rng([seed, len(arm)])
  summary = {role: {}, 'num_train': 3 * per_class, 'seconds': 12.5}
  if data is not None:
    summary['data'] = data
  for split in ('validation', 'test'):
    labels = np.arange(COUNT) % len(classes)
    answers = labels.copy()
    wrong = rng.permutation(COUNT)[: round(COUNT * (1 - accuracy))]
    answers[wrong] = (labels[wrong] + 1) % len(classes)
    logits = rng.normal(size=(COUNT, len(classes))).astype(np.float32)
    logits[np.arange(COUNT), answers] = 4.0
    predictions = evaluate.Predictions(
      logits,
      rng.normal(size=(COUNT, 5)).astype(np.float32),
      labels.astype(np.int32),
      np.arange(COUNT),
    )
    evaluate.save(folder / 'predictions' / f'{split}.npz', predictions)
    summary[role][split] = evaluate.summarize(predictions)
  records.write_json(folder / 'summary.json', summary)
  if classes is not CLASSES:
    record = {'test': {'per_class': {'class': list(classes)}}}
    records.write_json(folder / 'evaluation' / 'clean.json', record)
  rows = [
    {'step': 3, 'split': 'train', 'loss': 1.0, 'seconds': 4.0},
    {'step': 3, 'split': 'validation', 'top1': 0.5, 'nll': 1.1},
  ]
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(text)
  return folder


def write_study(folder, gains, sizes=(10,), **changes):
  """TL and TL+KD runs of a seed for each entry of `gains`."""
  for size in sizes:
    for seed, gain in enumerate(gains):
      place = folder / f'{size}' / f'seed{seed}'
      base_accuracy = 0.5 + 0.1 * (size > 10)
      options = {'seed': seed, 'per_class': size} | changes
      write_run(place / 'tl', 'tl', accuracy=base_accuracy, **options)
      write_run(place / 'kd', 'kd', accuracy=base_accuracy + gain, **options)
  return folder
