"""metrics.jsonl always, TensorBoard events beside it."""

import json
import math
import pathlib
import sys
from typing import Any

from tlkd_jax.evaluation import records
from tlkd_jax.runtime.atomic import replace_text


def _import_tensorboardx() -> Any:
  # It imports an installed PyTorch, for seconds, to know a type that it is
  # never given here.
  hidden = 'torch' not in sys.modules
  if hidden:
    sys.modules['torch'] = None  # pyrefly: ignore
  try:
    import tensorboardX
  finally:
    if hidden:
      del sys.modules['torch']
  return tensorboardX


tensorboardX = _import_tensorboardx()


class MetricWriter:
  """Appends rows {"step", "split", name: value, ...} of one run.

  Reopening a run at a checkpoint drops the rows after it, so that a resumed
  run's file equals an uninterrupted one's.
  """

  def __init__(self, workdir: str | pathlib.Path, resume_step: int = 0):
    workdir = pathlib.Path(workdir)
    self._path = workdir / 'metrics.jsonl'
    kept = [r for r in read_rows(self._path) if r['step'] <= resume_step]
    text = ''.join(records.dumps(row) + '\n' for row in kept)
    replace_text(self._path, text)
    self._file = self._path.open('a')
    self._events = tensorboardX.SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=resume_step + 1
    )

  def write(self, step: int, split: str, values: dict[str, float]) -> None:
    """Appends one row; floats, flushed to disk."""
    row = {'step': step, 'split': split} | values
    self._file.write(records.dumps(row) + '\n')
    self._file.flush()
    for name, value in values.items():
      if math.isfinite(value):
        self._events.add_scalar(f'{split}/{name}', value, step)

  def close(self) -> None:
    """Flushes and closes both files."""
    self._file.close()
    self._events.close()


def read_rows(path: str | pathlib.Path) -> list[dict[str, Any]]:
  """Rows of a metrics.jsonl; a last line cut short by a kill is left out.

  What was undefined is NaN.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return []
  rows = []
  for line in path.read_text().splitlines():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      break
    rows.append({k: math.nan if v is None else v for k, v in row.items()})
  return rows
