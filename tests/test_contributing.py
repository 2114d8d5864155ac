"""The loss that CONTRIBUTING.md adds works everywhere, as it stands there."""

import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.workdirs import arrays
from tlkd_jax import arms, losses
from tlkd_jax.losses import features
from tlkd_jax.runtime import sharding
from tlkd_jax.settings import StudyArm
from tlkd_jax.study.arms import make_arms
from tlkd_jax.training import loop, targets
from tlkd_jax.training.lessons import make_objective
from tlkd_jax.training.metric_writers import read_rows

ROOT = pathlib.Path(__file__).resolve().parent.parent
FUNCTION, RECORD = 'tlkd_jax/losses/features.py', 'tlkd_jax/losses/__init__.py'


def read_diff() -> dict[str, list[str]]:
  """File -> the lines of the diff on it, with their first character."""
  text = (ROOT / 'CONTRIBUTING.md').read_text()
  block = text.split('```diff\n')[1].split('```')[0]
  files = block.split('--- a/')[1:]
  return {(lines := part.splitlines())[0]: lines[2:] for part in files}


def added(lines: list[str]) -> str:
  return '\n'.join(line[1:] for line in lines if line.startswith('+'))


@pytest.fixture
def l1(monkeypatch):
  """The record, in LOSSES for the time of a test."""
  diff = read_diff()
  names = dict(vars(features))
  exec(added(diff[FUNCTION]), names)
  names = vars(losses) | {'features': types.SimpleNamespace(**names)}
  ((name, record),) = eval(f'{{{added(diff[RECORD])}}}', names).items()
  assert name == 'l1'
  monkeypatch.setitem(losses.LOSSES, name, record)
  return record


def test_the_diff_is_of_these_files():
  diff = read_diff()
  assert list(diff) == [FUNCTION, RECORD]
  context = [line[1:] for line in diff[RECORD] if line.startswith(' ')]
  assert len(context) == 2
  assert '\n'.join(context) in (ROOT / RECORD).read_text()


def test_its_value(l1):
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(2, 4, 6)).astype(np.float32)
  sides = {'pre_logits': student}, {'pre_logits': teacher}
  expected = np.abs(student - teacher).mean()
  value, memory = losses.compute('l1', *sides, None)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  assert memory == {}
  wider = {'pre_logits': jnp.ones((4, 9))}
  extras = losses.init_extras('l1', jax.random.key(0), sides[0], wider, 4)
  assert extras['projector']['pre_logits']['kernel'].shape == (6, 9)


def test_it_is_an_arm_of_the_study_of_methods(l1):
  assert make_arms('methods', 32)['l1'] == StudyArm(
    'kd', 'l1', ('teacher',), {'distillation.loss': 'l1'}
  )


@pytest.mark.usefixtures('tiny_models')
def test_it_learns_from_stored_targets(
  l1, compare_run, cache_dir, tmp_path, monkeypatch
):
  """Bitwise as with the teacher in the step."""
  monkeypatch.setattr(loop, 'finish', lambda *_: {})
  found = {}
  for mode in ('online', 'cached'):
    config = tiny.make_config(
      'kd',
      cache_dir,
      loss='l1',
      num_steps=3,
      teacher__checkpoint=str(compare_run / 'teacher'),
      targets__mode=mode,
      targets__views=2,
      targets__dtype='float32',
      targets__dir=str(tmp_path / 'targets'),
    )
    read = targets.outputs_read(make_objective(config, None, guided=True))
    assert read == ('logits', 'pre_logits')
    arms.run(config, tmp_path / mode, sharding.make_mesh())
    rows = read_rows(tmp_path / mode / 'metrics.jsonl')
    soft = [row['soft_loss'] for row in rows if 'soft_loss' in row]
    found[mode] = soft, arrays(tmp_path / mode)
  assert found['online'][0] == found['cached'][0] and found['online'][0]
  for name, value in found['online'][1].items():
    np.testing.assert_array_equal(found['cached'][1][name], value)
