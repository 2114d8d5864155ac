"""Saving and restoring a run; the only file that knows Orbax.

A workdir's `checkpoints/latest/STEP` holds the whole State and the position of
the loop (data order, best so far), enough to resume bit for bit.
`checkpoints/best/STEP` holds the weights of the run's own network alone, with a
description that suffices to rebuild the model: what evaluation, prediction,
export and a student's teacher read. Those of another network that learned are
in `NAME/checkpoints/best/STEP`, of the same step. Orbax writes to a temporary
folder and renames it, so a killed save leaves the one before. The record of a
checkpoint holds digests of its arrays and of itself, which are compared when it
is read: one wrong bit in a weight is a network that nobody trained.
"""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Generator
from typing import Any

import jax
import orbax.checkpoint as ocp

from tlkd_jax.models.functional import Tree
from tlkd_jax.runtime import peers
from tlkd_jax.runtime.errors import RunError
from tlkd_jax.training import descriptions
from tlkd_jax.training.descriptions import Description
from tlkd_jax.training.state import Learner, State

# Of the runs of a command, as seen from its workdir.
_BEST_BELOW = '*/checkpoints/best'
_FIELDS = dataclasses.fields(Learner)


class Checkpoints:
  """The checkpoints of one workdir."""

  def __init__(self, workdir: str | pathlib.Path, keep: int = 2):
    self._workdir = pathlib.Path(workdir).resolve()
    self._latest = _manager(self._workdir / 'checkpoints' / 'latest', keep)
    self._best: dict[str, ocp.CheckpointManager] = {}

  def latest_step(self) -> int | None:
    """The newest step that was saved whole; None in a new workdir."""
    return self._latest.latest_step()

  def save(self, state: State, progress: dict[str, Any]) -> None:
    """Saves everything needed to resume after state.step.

    Raises:
      RunError: it could not be written; what was saved before stays.
    """
    self._write(self._latest, int(state.step), _items(state), progress)

  def save_best(
    self, model: Tree, description: Description, other: str = ''
  ) -> None:
    """Saves {'params', 'model_state'} of a network, replacing the last.

    Args:
      model: what is saved.
      description: what it is.
      other: name of the network; '' is the run's own.
    """
    if other not in self._best:
      root = folder_of(self._workdir, other) / 'checkpoints' / 'best'
      self._best[other] = _manager(root, 1)
    record = dataclasses.asdict(description)
    self._write(self._best[other], description.step, model, record)

  def restore(self, abstract: State) -> tuple[State, dict[str, Any]]:
    """The newest state, on the devices that `abstract`'s shardings name.

    Raises:
      ValueError: the files are corrupt or of another structure.
    """
    step = self._latest.latest_step()
    path = self._latest.directory / str(step)
    args = ocp.args.Composite(
      arrays=ocp.args.StandardRestore(_items(abstract)),
      record=ocp.args.JsonRestore(),
    )
    restored = _checked(path, lambda: self._latest.restore(step, args=args))
    arrays = restored['arrays']
    record = descriptions.verified(path, restored['record'], arrays)
    learners = {k: Learner(**v) for k, v in arrays['learners'].items()}
    return State(arrays['step'], learners), record

  def close(self) -> None:
    """Ends Orbax's threads, which wait for all processes of the run."""
    peers.leave_if_lost(sys.exception())
    for manager in (self._latest, *self._best.values()):
      manager.close()

  def _write(self, manager, step, arrays, record) -> None:
    if step in manager.all_steps():
      return
    record = descriptions.with_digests(record, arrays)
    try:
      with _quiet_failure():
        manager.save(
          step,
          args=ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays),
            record=ocp.args.JsonSave(record),
          ),
          force=True,
        )
        manager.wait_until_finished()
    except Exception as error:
      peers.leave_if_lost(error)
      last = self._latest.latest_step()
      kept = 'none was saved before' if last is None else f'step {last} stays'
      raise RunError(
        f'could not save a checkpoint of step {step} in {manager.directory}: '
        f'{_first_line(error)}; the last good checkpoint: {kept}. Free some '
        'space and resume with the same command'
      ) from error


def _items(state: State) -> dict[str, Any]:
  """What is stored of a state."""
  learners = {
    name: {field.name: getattr(learner, field.name) for field in _FIELDS}
    for name, learner in state.learners.items()
  }
  return {'step': state.step, 'learners': learners}


