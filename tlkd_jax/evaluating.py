"""Finished runs evaluated again, on their own data or on others."""

import pathlib

from absl import logging
from jax.sharding import Mesh

from tlkd_jax.data import Dataset
from tlkd_jax.evaluation import records, suites
from tlkd_jax.evaluation.subject import Subject
from tlkd_jax.models.network import make_eval_step
from tlkd_jax.report import tables
from tlkd_jax.runtime import devices, sealed, sharding
from tlkd_jax.runtime.errors import as_user_errors, unknown_name
from tlkd_jax.runtime.paths import expanded
from tlkd_jax.settings import from_config
from tlkd_jax.training import (
  checkpoints,
  data_record,
  decoding,
  finished,
  networks,
  other_data,
)
from tlkd_jax.training import workdir as workdirs


def evaluate_run(
  workdir: str,
  mesh: Mesh,
  suite: str = 'clean',
  ood_dataset: str | None = None,
  max_images: int | None = None,
  dataset: str | None = None,
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
    dataset: other labelled data than the runs' own, for the suite 'clean';
      WORKDIR/evaluation/on_NAME is filled.

  Returns:
    The text to print.

  Raises:
    UserError: no run there, or its checkpoint or data cannot be read.
  """
  with as_user_errors():
    if suite != 'all' and suite not in suites.SUITES:
      raise unknown_name('suite', suite, [*suites.SUITES, 'all'])
    if dataset and suite != 'clean':
      raise ValueError(
        f'--suite={suite} is of the own data of a run; with --dataset only the '
        'suite clean is accepted'
      )
    root = expanded(workdir)
    folders = runs_in(root)
  names = list(suites.SUITES) if suite == 'all' else [suite]
  datasets: dict[str, Dataset] = {}
  rows, lines = [], []
  for folder in folders:
    if len(folders) > 1:
      logging.info('%s', folder)
    subject = _subject(folder, mesh, datasets, ood_dataset, max_images, dataset)
    if folder == folders[0]:
      devices.say(mesh)
    for name in names:
      if len(names) > 1:
        logging.info('suite %s', name)
      text = suites.SUITES[name](subject)
      if name == 'clean':
        clean = sealed.read_json(subject.folder / 'clean.json')
        several = len(folders) > 1
        label = _place(folder, root) if several else subject.model
        rows.append((label, clean))
        if dataset:
          lines += _about_other(folder, subject)
      else:
        lines.append(f'{_place(folder, root)}, {name}: {text}')
  table = [tables.closing_table(rows)] if rows else []
  return '\n'.join([*table, *dict.fromkeys(lines)])


def _place(folder: pathlib.Path, root: pathlib.Path) -> str:
  """What a run is called: where it lies in the folder that was given.

  By their own names the cells of a study cannot be told apart.
  """
  return folder.name if folder == root else folder.relative_to(root).as_posix()


def runs_in(workdir: pathlib.Path) -> list[pathlib.Path]:
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
  other: str | None = None,
) -> Subject:
  """Opens a run; data sets that are described alike are decoded once."""
  with as_user_errors():
    description = checkpoints.read_description(folder)
    settings = from_config(workdirs.read(folder))
    key = f'{decoding.data_key(settings)} {description.look}'
    if other:
      key = f'{other} {description.look} {description.class_names}'
    if key not in datasets:
      datasets.clear()
      datasets[key] = (
        other_data.load(other, settings, description)
        if other
        else decoding.load_seen(settings, description.look)
      )
    dataset = datasets[key]
    if not other:
      data_record.check(folder, data_record.of_labelled(dataset))
    loaded = finished.restore(str(folder), description, dataset.class_names)
    finished.say_if_unfinished(folder)
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
    place=other_data.place(other) if other else '',
  )


def _about_other(folder: pathlib.Path, subject: Subject) -> list[str]:
  """What must be known of a run's numbers on other data; also written."""
  with as_user_errors():
    notes = other_data.notes(folder, subject.dataset)
  if sharding.is_lead():
    about = {'dataset': subject.dataset.name, 'notes': notes}
    facts_of_it = {'data': subject.dataset.facts}
    records.write_json(subject.folder / 'data.json', about | facts_of_it)
  lines = [f'{subject.dataset.name}: {note}' for note in notes]
  return [*lines, f'more in {subject.folder}']
