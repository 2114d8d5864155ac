"""Two processes on one machine are one run."""

import json
import signal
import socket

import numpy as np
import pytest

from tests import tiny
from tests.workdirs import arrays, wait_for_step
from tlkd_jax import arms
from tlkd_jax.runtime import sharding
from tlkd_jax.training.metric_writers import read_rows

pytestmark = pytest.mark.usefixtures('tiny_models')


def start_two(start_main, *arguments):
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    port = listener.getsockname()[1]
  return [
    start_main(
      *arguments,
      '--distributed',
      f'--coordinator=127.0.0.1:{port}',
      '--num_processes=2',
      f'--process_id={process_id}',
    )
    for process_id in (0, 1)
  ]


def finish(processes) -> list[str]:
  """Standard output of processes that must end well."""
  outputs = []
  for process in processes:
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert 'Traceback' not in error
    outputs.append(out)
  return outputs


def test_two_processes_equal_one(start_main, cache_dir, compare_run, tmp_path):
  """TL+KD on stored targets with BatchNorm statistics of the global batch.

  The one is this process. One of the two is asked to stop, both save and end,
  and both resume. What is left of a difference is the order of the sums over
  the batch: 1e-5.
  """
  given = {
    'num_steps': 60,
    'log_every_steps': 10,
    'eval_every_steps': 10,
    'batch_norm': 'train',
    'targets__mode': 'cached',
    'targets__views': 2,
    'targets__dtype': 'float32',
    'targets__dir': str(tmp_path / 'targets'),
    'teacher__checkpoint': str(compare_run / 'teacher'),
  }
  config = tiny.make_config('kd', cache_dir, **given)
  arms.run(config, tmp_path / 'one', sharding.make_mesh(1))

  arguments = tiny.arguments('kd', cache_dir, **given)
  command = [*arguments, f'--workdir={tmp_path / "two"}']
  processes = start_two(start_main, *command)
  wait_for_step(tmp_path / 'two', processes[1], 10)
  processes[1].send_signal(signal.SIGTERM)
  finish(processes)
  stopped = int(arrays(tmp_path / 'two')['step'])
  assert stopped < 60 and not (tmp_path / 'two' / 'summary.json').exists()
  lead, other = finish(start_two(start_main, *command))
  assert 'TL+KD' in lead and 'TL+KD' not in other

  for kind in ('latest', 'best'):
    a, b = arrays(tmp_path / 'one', kind), arrays(tmp_path / 'two', kind)
    assert a.keys() == b.keys() and len(a) > 10
    for name in a:
      np.testing.assert_allclose(a[name], b[name], atol=1e-5, err_msg=name)
  rows = [
    [(row['step'], row['split']) for row in read_rows(path)]
    for path in tmp_path.glob('*/metrics.jsonl')
  ]
  assert rows[0] == rows[1] and len(rows[0]) == 12
  summaries = [
    json.loads((tmp_path / name / 'summary.json').read_text())
    for name in ('one', 'two')
  ]
  a, b = (s['student']['test'] for s in summaries)
  assert a['count'] == b['count'] == 40
  assert a['nll'] == pytest.approx(b['nll'], abs=1e-5)
