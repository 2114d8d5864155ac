"""The package as it is installed: a wheel, a fresh environment, any folder.

Nothing is fetched: the environment sees the packages of the one that runs the
tests through a .pth file, but not this checkout.
"""

import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

from tests import tiny
from tlkd_jax import export_run

ROOT = pathlib.Path(__file__).resolve().parent.parent
LEAST_SETUPTOOLS = 77
BUILT_FROM = (
  'pyproject.toml',
  'setup.py',
  'README.md',
  'LICENSE',
  'requirements.txt',
  'tlkd_jax',
  'configs',
)

# Makes the tiny models of tests/tiny.py, with weights, part of the package.
TINY = """
import dataclasses
import os

if 'TINY_WEIGHTS' in os.environ:
  import tiny
  from tlkd_jax import models

  opened = tiny.registered()
  opened.__enter__()
  models.MODELS['tiny'] = dataclasses.replace(
    tiny.SPECS['tiny'], weights=os.environ['TINY_WEIGHTS']
  )
"""


def check_tools() -> None:
  """Skips where the wheel cannot be built, and says why."""
  if importlib.util.find_spec('pip') is None:
    pytest.skip('pip is not installed')
  try:
    found = importlib.metadata.version('setuptools')
  except importlib.metadata.PackageNotFoundError:
    found = '0'
  if int(found.partition('.')[0]) < LEAST_SETUPTOOLS:
    pytest.skip(f'setuptools is {found}; {LEAST_SETUPTOOLS} builds the wheel')


def pip(*arguments) -> None:
  done = subprocess.run(
    [sys.executable, '-m', 'pip', '--disable-pip-version-check']
    + [str(argument) for argument in arguments],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope='module')
def sources(tmp_path_factory) -> pathlib.Path:
  """A copy: a build leaves files beside what it builds."""
  check_tools()
  folder = tmp_path_factory.mktemp('sources')
  ignored = shutil.ignore_patterns('__pycache__')
  for name in BUILT_FROM:
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    else:
      shutil.copy(ROOT / name, folder / name)
  return folder


@pytest.fixture(scope='module')
def wheel(sources, tmp_path_factory) -> pathlib.Path:
  out = tmp_path_factory.mktemp('dist')
  offline = ('--no-deps', '--no-build-isolation', '--no-index')
  pip('wheel', *offline, '--wheel-dir', out, sources)
  (file,) = out.iterdir()
  return file


def make_environment(folder: pathlib.Path) -> pathlib.Path:
  """An environment without pip, beside the packages of this one."""
  venv.create(folder, with_pip=False)
  (own,) = folder.glob('lib/python*/site-packages')
  outer = {sysconfig.get_paths()[name] for name in ('purelib', 'platlib')}
  # Paths alone: what is installed there to be edited stays out.
  (own / 'outer.pth').write_text('\n'.join(sorted(outer)) + '\n')
  shutil.copy(ROOT / 'tests' / 'tiny.py', own / 'tiny.py')
  (own / 'sitecustomize.py').write_text(TINY)
  return folder


@pytest.fixture(scope='module')
def environment(wheel, tmp_path_factory) -> pathlib.Path:
  folder = make_environment(tmp_path_factory.mktemp('installed') / 'env')
  python = folder / 'bin' / 'python'
  pip('--python', python, 'install', '--no-deps', '--no-index', wheel)
  return folder


@pytest.fixture(scope='module')
def weights(compare_run, tmp_path_factory) -> pathlib.Path:
  """A file of weights for the tiny model."""
  out = tmp_path_factory.mktemp('weights') / 'tiny.safetensors'
  with tiny.registered():
    export_run(compare_run / 'tl', 'safetensors', out)
  return out


