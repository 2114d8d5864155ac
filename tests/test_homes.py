"""`~` is a home in every path that a command or a function takes."""

import pytest

import tlkd_jax
from tests import tiny
from tests.test_bad_input import call_main
from tlkd_jax import arms, evaluating, export, inference
from tlkd_jax.report import closing, page
from tlkd_jax.runtime import paths
from tlkd_jax.study import conduct

pytestmark = [
  pytest.mark.usefixtures('tiny_models'),
  # How ml_collections 1.1.0 loads a file.
  pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning'),
]


@pytest.fixture
def home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  return tmp_path


@pytest.mark.parametrize(
  ('given', 'found'),
  [
    ('~/runs/a', '{home}/runs/a'),
    ('~', '{home}'),
    ('./~', '~'),
    ('a/~/b', 'a/~/b'),
    ('', '.'),
  ],
)
def test_expanded(given, found, home):
  assert str(paths.expanded(given)) == found.format(home=home)


def test_no_such_home():
  with pytest.raises(ValueError, match=r'no home folder ~nobody-here is known'):
    paths.expanded('~nobody-here/runs')


def test_workdirs(home, monkeypatch):
  """Of the command, and of the functions."""
  seen = []
  monkeypatch.setattr(arms, 'run', lambda _, root, mesh: seen.append(root))
  monkeypatch.setattr(closing, 'table', lambda *_: '')
  monkeypatch.setattr(
    conduct, 'run', lambda _, root: ([], str(seen.append(root)))
  )
  argv = [*tiny.arguments('tl', None), '--workdir=~/runs/a']
  assert call_main(monkeypatch, *argv) == 0
  tlkd_jax.fine_tune(tiny.make_config('tl'), '~/runs/a')
  tlkd_jax.run_study(tlkd_jax.make_study(), '~/runs/a')
  assert seen == [home / 'runs' / 'a'] * 3


@pytest.mark.parametrize(
  'call',
  [
    lambda: evaluating.evaluate_run('~/no', None),
    lambda: inference.load_predictor('~/no', None),
    lambda: inference.predict_images('a', '~/no', None, None),
    lambda: export.export_run('~/no', 'safetensors', 'a.safetensors'),
    lambda: page.write(['~/no'], '~/out'),
  ],
)
def test_what_is_read(call, home):
  with pytest.raises(Exception, match=f'{home}/no') as error:
    call()
  assert '~' not in str(error.value)


def test_what_is_written(home):
  (home / 'a.png').touch()
  with pytest.raises(Exception, match=f'no such folder {home}/nowhere'):
    inference.predict_images('a', '~/a.png', '~/nowhere/a.csv', None)
