"""Ctrl-C and its like: never swallowed, one line, the right exit code."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tlkd_jax.runtime import interrupts
from tlkd_jax.training.signals import StopRequest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LINE = f'error: {interrupts.AT_ONCE}\n'

# Each begins as a command does and would go on for ever.
BEGIN = """
import gc, os, signal, sys, time
from tlkd_jax.runtime import interrupts
interrupts.end_at_once()

def press(*_):
  os.kill(os.getpid(), signal.SIGINT)

"""
PLACES = {
  'plain': 'press()',
  'in a callback of the garbage collector': """
    gc.callbacks.append(press)
    gc.collect()
  """,
  'where an object ends': """
    class Ending:
      __del__ = press
    Ending()
  """,
  'where everything is caught': """
    try:
      press()
    except BaseException:
      pass
  """,
  'where a module is loaded or left out': """
    try:
      class Finder:
        find_spec = press
      sys.meta_path.insert(0, Finder())
      import nothing
    except BaseException:
      nothing = None
  """,
  'in a loop of the run, twice': """
    import logging
    logging.disable()
    from tlkd_jax.training.signals import StopRequest
    with StopRequest() as stop:
      press()
      assert stop.requested(1)
      press()
  """,
  'after a loop of the run': """
    from tlkd_jax.training.signals import StopRequest
    with StopRequest():
      pass
    press()
  """,
  'while output is written': """
    class Stream:
      def write(self, text):
        press()
      def flush(self):
        raise RuntimeError('reentrant call')
    sys.stdout = Stream()
    print('x')
  """,
}


def run(code: str, **options) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    **options,
  )


@pytest.mark.parametrize('place', PLACES)
def test_ctrl_c_is_never_dropped(place):
  code = textwrap.dedent(PLACES[place].strip('\n'))
  done = run(f'{BEGIN}{code}\ntime.sleep(60)\n')
  assert (done.returncode, done.stderr) == (130, LINE)


@pytest.mark.parametrize(
  ('name', 'before', 'code'),
  [
    ('SIGTERM', '', 143),
    ('SIGHUP', '', 129),
    ('SIGTERM', 'interrupts.resumable()', 0),
    ('SIGHUP', 'interrupts.resumable()', 0),
    ('SIGINT', 'interrupts.resumable()', 130),
  ],
)
def test_each_signal_has_its_code(name, before, code):
  press = f'os.kill(os.getpid(), signal.{name})'
  done = run(f'{BEGIN}{before}\nprint("said before")\n{press}\ntime.sleep(60)')
  assert done.returncode == code and done.stdout == 'said before\n'
  other = f'stopped by {name}; resume with the same command\n'
  assert done.stderr == (LINE if name == 'SIGINT' else other)


def test_nohup_is_obeyed():
  code = """
signal.signal(signal.SIGHUP, signal.SIG_IGN)
interrupts.end_at_once()
from tlkd_jax.training.signals import StopRequest
os.kill(os.getpid(), signal.SIGHUP)
with StopRequest() as stop:
  os.kill(os.getpid(), signal.SIGHUP)
  assert not stop.requested(1)
print('went on')
"""
  done = run(BEGIN + code)
  assert (done.returncode, done.stdout) == (0, 'went on\n'), done.stderr


def test_the_end_of_the_process_is_not_its_failure():
  code = """
import atexit
atexit.register(press)
class Late:
  def __del__(self, press=press):
    press()
late = Late()
# The last callbacks are called first.
interrupts.end_at_once()
"""
  done = run(BEGIN + code)
  assert (done.returncode, done.stderr) == (0, '')


def test_what_is_half_written_goes_too(tmp_path):
  code = f"""
import pathlib
from tlkd_jax.runtime.atomic import replacing
folder = pathlib.Path({str(tmp_path)!r})
with replacing(folder / 'done.txt') as temporary:
  temporary.write_text('done')
with replacing(folder / 'half.txt') as temporary:
  temporary.write_text('half')
  press()
