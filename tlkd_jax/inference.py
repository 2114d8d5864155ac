"""A finished run's model used without training: evaluate, predict."""

import csv
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from tlkd_jax.data import Dataset, transforms
from tlkd_jax.evaluation import suites
from tlkd_jax.evaluation.predictions import softmax
from tlkd_jax.evaluation.subject import Subject
from tlkd_jax.models.network import make_eval_step
from tlkd_jax.report import tables
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import as_user_errors, unknown_name
from tlkd_jax.settings import from_config
from tlkd_jax.training import checkpoints, finished, inputs, networks
from tlkd_jax.training import workdir as workdirs
from tlkd_jax.training.checkpoints import Description


def evaluate_run(
  workdir: str,
  mesh: Mesh,
  suite: str = 'clean',
  ood_dataset: str | None = None,
  max_images: int | None = None,
) -> str:
  """Restores a run's best model and runs a suite; fills WORKDIR/evaluation.

  Args:
    workdir: a run, or a folder of runs such as a compare run's: each of them
      in turn, teachers first.
    mesh: devices.
    suite: a key of suites.SUITES, or 'all'.
    ood_dataset: for the suite 'ood', what is out of distribution.
    max_images: at most so many test images for 'corruptions', 'ood' and
      'qualitative', the same ones for every run; None or 0: all.

  Returns:
    The text to print.

  Raises:
    UserError: no run there, or its checkpoint or data cannot be read.
  """
  with as_user_errors():
    if suite != 'all' and suite not in suites.SUITES:
      raise unknown_name('suite', suite, [*suites.SUITES, 'all'])
    folders = _runs_in(pathlib.Path(workdir))
  names = list(suites.SUITES) if suite == 'all' else [suite]
  datasets: dict[str, Dataset] = {}
  rows, lines = [], []
  for folder in folders:
    if len(folders) > 1:
      logging.info('%s', folder)
    subject = _subject(folder, mesh, datasets, ood_dataset, max_images)
    for name in names:
      if len(names) > 1:
        logging.info('suite %s', name)
      text = suites.SUITES[name](subject)
      if name == 'clean':
        clean = json.loads((subject.folder / 'clean.json').read_text())
        rows.append((_label(folder, subject, len(folders)), clean))
      else:
        lines.append(f'{folder.name}, {name}: {text}')
  table = [tables.closing_table(rows)] if rows else []
  return '\n'.join(table + lines)


def _label(folder: pathlib.Path, subject: Subject, runs: int) -> str:
  return folder.name if runs > 1 else subject.model


def _runs_in(workdir: pathlib.Path) -> list[pathlib.Path]:
  """The run itself, or the runs below it, teachers before their students."""
  if (workdir / 'config.json').exists() or not workdir.is_dir():
    return [workdir]
  found = [path.parent for path in workdir.rglob('config.json')]
  found = [path for path in found if (path / 'checkpoints').is_dir()]
  order = {'teacher': 0, 'tl': 1, 'kd': 2}
  arms = {path: workdirs.read(path)['arm'] for path in found}
  return sorted(found, key=lambda p: (order.get(arms[p], 3), p)) or [workdir]


def _subject(
  folder: pathlib.Path,
  mesh: Mesh,
  datasets: dict[str, Dataset],
  ood_dataset: str | None,
  max_images: int | None,
) -> Subject:
  """Opens a run; data sets that are described alike are decoded once."""
  with as_user_errors():
    description = checkpoints.read_description(folder)
    loaded = finished.restore(str(folder), description)
    settings = from_config(workdirs.read(folder))
    key = inputs.data_key(settings)
    if key not in datasets:
      datasets.clear()
      datasets[key] = inputs.load_dataset(settings)
    dataset = datasets[key]
    finished.check_classes(str(folder), description, dataset.class_names)
    sharding.check_batch_size(settings.batch_size, mesh)
  runs = networks.teacher_runs(settings)
  return Subject(
    workdir=folder,
    model=description.model,
    step=description.step,
    network=loaded.network,
    variables=sharding.replicate((loaded.params, loaded.model_state), mesh),
    eval_step=make_eval_step(loaded.network, mesh),
    dataset=dataset,
    batch_size=settings.batch_size,
    mesh=mesh,
    teacher=pathlib.Path(runs['teacher']) if runs else None,
    ood_dataset=ood_dataset,
    max_images=max_images or None,
  )


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
    loaded = finished.restore(workdir, description)
  eval_step = make_eval_step(loaded.network, mesh)
  variables = sharding.replicate((loaded.params, loaded.model_state), mesh)
  names = description.class_names
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
  files: list[pathlib.Path], description: Description, batch_size: int
) -> Iterator[tuple[list[pathlib.Path], np.ndarray]]:
  """Whole batches (the last one padded with zeros); bad files are left out."""
  size = description.image_size
  short_side = transforms.resize_size(size, description.crop)
  paths: list[pathlib.Path] = []
  images = np.zeros((batch_size, size, size, 3), np.uint8)
  for path in files:
    try:
      images[len(paths)] = transforms.load_square(
        path.read_bytes(),
        short_side=short_side,
        size=size,
        interpolation=description.interpolation,
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
  accepted = transforms.SUFFIXES
  files = sorted(p for p in source.rglob('*') if p.suffix.lower() in accepted)
  if not files:
    raise ValueError(f'--input {source} holds no image ({", ".join(accepted)})')
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
