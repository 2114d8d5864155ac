"""A run without training, of a folder of images, as an export finds it."""

import dataclasses
import pathlib

import numpy as np
from PIL import Image

from tests import tiny
from tests.test_export import make_student, random_variables
from tlkd_jax.data import sources, transforms
from tlkd_jax.evaluation import evaluate, records
from tlkd_jax.export import preprocessing
from tlkd_jax.export.student import Student
from tlkd_jax.training import checkpoints, workdir

# They would be markup in Markdown, YAML, HTML and JSON.
CLASSES = ('- eel: #1', "c'a|t`", 'gnü & <b>', 'x"y', '{fox}')
SPLITS = {'train': 2, 'validation': 1, 'test': 3}


def write_images(root: pathlib.Path, classes=CLASSES, splits=SPLITS, seed=0):
  """Folders of noise of several sizes; returns the data set's name."""
  rng = np.random.default_rng(seed)
  for split, count in splits.items():
    for name in classes:
      folder = root / split / name
      folder.mkdir(parents=True)
      for number in range(count):
        shape = (20 + 7 * number, 31 - 4 * number, 3)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f'{number}.png')
  return f'folder:{root}'


def student_of(seed=0, classes=CLASSES) -> Student:
  """The tiny student, of these classes, bicubic at 16 px."""
  student = make_student('tiny')
  description = dataclasses.replace(
    student.description, class_names=classes, interpolation='bicubic'
  )
  params, state = random_variables(student.model, seed)
  return dataclasses.replace(
    student, params=params, model_state=state, description=description
  )


def write_run(
  folder: pathlib.Path, data: str, cache: pathlib.Path, arm='kd', seed=0
) -> Student:
  """Checkpoint, configuration, summary and predictions of a run."""
  student = student_of(seed)
  description = dataclasses.replace(student.description, arm=arm, dataset=data)
  student = dataclasses.replace(student, description=description)
  saved = checkpoints.Checkpoints(folder)
  saved.save_best(
    {'params': student.params, 'model_state': student.model_state}, description
  )
  saved.close()
  settings = tiny.make_config(
    arm, cache, dataset=data, data__crop=0.9, data__interpolation='bicubic'
  )
  workdir.write(folder, settings)
  write_predictions(folder, student, data, cache)
  splits = {
    split: {
      'images': 5 * count,
      'used': 5 * count,
      'smallest': [CLASSES[0], count],
      'largest': [CLASSES[1], count],
    }
    for split, count in SPLITS.items()
  }
  facts = {'classes': 5, 'first_classes': [], 'splits': splits}
  pair = ['test/eel/ada_lovelace.jpg', 'train/eel/1.jpg']
  facts['copies'] = [
    {'what': 'across', 'split': 'test', 'count': 2, 'example': pair}
  ]
  summary = {'num_train': 10, 'notes': ['a | note'], 'data': facts}
  summary |= {'device': '1 x cpu', 'seconds': 100.0}
  if arm == 'kd':
    summary['teacher'] = {'test': {'top1': 0.75}}
  records.write_json(folder / 'summary.json', summary)
  return student


def write_predictions(folder, student, data, cache) -> None:
  """Of the test images, as the package sees them."""
  source = sources.open_sources(data, cache_dir=cache).splits['test']
  images = [image for _, image in decoded(source)]
  squares = [preprocessing.square(student.description, i) for i in images]
  logits = student.logits_of(np.stack(squares))
  evaluate.save(
    folder / 'predictions' / 'test.npz',
    evaluate.Predictions(
      logits,
      np.zeros((len(logits), 4), np.float32),
      source.labels,
      source.indices,
    ),
  )


def decoded(source):
  """(row, uint8 [H, W, 3]) of a source."""
  for row in range(len(source.names)):
    yield row, np.asarray(transforms.decode_image(source.read(row)))