"""
  assert run(BEGIN + code).returncode == 130
  assert [path.name for path in tmp_path.iterdir()] == ['done.txt']


def run_with(modules: pathlib.Path, command: str):
  """A command for which these modules stand before the installed ones."""
  return subprocess.run(
    [sys.executable, '-m', f'tlkd_jax.{command}'],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(modules)},
    capture_output=True,
    text=True,
    timeout=120,
  )


@pytest.mark.parametrize('command', ['main', 'study', 'data.prepare'])
@pytest.mark.parametrize(
  ('number', 'code', 'line'),
  [
    (signal.SIGINT, 130, LINE),
    (signal.SIGTERM, 143, 'stopped by SIGTERM; resume with the same command\n'),
    (signal.SIGHUP, 129, 'stopped by SIGHUP; resume with the same command\n'),
  ],
)
def test_until_it_is_known_what_a_signal_does_it_waits(
  command, number, code, line, tmp_path
):
  """A module that the handler itself is loaded with presses Ctrl-C."""
  (tmp_path / 'difflib.py').write_text(
    f'import os\nos.kill(os.getpid(), {int(number)})\n'
  )
  done = run_with(tmp_path, command)
  assert (done.returncode, done.stderr) == (code, line)


COMMANDS = ('main', 'study', 'report', 'export', 'models', 'settings')


@pytest.mark.parametrize('command', [*COMMANDS, 'data.prepare'])
def test_every_command_can_be_stopped_while_it_is_loaded(command, tmp_path):
  """Whatever it loads first that takes time presses Ctrl-C instead."""
  for name in ('absl', 'jax', 'numpy'):
    (tmp_path / name).mkdir()
    (tmp_path / name / '__init__.py').write_text(
      'import os, signal, time\n'
      'os.kill(os.getpid(), signal.SIGINT)\n'
      'time.sleep(60)\n'
    )
  done = run_with(tmp_path, command)
  assert (done.returncode, done.stderr) == (130, LINE)


@pytest.mark.parametrize(
  ('program', 'expected'),
  [
    ('tlkd_jax.main', True),
    ('tlkd_jax', True),
    ('-mtlkd_jax.study', True),
    ('/env/bin/tlkd-jax', True),
    ('bin/tlkd-jax-report', True),
    ('tlkd_jaxes.main', False),
    ('train.py', False),
    ('/home/tlkd_jax/train.py', False),
    ('pytest', False),
    ('import tlkd_jax', False),
    ('', False),
  ],
)
def test_other_programs_keep_their_signals(program, expected):
  assert interrupts.is_command(program) is expected


def test_importing_the_package_takes_no_signal():
  code = (
    'import signal, tlkd_jax\n'
    'assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n'
    'assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL\n'
    'assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())'
  )
  done = run(code)
  assert done.returncode == 0, done.stderr


class TestRequests:
  """What the loop of a run makes of signals; here in this process."""

  @pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP'])
  def test_one_asks_and_restores_what_was_there(self, name):
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with StopRequest() as stop:
      assert not stop.requested(1)
      os.kill(os.getpid(), number)
      assert stop.requested(2) and stop.requested(3)
    assert signal.getsignal(number) == before

  @pytest.mark.parametrize('first', ['SIGINT', 'SIGTERM', 'SIGHUP'])
  @pytest.mark.parametrize('second', ['SIGTERM', 'SIGHUP'])
  def test_a_shell_and_a_terminal_may_both_ask(self, first, second):
    with StopRequest() as stop:
      for name in (first, second, second):
        os.kill(os.getpid(), signal.Signals[name])
      assert stop.requested(1)

  @pytest.mark.parametrize('first', ['SIGINT', 'SIGTERM', 'SIGHUP'])
  def test_ctrl_c_does_not_wait_for_another(self, first):
    def ask():
      with StopRequest():
        os.kill(os.getpid(), signal.Signals[first])
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
      ask()

  def test_waiting_is_left_by_an_exception(self):
    def wait(number):
      with interrupts.raised():
        os.kill(os.getpid(), number)
        time.sleep(1)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
      wait(signal.SIGINT)
    for number in (signal.SIGTERM, signal.SIGHUP):
      with pytest.raises(interrupts.Interrupted, match=number.name):
        wait(number)
    assert signal.getsignal(signal.SIGTERM) == before
