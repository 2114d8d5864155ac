"""A finished run's model used without training: evaluate, predict."""

import csv
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from jax.sharding import Mesh

from tlkd_jax import build, checkpoints, sharding, train_step
from tlkd_jax.data import pipeline, transforms
from tlkd_jax.errors import as_user_errors
from tlkd_jax.evaluation import evaluate
from tlkd_jax.evaluation.predictions import softmax
from tlkd_jax.report import tables

_SUFFIXES = frozenset(
  ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm')
)


def evaluate_run(workdir: str, mesh: Mesh) -> str:
  """Restores a run's best model and evaluates it on its data set again.

  Writes WORKDIR/predictions/{validation,test}.npz and
  WORKDIR/evaluation/clean.json, and returns the table to print.

  Raises:
    UserError: no run there, or its checkpoint or data cannot be read.
  """
  with as_user_errors():
    description = checkpoints.read_description(workdir)
    loaded = build.restore_model(workdir, description)
    config = ml_collections.ConfigDict(build.read_config(pathlib.Path(workdir)))
    dataset = build.load_dataset(config)
    build.check_classes(workdir, description, dataset.class_names)
    sharding.check_batch_size(config.batch_size, mesh)
  eval_step = train_step.make_eval_step(loaded.view, mesh)
  variables = sharding.replicate((loaded.params, loaded.model_state), mesh)
  summary: dict[str, Any] = {}
  for split in ('validation', 'test'):
    batches = pipeline.eval_batches(
      dataset.splits[split],
      config.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    predictions = evaluate.predict(eval_step, variables, batches, mesh)
    summary[split] = evaluate.summarize(predictions)
    if sharding.is_lead():
      folder = pathlib.Path(workdir) / 'predictions'
      evaluate.save(folder / f'{split}.npz', predictions)
  if sharding.is_lead():
    path = pathlib.Path(workdir) / 'evaluation' / 'clean.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(summary, indent=1))
  return tables.closing_table([(description['model'], summary)])


def predict_images(
  workdir: str, source: str, output: str | None, mesh: Mesh
) -> None:
  """Writes the class and the probabilities of each image of a file or folder.

  Args:
    workdir: a finished run.
    source: an image file, or a folder that is searched for images.
    output: a .csv or .jsonl file; None prints CSV.
    mesh: devices.

  Raises:
    UserError: no run there, no images, or an unknown output format.
  """
  with as_user_errors():
    files = _image_files(pathlib.Path(source))
    if output:
      _check_output(pathlib.Path(output))
    description = checkpoints.read_description(workdir)
    loaded = build.restore_model(workdir, description)
  eval_step = train_step.make_eval_step(loaded.view, mesh)
  variables = sharding.replicate((loaded.params, loaded.model_state), mesh)
  names = description['class_names']
  rows = []
  for paths, images in _decoded(files, description, 8 * mesh.size):
    batch = sharding.shard_batch({'image': images}, mesh)
    outputs = jax.device_get(eval_step(variables, batch['image']))
    probabilities = softmax(outputs['logits'][: len(paths)])
    rows += [
      {'file': str(path), 'class': names[int(p.argmax())]}
      | {name: round(float(v), 6) for name, v in zip(names, p, strict=True)}
      for path, p in zip(paths, probabilities, strict=True)
    ]
  if sharding.is_lead():
    _write_rows(rows, output)


def _decoded(
  files: list[pathlib.Path], description: dict[str, Any], batch_size: int
) -> Iterator[tuple[list[pathlib.Path], np.ndarray]]:
  """Whole batches (the last one padded with zeros); bad files are left out."""
  size = description['image_size']
  short_side = transforms.resize_size(size, description['crop'])
  paths: list[pathlib.Path] = []
  images = np.zeros((batch_size, size, size, 3), np.uint8)
  for path in files:
    try:
      images[len(paths)] = transforms.load_square(
        path.read_bytes(),
        short_side=short_side,
        size=size,
        interpolation=description['interpolation'],
      )
    except transforms.BadImageError as error:
      logging.warning('%s: skipped, %s', path, error)
      continue
    paths.append(path)
    if len(paths) == batch_size:
      yield paths, images
      paths, images = [], np.zeros_like(images)
  if paths:
    yield paths, images


def _image_files(source: pathlib.Path) -> list[pathlib.Path]:
  if source.is_file():
    return [source]
  if not source.is_dir():
    raise FileNotFoundError(f'--input {source}: no such file or folder')
  files = sorted(p for p in source.rglob('*') if p.suffix.lower() in _SUFFIXES)
  if not files:
    raise ValueError(
      f'--input {source} holds no image ({", ".join(sorted(_SUFFIXES))})'
    )
  return files


def _check_output(path: pathlib.Path) -> None:
  if path.suffix not in ('.csv', '.jsonl'):
    raise ValueError(f'--output {path}: accepted are .csv and .jsonl')
  if not path.parent.is_dir():
    raise FileNotFoundError(f'--output {path}: no such folder {path.parent}')


def _write_rows(rows: list[dict[str, Any]], output: str | None) -> None:
  if not rows:
    logging.warning('no image could be read')
    return
  if output and output.endswith('.jsonl'):
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    pathlib.Path(output).write_text(text)
    return
  stream = open(output, 'w', newline='') if output else sys.stdout
  try:
    writer = csv.DictWriter(stream, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
  finally:
    if output:
      stream.close()
