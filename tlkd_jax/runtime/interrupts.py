"""Signals to stop, from a command's first line to its last.

SIGINT is Ctrl-C, SIGHUP a lost connection. They end a command at once, as a
kill would, which whatever is being written survives; only the loop of a run
takes them over, to save first (`training.signals`). An exception would be
dropped in a callback of Python's garbage collector, be a trace from a module
that is being loaded, or become an abort on its way through C++.
"""

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Generator
from types import FrameType
from typing import NoReturn

from tlkd_jax.runtime.errors import Interrupted

AT_ONCE = 'stopped at once; resume with the same command'
EXIT_CODE = 128 + signal.SIGINT

_exit_codes = {
  number: 128 + number
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
}

# What is still to be done when the process ends at once.
_undo: list[Callable[[], object]] = []


def is_command(program: str) -> bool:
  """Whether a process is one of the package's own commands.

  Args:
    program: what Python was told to run: `-m`'s module, or a file.
  """
  module = program.removeprefix('-m')
  installed = os.path.basename(program).startswith('tlkd-jax')
  return module.partition('.')[0] == 'tlkd_jax' or installed


def end_at_once() -> None:
  """From here on a signal to stop ends the process with one line."""
  for number in heard():
    signal.signal(number, _end)
  # With its last callbacks Python takes the handler away.
  atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def resumable() -> None:
  """From here on nothing is lost with the process: SIGTERM gives the code 0.

  As after a run was saved, so that whoever sent it starts the command again.
  """
  _exit_codes.update({signal.SIGTERM: 0, signal.SIGHUP: 0})


def heard() -> tuple[signal.Signals, ...]:
  """The signals that stop: not SIGHUP where `nohup` has it ignored."""
  found = [signal.SIGINT, signal.SIGTERM]
  if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    found.append(signal.SIGHUP)
  return tuple(found)


@contextlib.contextmanager
def undone(undo: Callable[[], object]) -> Generator[None]:
  """While open, `undo` is called before the process is ended at once."""
  _undo.append(undo)
  try:
    yield
  finally:
    _undo.remove(undo)


@contextlib.contextmanager
def raised() -> Generator[None]:
  """While open, a signal to stop is a KeyboardInterrupt or an Interrupted.

  For waiting alone: what is in C++ meanwhile may not survive an exception.
  """
  previous = {number: signal.signal(number, _raise) for number in heard()}
  try:
    yield
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


def terminals() -> list[int]:
  """Those of the standard streams that are terminals."""
  return [stream for stream in (0, 1, 2) if os.isatty(stream)]


def forget(streams: list[int]) -> None:
  """Lets what is written to terminals that are gone go nowhere.

  It would be an error, in the middle of what is to be saved.
  """
  for stream in streams:
    with contextlib.suppress(OSError):
      os.dup2(os.open(os.devnull, os.O_RDWR), stream)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
  del frame
  if number == signal.SIGINT:
    raise KeyboardInterrupt
  raise Interrupted(_stopped_by(number))


def _stopped_by(number: int) -> str:
  name = signal.Signals(number).name
  return f'stopped by {name}; resume with the same command'


def _end(number: int, frame: FrameType | None) -> NoReturn:
  del frame
  ctrl_c = number == signal.SIGINT
  line = f'error: {AT_ONCE}' if ctrl_c else _stopped_by(number)
  leave(line, _exit_codes[signal.Signals(number)])


def leave(line: str, code: int) -> NoReturn:
  """Ends the process at once, with a line and nothing after it."""
  # Among them a stream that was just being written to.
  for undo in (*_undo, sys.stdout.flush):
    with contextlib.suppress(Exception):
      undo()
  with contextlib.suppress(OSError):
    os.write(2, f'{line}\n'.encode())
  os._exit(code)