@pytest.fixture
def call(environment, session_dir, tmp_path):
  """Runs a command of the environment in an empty folder; returns stdout."""

  def run(command, *arguments, code=0, weights=None) -> str:
    kept = {
      key: value
      for key, value in os.environ.items()
      if not key.startswith(('PYTHON', 'JAX_'))
    }
    kept['XDG_CACHE_HOME'] = str(session_dir / 'installed_cache')
    if weights is not None:
      kept['TINY_WEIGHTS'] = str(weights)
    done = subprocess.run(
      [environment / 'bin' / command, *arguments],
      cwd=tmp_path,
      env=kept | {'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
      timeout=900,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr

  return run


def test_the_wheel_holds_the_package_and_its_configurations(wheel):
  expected = {
    str(path.relative_to(ROOT)) for path in (ROOT / 'tlkd_jax').rglob('*.py')
  }
  expected |= {f'tlkd_jax/configs/{p.name}' for p in ROOT.glob('configs/*.py')}
  found = set(zipfile.ZipFile(wheel).namelist())
  assert {name for name in found if '.dist-info/' not in name} == expected


@pytest.mark.parametrize(
  'name', ['', '-study', '-report', '-export', '-prepare']
)
def test_help_names_the_command(name, call):
  assert call(f'tlkd-jax{name}', '--help').startswith(f'usage: tlkd-jax{name} ')


def test_a_configuration_that_is_neither_here_nor_packaged(call):
  message = call('tlkd-jax', '--config', 'configs/no.py', code=2)
  assert message.startswith('error: --config configs/no.py: no such file')
  assert message.endswith('compare, kd, qat, study, teacher, tl\n')


def test_a_run_in_another_folder(call, weights, tmp_path):
  out = call(
    'tlkd-jax',
    # As in the README's lines, which compile the same programs.
    *('--config', 'configs/kd.py:smoke,student=tiny', '--workdir=run'),
    weights=weights,
  )
  assert 'TL+KD' in out
  assert (tmp_path / 'run' / 'summary.json').exists()


@pytest.mark.slow
def test_workers_of_a_study_are_of_what_is_installed(call, tmp_path):
  """Not of a checkout in whose folder the command is called."""
  (tmp_path / 'tlkd_jax').mkdir()
  (tmp_path / 'tlkd_jax' / '__init__.py').write_text('raise SystemExit(7)\n')
  error = call(
    'tlkd-jax-study',
    *('--config', 'study:smoke', '--jobs=2', '--workdir=study'),
    *('--config.study.run_arms=("tl",)', '--config.study.sizes=(2,)'),
    *('--config.study.seeds=1', '--config.student.weights=none.pth'),
    code=1,
  )
  # One of them has begun it.
  assert re.search(
    'cells without a result:\\n  [A-Z][A-Za-z]*Error: .*none.pth', error
  )
  assert error.rstrip().endswith(': digits/2/tl/seed0')
  assert len(list((tmp_path / 'study' / 'logs').iterdir())) == 2


def readme_lines() -> str:
  """The Python of README.md."""
  blocks = re.findall(
    r'^```python\n(.*?)^```', (ROOT / 'README.md').read_text(), re.M | re.S
  )
  assert len(blocks) == 1 and len(blocks[0].splitlines()) <= 12
  return blocks[0]


def check_readme(out: str, folder: pathlib.Path) -> None:
  for text in ('top-1', 'TL+KD', 'image 0: '):
    assert text in out
  assert (folder / 'student.safetensors.json').exists()


def test_the_lines_of_the_readme(call, environment, weights, tmp_path):
  """With the tiny model as student and teacher."""
  lines = readme_lines()
  code = lines.replace('smoke=True', "smoke=True, student='tiny'")
  assert code != lines
  place = '\nprint(tlkd_jax.__file__)\n'
  out = call('python', '-c', code + place, weights=weights)
  check_readme(out, tmp_path)
  assert out.splitlines()[-1].startswith(f'{environment}/')


@pytest.mark.slow
def test_the_lines_of_the_readme_as_they_stand(call, tmp_path):
  check_readme(call('python', '-c', readme_lines()), tmp_path)


def test_it_can_be_installed_to_be_edited(sources, tmp_path):
  folder = make_environment(tmp_path / 'env')
  offline = ('--no-deps', '--no-index', '--no-build-isolation')
  python = folder / 'bin' / 'python'
  pip('--python', python, 'install', *offline, '--editable', sources)
  done = subprocess.run(
    [folder / 'bin' / 'tlkd-jax', '--config=configs/kd.py:smok'],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert "unknown config argument 'smok'" in done.stderr
