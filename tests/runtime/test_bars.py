"""Who is shown a bar: a terminal, a notebook; and who gets lines."""

import io
import logging
import sys
import types

import pytest

from tlkd_jax.runtime import bars
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