def folder_of(workdir: pathlib.Path, other: str) -> pathlib.Path:
  """The folder of a run's own network (''), or of another that learned."""
  return workdir / other if other else workdir


def read_description(workdir: str | pathlib.Path) -> Description:
  """What a finished run's model is: name, classes, sizes; no arrays.

  Raises:
    FileNotFoundError: the folder is not a run with a checkpoint.
    ValueError: the description is unreadable, lacks a field or has one of
      another kind; the message names the file and all such fields.
  """
  return descriptions.described(_best_step(workdir))


def read_model(workdir: str | pathlib.Path, abstract: Tree) -> Tree:
  """The best {'params', 'model_state'} of a run, as `abstract` describes.

  Raises:
    FileNotFoundError: the folder is not a run with a checkpoint.
    ValueError: the files are corrupt or of another structure.
  """
  step = _best_step(workdir)
  path = step / 'arrays'
  with ocp.StandardCheckpointer() as checkpointer:
    found = _checked(path, lambda: checkpointer.restore(path, abstract))
  descriptions.verified(step, descriptions.read_record(step), found)
  return found


def _best_step(workdir: str | pathlib.Path) -> pathlib.Path:
  root = pathlib.Path(workdir).resolve() / 'checkpoints' / 'best'
  steps = (
    [p for p in root.glob('*') if p.name.isdigit()] if root.exists() else []
  )
  if not steps:
    below = sorted(p.parents[1] for p in root.parents[1].glob(_BEST_BELOW))
    near = f'; below it are {", ".join(map(str, below))}' if below else ''
    raise FileNotFoundError(
      f'no checkpoint in {workdir}: expected the --workdir of a finished run '
      f'(with checkpoints/best/STEP){near}'
    )
  return max(steps, key=lambda p: int(p.name))


def _manager(directory: pathlib.Path, keep: int) -> ocp.CheckpointManager:
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep,
    enable_async_checkpointing=False,
    # What a killed save left behind.
    cleanup_tmp_directories=True,
  )
  return ocp.CheckpointManager(
    directory, options=options, item_names=('arrays', 'record')
  )


def _checked(path: pathlib.Path, read: Callable[[], Any]) -> Any:
  """Calls `read`; whatever Orbax raises is about a file of the user."""
  try:
    with _quiet_failure():
      return read()
  except Exception as error:
    raise ValueError(
      f'corrupt or foreign checkpoint {path}: {_told(error)}'
    ) from error


def _told(error: Exception) -> str:
  # Other arrays, or arrays of other shapes.
  others = 'structures do not match', 'not compatible with the stored shape'
  if not any(words in str(error) for words in others):
    return _first_line(error)
  return (
    'it has not the arrays that this version keeps of such a run; the version '
    'that wrote it goes on with it, or begin anew in another --workdir'
  )


@contextlib.contextmanager
def _quiet_failure() -> Generator[None]:
  """Keeps what follows a failure off the user's screen.

  Reads and writes that Orbax abandons come back later, each to an event loop
  that is closed by then or where they are collected as garbage, and each with
  a traceback.
  """
  report = sys.unraisablehook

  def report_others(unraisable):
    error = unraisable.exc_value
    collected = isinstance(error.__cause__, GeneratorExit)
    if str(error) != 'Event loop is closed' and not collected:
      report(unraisable)

  sys.unraisablehook = report_others
  yield
  # Not reached after a failure: the hook must outlive it.
  sys.unraisablehook = report


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines()
  return f'{type(error).__name__}: {lines[0] if lines else ""}'[:300]


def keep_best(
  workdir: pathlib.Path, params: Tree, model_state: Tree, description
) -> None:
  """Saves a network that took no steps as the best of its run."""
  checkpoints = Checkpoints(workdir)
  try:
    model = {'params': params, 'model_state': model_state}
    checkpoints.save_best(model, description)
  finally:
    checkpoints.close()


def abstract_like(tree: Any, where: Any) -> Any:
  """Shapes and dtypes of `tree`, for `restore`.

  Args:
    tree: of arrays or shapes.
    where: the sharding of all of them, or a tree that begins as `tree` does.
  """
  return jax.tree.map(
    lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
    tree,
    jax.tree.broadcast(where, tree),
  )
