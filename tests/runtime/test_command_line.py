"""Where configurations are found, and what a command calls itself."""

import pathlib
import subprocess
import sys
import types

import pytest

from tlkd_jax.runtime import command_line

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
  assert message.endswith('compare, kd, study, teacher, tl')


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
