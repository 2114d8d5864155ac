"""TL from the mean of several students: the control of the same knowledge.

WORKDIR/member1, member2, ... are TL runs of the same training images, with an
order, augmentation, dropout and new head of their own; the first is TL of the
seed. Together they are the network of the run (training.joined), which says
the mean of their logits, the normalised geometric mean of their probabilities.
"""

import pathlib
from collections.abc import Callable
from typing import Any

from tlkd_jax.data import Dataset
from tlkd_jax.runtime.errors import as_user_errors
from tlkd_jax.settings import Settings, with_values
from tlkd_jax.training import joined
from tlkd_jax.training.run import Run
from tlkd_jax.training.summary import finish

KIND = 'ensemble'


def folder_of(workdir: pathlib.Path, number: int) -> pathlib.Path:
  """Of the member of this number, from 1 on."""
  return workdir / f'member{number}'


def folders(workdir: pathlib.Path, count: int) -> list[pathlib.Path]:
  """Of so many members, in their order."""
  return [folder_of(workdir, number) for number in range(1, count + 1)]


def parts(settings: Settings, workdir: pathlib.Path) -> joined.Parts:
  """The members' folders and settings."""
  found = folders(workdir, settings.student.members)
  return {
    folder: with_values(
      settings, {'student.fit': 'finetuned', 'student.member': number}
    )
    for number, folder in enumerate(found, 1)
  }


def fit(
  run: Run,
  dataset: Dataset,
  fine_tune: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
  """Runs what is left of the members and puts them together; the summary.

  Args:
    run: of the ensemble.
    dataset: of its images, as fine_tune takes it.
    fine_tune: loop.fine_tune.

  Raises:
    UserError: a model with several heads.
    RunError, Interrupted: as fine_tune.
  """
  with as_user_errors():
    joined.check(run)
  members = parts(run.settings, run.workdir)
  whole, spent, _ = joined.fit(run, dataset, members, fine_tune)
  return finish(whole, spent)
