"""Saving and restoring a run; the only file that knows Orbax.

A workdir's `checkpoints/latest/STEP` holds the whole TrainState and the
progress of the loop (data order, best so far), enough to resume bit for bit.
`checkpoints/best/STEP` holds the student's weights alone, with a description
that suffices to rebuild the model: what evaluation, prediction, export and a
student's teacher read. A peer's are in `peer/checkpoints/best/STEP`, of the
student's best step. Orbax writes to a temporary folder and renames it, so a
killed save leaves the one before.
"""

import contextlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from tlkd_jax.models.functional import Tree
from tlkd_jax.runtime.errors import RunError
from tlkd_jax.training.state import TrainState

_STATE_FIELDS = (
  'step',
  'params',
  'model_state',
  'opt_state',
  'ema',
  'memory',
)


_DESCRIPTION = frozenset(
  ('model', 'num_classes', 'class_names', 'image_size', 'crop')
  + ('interpolation', 'compute_dtype')
)


class Checkpoints:
  """The checkpoints of one workdir."""

  def __init__(self, workdir: str | pathlib.Path, keep: int = 2):
    self._workdir = pathlib.Path(workdir).resolve()
    root = self._workdir / 'checkpoints'
    self._latest = _manager(root / 'latest', keep)
    self._best = _manager(root / 'best', 1)
    self._peer: ocp.CheckpointManager | None = None

  def latest_step(self) -> int | None:
    """The newest step that was saved whole; None in a new workdir."""
    return self._latest.latest_step()

  def save(self, state: TrainState, progress: dict[str, Any]) -> None:
    """Saves everything needed to resume after state.step.

    Raises:
      RunError: it could not be written; what was saved before stays.
    """
    self._write(self._latest, int(state.step), _items(state), progress)

  def save_best(self, step: int, model: Tree, description: dict) -> None:
    """Saves {'params', 'model_state'} of the student, replacing the last."""
    self._write(self._best, step, model, description)

  def save_peer(self, step: int, model: Tree, description: dict) -> None:
    """Saves a peer as `save_best` does a student, in WORKDIR/peer."""
    if self._peer is None:
      self._peer = _manager(self._workdir / 'peer' / 'checkpoints' / 'best', 1)
    self._write(self._peer, step, model, description)

  def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The newest state, on the devices that `abstract`'s shardings name.

    Raises:
      ValueError: the files are corrupt or of another structure.
    """
    step = self._latest.latest_step()
    args = ocp.args.Composite(
      arrays=ocp.args.StandardRestore(_items(abstract)),
      record=ocp.args.JsonRestore(),
    )
    restored = _checked(
      self._latest.directory / str(step),
      lambda: self._latest.restore(step, args=args),
    )
    return TrainState(**restored['arrays']), restored['record']

  def close(self) -> None:
    """Ends Orbax's threads."""
    for manager in (self._latest, self._best, self._peer):
      if manager is not None:
        manager.close()

  def _write(self, manager, step, arrays, record) -> None:
    if step in manager.all_steps():
      return
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
      last = self._latest.latest_step()
      kept = 'none was saved before' if last is None else f'step {last} stays'
      raise RunError(
        f'could not save a checkpoint of step {step} in {manager.directory}: '
        f'{_first_line(error)}; the last good checkpoint: {kept}. Free some '
        'space and resume with the same command'
      ) from error


def _items(state: TrainState) -> dict[str, Any]:
  """What is stored of a state; of a peer only where there is one."""
  items = {name: getattr(state, name) for name in _STATE_FIELDS}
  return items | ({'peer': state.peer} if state.peer else {})


def read_description(workdir: str | pathlib.Path) -> dict[str, Any]:
  """What a finished run's model is: name, classes, sizes; no arrays.

  Raises:
    FileNotFoundError: the folder is not a run with a checkpoint.
    ValueError: the description is unreadable.
  """
  step = _best_step(workdir)
  try:
    description = json.loads((step / 'record' / 'metadata').read_text())
    missing = sorted(_DESCRIPTION - set(description))
  except (OSError, TypeError, ValueError) as error:
    raise ValueError(f'corrupt checkpoint {step}: {error}') from error
  if missing:
    raise ValueError(
      f'corrupt checkpoint {step}: its record lacks {", ".join(missing)}'
    )
  return description


def read_model(workdir: str | pathlib.Path, abstract: Tree) -> Tree:
  """The best {'params', 'model_state'} of a run, as `abstract` describes.

  Raises:
    FileNotFoundError: the folder is not a run with a checkpoint.
    ValueError: the files are corrupt or of another structure.
  """
  path = _best_step(workdir) / 'arrays'
  with ocp.StandardCheckpointer() as checkpointer:
    return _checked(path, lambda: checkpointer.restore(path, abstract))


def _best_step(workdir: str | pathlib.Path) -> pathlib.Path:
  root = pathlib.Path(workdir).resolve() / 'checkpoints' / 'best'
  steps = (
    [p for p in root.glob('*') if p.name.isdigit()] if root.exists() else []
  )
  if not steps:
    raise FileNotFoundError(
      f'no checkpoint in {workdir}: expected the --workdir of a finished run '
      '(with checkpoints/best/STEP)'
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
      f'corrupt or foreign checkpoint {path}: {_first_line(error)}'
    ) from error


@contextlib.contextmanager
def _quiet_failure() -> Iterator[None]:
  """Keeps what follows a failure off the user's screen.

  Reads and writes that Orbax abandons come back later, each to an event loop
  that is closed by then, and each with a traceback.
  """
  report = sys.unraisablehook

  def report_others(unraisable):
    if str(unraisable.exc_value) != 'Event loop is closed':
      report(unraisable)

  sys.unraisablehook = report_others
  yield
  # Not reached after a failure: the hook must outlive it.
  sys.unraisablehook = report


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines()
  return f'{type(error).__name__}: {lines[0] if lines else ""}'[:300]


def abstract_like(tree: Any, sharding: jax.sharding.Sharding) -> Any:
  """Shapes and dtypes of `tree`, all with one sharding, for `restore`."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )
