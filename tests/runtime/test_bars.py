"""Who is shown a bar: a terminal, a notebook; and who gets lines."""

import io
import logging
import sys
import time
import types

import pytest

from tlkd_jax.runtime import bars
from tlkd_jax.training import progress
from tlkd_jax.training.progress import Progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


PLACES = pytest.mark.parametrize('name', ['log', 'terminal', 'notebook'])


def look_on(name: str, monkeypatch) -> io.StringIO:
  """What stands on standard error from now on."""
  stream = Terminal() if name == 'terminal' else io.StringIO()
  monkeypatch.setattr(sys, 'stderr', stream)
  if name == 'notebook':
    module = types.ModuleType('ipykernel.zmqshell')
    monkeypatch.setitem(sys.modules, 'ipykernel.zmqshell', module)
  return stream


@PLACES
def test_a_loop_is_a_bar_or_lines(name, caplog, monkeypatch):
  stream = look_on(name, monkeypatch)
  assert bars.wanted() == (name != 'log')
  assert bars.in_notebook() == (name == 'notebook')
  with caplog.at_level(logging.INFO, logger='absl'):
    shown = Progress('kd', 0, 4)
    shown.update(2)
    shown.message(2, {'loss': 1.5})
    shown.close()
  lines = [record.getMessage() for record in caplog.records]
  if name == 'log':
    assert not stream.getvalue()
    assert lines[0].startswith('kd 2/4  loss 1.5')
  else:
    assert 'kd' in stream.getvalue() and '2/4' in stream.getvalue()
    assert 'loss=1.5' in stream.getvalue() and not lines


@PLACES
def test_a_long_step_is_a_bar_or_lines(name, caplog, monkeypatch):
  stream = look_on(name, monkeypatch)
  monkeypatch.setattr(bars, '_SECONDS_BETWEEN_LINES', -1.0)
  with caplog.at_level(logging.INFO, logger='absl'):
    assert list(bars.track('ab', 2, 'decoding')) == ['a', 'b']
  lines = [record.getMessage() for record in caplog.records]
  if name == 'log':
    assert lines[0] == 'decoding: 1 of 2' and not stream.getvalue()
  else:
    assert 'decoding' in stream.getvalue() and not lines


class Clock:
  """Seconds that pass when a test says so."""

  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr(progress.time, 'monotonic', lambda: self.now)

  def wait(self, seconds: float) -> None:
    self.now += seconds


def lines_of(steps, monkeypatch, caplog, *, start=0, total=70, writes=(10,)):
  """What a loop of one-second steps says, compiled for a minute before."""
  clock = Clock(monkeypatch)
  monkeypatch.setattr(bars, 'wanted', lambda: False)
  with caplog.at_level(logging.INFO, logger='absl'):
    shown = Progress('kd', start, total)
    clock.wait(5)
    shown.compiling()
    clock.wait(60)
    for step in range(start + 1, start + steps + 1):
      shown.update(step)
      clock.wait(1)
      if step - start in writes:
        shown.message(step, {'loss': 1.5})
        with shown.paused():
          clock.wait(33)
          shown.message(step, {'nll': 2.0, 'top1': 0.5})
          clock.wait(11)
    shown.close()
  return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
  ('start', 'total', 'writes', 'expected'),
  [
    # 60 s of compilation were counted as steps: 623 s left at step 10 of 70.
    (0, 70, (10,), ['kd 10/70  loss 1.5  1.00 steps/s, 60 s left']),
    (40, 70, (10,), ['kd 50/70  loss 1.5  1.00 steps/s, 20 s left']),
    (0, 70, (1,), ['kd 1/70  loss 1.5  1.00 steps/s, 69 s left']),
    (
      0,
      300,
      (2, 6, 10),
      [
        'kd 2/300  loss 1.5  1.00 steps/s, 5 min left',
        'kd 6/300  loss 1.5  1.00 steps/s, 5 min left',
        'kd 10/300  loss 1.5  1.00 steps/s, 5 min left',
      ],
    ),
  ],
)
def test_time_left_is_that_of_steps_alone(
  start, total, writes, expected, monkeypatch, caplog
):
  lines = lines_of(
    10, monkeypatch, caplog, start=start, total=total, writes=writes
  )
  assert lines[:2] == ['kd: compiling its step', 'kd: compiled in 60 s']
  assert [line for line in lines if 'loss' in line] == expected
  judged = [line for line in lines if 'nll' in line]
  assert len(judged) == len(writes)
  assert all('steps/s' not in line for line in judged)


def test_the_pace_is_that_of_steps_alone(monkeypatch, caplog):
  clock = Clock(monkeypatch)
  with caplog.at_level(logging.INFO, logger='absl'):
    shown = Progress('kd', 0, 70)
    shown.compiling()
    clock.wait(60)
    for step in range(1, 8):
      shown.update(step)
      clock.wait(1)
      if step in (2, 7):
        shown.pace(step, 100.0)
      with shown.paused():
        clock.wait(9)
  (line,) = [m for m in caplog.messages if ' to go' in m]
  assert line == 'kd: 1 s a step, about 2 min to go'


def test_a_bar_says_compiling_and_counts_from_the_first_step(monkeypatch):
  stream = look_on('terminal', monkeypatch)
  monkeypatch.setattr(bars.tqdm, 'monitor_interval', 0)
  shown = Progress('kd', 0, 70)
  shown._bar.mininterval = 0
  # tqdm's own clock, an hour before.
  shown._bar.start_t -= 3600
  shown._bar.last_print_t -= 3600
  shown.compiling()
  assert 'compiling' in stream.getvalue()
  stream.truncate(0)
  shown.update(1)
  assert 'compiling' not in stream.getvalue() and '1/70' in stream.getvalue()
  time.sleep(0.02)
  shown.update(2)
  assert shown._bar.format_dict['elapsed'] < 60
  assert shown._bar.format_dict['rate'] > 1 / 60
  with shown.paused():
    shown._bar.start_t -= 3600
    shown._bar.last_print_t -= 3600
  assert shown._bar.format_dict['elapsed'] < 60
  shown.close()
