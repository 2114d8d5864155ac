"""What `--mode=evaluate --suite=NAME` does: fills RUN/evaluation.

Every suite is a function Subject -> text to print. To add one: a function and
a line in SUITES.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from tlkd_jax import data
from tlkd_jax.data import Split
from tlkd_jax.evaluation import (
  calibration as calibrations,
)
from tlkd_jax.evaluation import (
  degradation,
  evaluate,
  fidelity,
  metrics,
  ood,
  qualitative,
  records,
  reliability,
)
from tlkd_jax.evaluation.subject import Subject, take
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import as_user_errors

SPLITS = ('validation', 'test')
PHOTOGRAPHS = 'sample_photographs'
_NUM_CROPS = 500


def clean(subject: Subject) -> str:
  """All METRICS and FIDELITY on validation and test: clean.json.

  Other data than the run's own have the test alone, and no teacher's answers.
  """
  summary: dict[str, Any] = {}
  found: dict[str, evaluate.Predictions] = {}
  for split in (s for s in SPLITS if s in subject.dataset.splits):
    predictions = subject.predict(subject.dataset.splits[split])
    found[split] = predictions
    teacher = _teacher_predictions(subject.predictions, split, predictions)
    described = describe(predictions, teacher, subject.dataset.class_names)
    summary[split] = {'step': subject.step} | described
    if sharding.is_lead():
      path = subject.predictions / f'{split}.npz'
      evaluate.save(path, predictions, subject.step)
    if teacher is not None:
      found[f'teacher_{split}'] = teacher
  if sharding.is_lead():
    evaluate.save_confusions(subject.predictions, found)
    records.write_json(subject.folder / 'clean.json', summary)
  test = summary['test']
  return f'{subject.model}: top-1 {test["top1"]:.3f}, NLL {test["nll"]:.3f}'


def describe(
  predictions: evaluate.Predictions,
  teacher: evaluate.Predictions | None,
  class_names: list[str],
) -> dict[str, Any]:
  """The summary of a split with every metric, a row per class, fidelity."""
  logits, labels = predictions.logits, predictions.labels
  summary = evaluate.summarize(predictions, teacher)
  summary |= metrics.compute_metrics(logits, labels)
  table = metrics.per_class_table(logits, labels)
  summary['per_class'] = {'class': class_names} | table
  if teacher is not None:
    summary['fidelity'] = fidelity.compute_fidelity(
      logits, teacher.logits, labels
    )
  return summary


def calibration(subject: Subject) -> str:
  """Temperature fitted on validation, bins before and after."""
  predictions = {split: _stored(subject, split) for split in SPLITS}
  validation, test = predictions['validation'], predictions['test']
  result = calibrations.temperature_scaling(
    validation.logits, validation.labels, test.logits, test.labels
  )
  scaled = test.logits.astype(np.float64) / result['temperature']
  result |= {
    'step': subject.step,
    'fitted_on': 'validation',
    'validation_count': len(validation.labels),
    'measured_on': 'test',
    'test_count': len(test.labels),
    'bins_before': reliability.reliability_diagram(test.logits, test.labels),
    'bins_after': reliability.reliability_diagram(scaled, test.labels),
    'ece_if_calibrated': calibrations.calibrated_ece_level(test.logits, 0),
    'ece_if_calibrated_after': calibrations.calibrated_ece_level(scaled, 0),
  }
  if sharding.is_lead():
    records.write_json(subject.folder / 'calibration.json', result)
  before, after = result['before'], result['after']
  return (
    f'{subject.model}: temperature {result["temperature"]:.3f}; ECE '
    f'{before["ece"]:.3f} -> {after["ece"]:.3f}, NLL {before["nll"]:.3f} -> '
    f'{after["nll"]:.3f}'
  )


def out_of_distribution(subject: Subject) -> str:
  """Scores that tell the test images from those of another data set."""
  inside = subject.sample()
  with as_user_errors():
    name, outside = _other_images(subject)
  predictions = [subject.predict(split) for split in (inside, outside)]
  result = {
    'step': subject.step,
    'in': subject.dataset.name,
    'out': name,
    'in_count': len(inside),
    'out_count': len(outside),
    'positive': 'in-distribution (aupr_out: out-of-distribution)',
    'scores': ood.ood_metrics(*(p.logits for p in predictions)),
  }
  if sharding.is_lead():
    records.write_json(subject.folder / 'ood.json', result)
    arrays = {
      f'{place}_{field}': getattr(found, field)
      for place, found in zip(('in', 'out'), predictions, strict=True)
      for field in ('logits', 'indices')
    }
    records.write_arrays(subject.folder / 'ood.npz', arrays)
  shown = ', '.join(
    f'{score} {values["auroc"]:.3f}'
    for score, values in result['scores'].items()
  )
  return f'{subject.model}: AUROC against {name}: {shown}'


def _other_images(subject: Subject) -> tuple[str, Split]:
  """Name of other data, and their test images as the run's network looks."""
  own, size = subject.dataset.name, subject.dataset.image_size
  name = subject.ood_dataset or ('digits' if own != 'digits' else PHOTOGRAPHS)
  if data.located(name) == data.located(own):
    raise ValueError(
      f"--ood_dataset {name} is the run's own data set; name another"
    )
  if name == PHOTOGRAPHS:
    return name, photographs(size, subject.max_images or _NUM_CROPS)
  look, said = subject.network.look, subject.data_settings()
  labelling = None
  # Names of columns mean nothing in data of another kind.
  if name.partition(':')[0] == own.partition(':')[0]:
    keys = (field.name for field in dataclasses.fields(data.Labelling))
    labelling = data.Labelling(**{k: said[k] for k in keys if k in said})
  other = data.load_splits(
    name,
    image_size=size,
    num_train_per_class=1,
    # Data that are cut otherwise are told apart by that alone.
    crop_fraction=look.crop if look else None,
    interpolation=look.interpolation if look else 'bicubic',
    on_bad_image=said.get('on_bad_image', 'error'),
    data_dir=said.get('data_dir'),
    cache_dir=said.get('cache_dir'),
    labelling=labelling,
  )
  return name, take(other.splits['test'], subject.max_images)


