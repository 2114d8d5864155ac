"""Where configurations are found, and what a command calls itself."""

import os
import pathlib
import signal
import subprocess
import sys
import types

import pytest

from tlkd_jax import settings
from tlkd_jax.runtime import command_line
from tlkd_jax.settings import recorded

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('arg', ['', ':smoke', ':dataset=folder:x,smoke'])
@pytest.mark.parametrize('name', ['configs/kd.py', 'configs/kd', 'kd.py', 'kd'])
def test_a_packaged_configuration_is_found_from_any_folder(
  name, arg, monkeypatch, tmp_path
):
  monkeypatch.chdir(tmp_path)
  expected = f'{ROOT / "configs" / "kd.py"}{arg}'
  assert command_line.find_config(name + arg) == expected


def test_a_file_that_lies_here_comes_first(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'kd.py').touch()
  found = command_line.find_config('configs/kd.py:smoke')
  assert found == 'configs/kd.py:smoke'


@pytest.mark.parametrize(
  'name', ['configs/no.py', 'mine/kd.py', 'no', '', '__init__', '/configs/kd']
)
def test_what_is_neither_here_nor_packaged(name, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(FileNotFoundError) as error:
    command_line.find_config(f'{name}:smoke')
  message = str(error.value)
  assert message.startswith(f'--config {name}: no such file')
  assert message.endswith('compare, kd, qat, study, teacher, tl')


@pytest.fixture
def run(tmp_path) -> pathlib.Path:
  """A run's folder, as far as its configuration goes."""
  folder = tmp_path / 'my runs' / 'kd:1'
  folder.mkdir(parents=True)
  made = settings.make('kd', dataset='folder:a', smoke=True)
  (folder / 'config.json').write_text(settings.to_json(made))
  return folder


@pytest.mark.parametrize('how', ['file', 'folder', 'home'])
def test_a_run_is_a_configuration_to_repeat(how, run, monkeypatch):
  monkeypatch.setenv('HOME', str(run.parents[1]))
  value = {
    'file': f'{run}/config.json',
    'folder': str(run),
    'home': '~/my runs/kd:1/config.json',
  }[how]
  file, _, arg = command_line.find_config(value).partition(':')
  assert pathlib.Path(file) == pathlib.Path(recorded.__file__)
  config = recorded.get_config(arg)
  expected = settings.make('kd', dataset='folder:a', smoke=True)
  assert settings.from_config(config) == expected
  assert config.is_locked


def test_a_run_to_repeat_takes_no_argument(run, tmp_path):
  plain = tmp_path / 'config.json'
  (run / 'config.json').rename(plain)
  with pytest.raises(ValueError, match='takes no argument; .*--config.KEY='):
    command_line.find_config(f'{plain}:smoke')


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"arm": ', 'is damaged'),
    ('[1]', "is no run's config.json"),
    ('{"architecture": "resnet18"}', "is no run's config.json"),
    ('{"arm": "kd", "num_stepz": 1}', "'num_stepz': did you mean num_steps"),
  ],
)
def test_a_file_that_is_no_record_of_a_run(text, message, tmp_path):
  path = tmp_path / 'config.json'
  path.write_text(text)
  with pytest.raises(ValueError, match=message):
    recorded.get_config(str(path))


def test_a_home_in_front_of_a_file(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'mine.py').touch()
  found = command_line.find_config('~/mine.py:dataset=folder:~/x')
  assert found == f'{tmp_path}/mine.py:dataset=folder:~/x'


@pytest.mark.parametrize(
  'arguments',
  [
    ['tlkd_jax.settings'],
    ['tlkd_jax.models', 'resnet18'],
    ['tlkd_jax.main', '--help'],
  ],
  ids=lambda arguments: arguments[0],
)
def test_who_reads_the_output_may_leave(arguments):
  ours, theirs = os.pipe()
  os.close(ours)
  with os.fdopen(theirs) as closed:
    done = subprocess.run(
      [sys.executable, '-m', *arguments],
      cwd=ROOT,
      stdout=closed,
      stderr=subprocess.PIPE,
      text=True,
    )
  assert done.returncode == 141 and not done.stderr


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'utf-8'])
def test_a_name_that_the_output_cannot_hold_is_escaped(encoding):
  code = (
    'from absl import flags\n'
    'from tlkd_jax.runtime import command_line\n'
    "flag = flags.DEFINE_string('x', None, 'x')\n"
    "command_line.run_command(lambda argv: print('\u732b'), flag)"
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env=os.environ | {'PYTHONIOENCODING': encoding},
    capture_output=True,
  )
  shown = '\u732b' if encoding == 'utf-8' else '\\u732b'
  assert done.stdout == f'{shown}\n'.encode(encoding), done.stderr


@pytest.mark.parametrize('why', ['', 'Unable to allocate 9 TiB'])
def test_memory_that_is_not_there_is_a_message(why, capsys):
  def work():
    raise MemoryError(why)

  handler = signal.getsignal(signal.SIGTERM)
  try:
    with pytest.raises(SystemExit) as stop:
      command_line.run_or_fail(work)
  finally:
    signal.signal(signal.SIGTERM, handler)
  assert stop.value.code == 1
  error = capsys.readouterr().err
  assert error.startswith('error: there is not enough memory') and why in error


@pytest.mark.parametrize(
  ('module', 'argv', 'expected'),
  [
    ('tlkd_jax.main', '/x/main.py', 'python -m tlkd_jax.main'),
    ('tlkd_jax.study.__main__', '/x/__main__.py', 'python -m tlkd_jax.study'),
    (None, '/env/bin/tlkd-jax-study', 'tlkd-jax-study'),
  ],
)
def test_the_command_in_use(module, argv, expected, monkeypatch):
  spec = None if module is None else types.SimpleNamespace(name=module)
  main = types.SimpleNamespace(__spec__=spec)
  monkeypatch.setitem(sys.modules, '__main__', main)
  monkeypatch.setattr(sys, 'argv', [argv])
  assert command_line.name() == expected


@pytest.mark.parametrize(
  ('module', 'flag'),
  [
    ('tlkd_jax.main', '--checkpoint'),
    ('tlkd_jax.study', '--jobs'),
    ('tlkd_jax.data.prepare', '--data_dir'),
    ('tlkd_jax.report', '--replicates'),
    ('tlkd_jax.export', '--fold-norm'),
  ],
)
def test_help_is_of_the_command_and_no_mistake(module, flag):
  done = subprocess.run(
    [sys.executable, '-m', module, '--help'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(f'usage: python -m {module} ')
  assert flag in done.stdout
