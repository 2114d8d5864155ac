"""metrics.jsonl and the TensorBoard events beside it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from tensorboardX.proto import event_pb2

from tlkd_jax.training.metric_writers import MetricWriter, read_rows

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_rows_and_undefined_values(tmp_path):
  writer = MetricWriter(tmp_path)
  writer.write(1, 'train', {'loss': 0.1, 'accuracy': 1.0})
  writer.write(2, 'validation', {'top5': float('nan'), 'nll': float('inf')})
  # Written at once, not at the end.
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  writer.close()
  written = [json.loads(line) for line in lines]
  assert len({row.pop('crc') for row in written}) == 2
  assert written == [
    {'step': 1, 'split': 'train', 'loss': 0.1, 'accuracy': 1.0},
    {'step': 2, 'split': 'validation', 'top5': None, 'nll': None},
  ]


def test_resume_drops_what_comes_after(tmp_path):
  writer = MetricWriter(tmp_path)
  for step in (1, 2, 3):
    writer.write(step, 'train', {'loss': step / 10})
  writer.close()
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 4, "spl')
  writer = MetricWriter(tmp_path, resume_step=2)
  writer.write(3, 'train', {'loss': 0.3})
  writer.close()
  assert [row['step'] for row in read_rows(tmp_path / 'metrics.jsonl')] == [
    1,
    2,
    3,
  ]


def test_floats_survive_bit_for_bit(tmp_path):
  value = 0.1 + 0.2
  writer = MetricWriter(tmp_path)
  writer.write(1, 'train', {'loss': value})
  writer.close()
  assert read_rows(tmp_path / 'metrics.jsonl')[0]['loss'] == value


def test_no_file_is_no_rows(tmp_path):
  assert read_rows(tmp_path / 'metrics.jsonl') == []


def test_tensorboard_events(tmp_path):
  writer = MetricWriter(tmp_path)
  writer.write(7, 'train', {'loss': 0.5, 'undefined': float('nan')})
  writer.close()
  (path,) = (tmp_path / 'tensorboard').iterdir()
  found = {}
  for record in records(path.read_bytes()):
    event = event_pb2.Event.FromString(record)
    for value in event.summary.value:
      found[value.tag] = (event.step, value.simple_value)
  assert found == {'train/loss': (7, 0.5)}


def test_a_resumed_run_purges_the_events_after_it(tmp_path):
  MetricWriter(tmp_path, resume_step=4).close()
  (path,) = (tmp_path / 'tensorboard').iterdir()
  events = map(event_pb2.Event.FromString, records(path.read_bytes()))
  started = [
    event.step
    for event in events
    if event.session_log.status == event_pb2.SessionLog.START
  ]
  assert started == [5]


FULL = """
import resource, sys, pathlib
from tlkd_jax.training.metric_writers import MetricWriter
writer = MetricWriter(pathlib.Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
  for step in range(4000):
    writer.write(step, 'train', {'loss': 0.5})
except OSError as error:
  print(error)
try:
  writer.close()
except OSError as error:
  print(error)
"""


@pytest.mark.parametrize('size', [100, 10_000, 150_000, 210_000])
def test_a_full_disk_is_an_error_of_whoever_writes(size, tmp_path):
  """And no trace of another thread."""
  done = subprocess.run(
    [sys.executable, '-c', FULL, str(tmp_path), str(size)],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert 'File too large' in done.stdout
  assert (done.returncode, done.stderr) == (0, '')


def records(data: bytes):
  """TFRecords: length, its checksum, the record, its checksum."""
  while data:
    length = int.from_bytes(data[:8], 'little')
    yield data[12 : 12 + length]
    data = data[16 + length :]


def test_an_installed_pytorch_is_not_imported(tmp_path):
  (tmp_path / 'torch.py').write_text('print("torch was imported")')
  program = (
    'import tlkd_jax.training.metric_writers; print("done"); import torch'
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    capture_output=True,
    text=True,
    check=True,
    env=os.environ | {'PYTHONPATH': f'{tmp_path}:{os.getcwd()}'},
  )
  assert done.stdout == 'done\ntorch was imported\n'