def photographs(size: int, count: int) -> Split:
  """Random square crops of scikit-learn's two sample photographs.

  The stand-in for another data set where the run's own is digits: it needs no
  network. Sides of 1/3 to 1 of the short side, resized to `size`.
  """
  from sklearn.datasets import load_sample_images

  pictures = load_sample_images().images
  rng = np.random.default_rng(0)
  images = np.empty((count, size, size, 3), np.uint8)
  for i in range(count):
    picture = pictures[i % len(pictures)]
    short = min(picture.shape[:2])
    side = int(rng.integers(short // 3, short + 1))
    top = int(rng.integers(picture.shape[0] - side + 1))
    left = int(rng.integers(picture.shape[1] - side + 1))
    crop = picture[top : top + side, left : left + side]
    resized = Image.fromarray(crop).resize(
      (size, size), Image.Resampling.BICUBIC
    )
    images[i] = np.asarray(resized)
  numbers = np.arange(count)
  return Split(
    images,
    np.zeros(count, np.int32),
    numbers.astype(np.int64),
    [f'crop-{i}' for i in numbers],
  )


def _stored(subject: Subject, split: str) -> evaluate.Predictions:
  """Predictions on a split, made first where none are of the run's weights."""
  path, why = subject.predictions / f'{split}.npz', 'is missing'
  if path.exists():
    found, step = evaluate.load_with_step(path)
    if step is None:
      # A run writes them at its end, of its best step.
      finished = (subject.workdir / 'summary.json').exists()
      step = subject.step if finished else None
    if step == subject.step:
      return found
    why = f'is not of step {subject.step}'
  logging.info('%s %s; the clean suite runs first', path, why)
  clean(subject)
  return evaluate.load(path)


def _teacher_predictions(
  folder: pathlib.Path, split: str, student: evaluate.Predictions
) -> evaluate.Predictions | None:
  """The teacher's stored answers, where they are to the same images."""
  path = folder / f'teacher_{split}.npz'
  if not path.exists():
    return None
  teacher = evaluate.load(path)
  same = np.array_equal(teacher.indices, student.indices)
  return teacher if same else None


SUITES = {
  'clean': clean,
  'calibration': calibration,
  'corruptions': degradation.run,
  'ood': out_of_distribution,
  'qualitative': qualitative.run,
}
