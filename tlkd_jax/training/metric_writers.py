"""metrics.jsonl always, TensorBoard events beside it."""

import json
import math
import pathlib
import sys
import time
import zlib
from typing import Any

from tlkd_jax.evaluation import records
from tlkd_jax.runtime import sealed
from tlkd_jax.runtime.atomic import replace_text


def _import_tensorboardx() -> Any:
  # It imports an installed PyTorch, for seconds, to know a type that it is
  # never given here.
  hidden = 'torch' not in sys.modules
  if hidden:
    sys.modules['torch'] = None  # pyrefly: ignore
  try:
    import tensorboardX.event_file_writer
    import tensorboardX.proto.event_pb2
    import tensorboardX.summary
  finally:
    if hidden:
      del sys.modules['torch']
  return tensorboardX


tensorboardX = _import_tensorboardx()

METRICS = 'metrics.jsonl'
# The last key of a row: the CRC-32 of what stands before it.
_CHECK = b', "crc": '


class MetricWriter:
  """Appends rows {"step", "split", name: value, ..., "crc"} of one run.

  Reopening a run at a checkpoint drops the rows after it, so that a resumed
  run's file equals an uninterrupted one's.

  Raises:
    ValueError: a row that is there is damaged.
  """

  def __init__(self, workdir: str | pathlib.Path, resume_step: int = 0):
    workdir = pathlib.Path(workdir)
    self._path = workdir / METRICS
    kept = [r for r in read_rows(self._path) if r['step'] <= resume_step]
    text = ''.join(_as_line(row) for row in kept)
    sealed.unseal(self._path)
    replace_text(self._path, text)
    self._file = self._path.open('a')
    self._events = _Events(workdir / 'tensorboard', resume_step + 1)

  def write(self, step: int, split: str, values: dict[str, float]) -> None:
    """Appends one row; floats, flushed to disk."""
    row = {'step': step, 'split': split} | values
    self._file.write(_as_line(row))
    self._file.flush()
    for name, value in values.items():
      if math.isfinite(value):
        self._events.write(f'{split}/{name}', value, step)

  def close(self) -> None:
    """Flushes and closes both files."""
    try:
      self._file.close()
    finally:
      self._events.close()


class _Events:
  """A file of TensorBoard's, written in this thread.

  tensorboardX's SummaryWriter has one of its own, where a full disk is a trace
  that nobody can catch.
  """

  def __init__(self, folder: pathlib.Path, purge_step: int):
    folder.mkdir(exist_ok=True)
    self._writer = tensorboardX.event_file_writer.EventsWriter(
      str(folder / 'events')
    )
    pb2 = tensorboardX.proto.event_pb2
    start = pb2.SessionLog(status=pb2.SessionLog.START)
    self._add(step=purge_step, session_log=start)

  def write(self, name: str, value: float, step: int) -> None:
    summary = tensorboardX.summary.scalar(name, value)
    self._add(step=step, summary=summary)

  def _add(self, **content) -> None:
    event = tensorboardX.proto.event_pb2.Event(wall_time=time.time(), **content)
    self._writer.write_event(event)

  def close(self) -> None:
    self._writer.close()


def read_rows(path: str | pathlib.Path) -> list[dict[str, Any]]:
  """Rows of a metrics.jsonl; a last line cut short by a kill is left out.

  What was undefined is NaN. Rows of earlier versions have no checksum.

  Raises:
    ValueError: a row, or the file of a finished run, is not what was written.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return []
  lines = sealed.read_text(path).encode().split(b'\n')
  # A whole line has its end, so that what comes after the last one is nothing.
  whole = lines[:-1]
  checked = any(_CHECK in line for line in whole)
  rows = []
  for number, line in enumerate(whole, 1):
    content, _, check = line.rpartition(_CHECK)
    if checked and check != _ending(content):
      raise _damaged(path, number, 'it is not what was written')
    try:
      row = json.loads(content + b'}' if checked else line)
      rows.append({k: math.nan if v is None else v for k, v in row.items()})
    except (ValueError, AttributeError, RecursionError) as error:
      raise _damaged(path, number, str(error)) from error
  return rows


def _as_line(row: dict[str, Any]) -> str:
  content = records.dumps(row)[:-1].encode()
  return (content + _CHECK + _ending(content)).decode() + '\n'


def _ending(content: bytes) -> bytes:
  return b'"%08x"}' % zlib.crc32(content)


def _damaged(path: pathlib.Path, number: int, why: str) -> ValueError:
  return ValueError(
    f'{path} is damaged at line {number}: {why}. Take it from a copy, or '
    'delete it: the course of training is lost then, and nothing else'
  )
