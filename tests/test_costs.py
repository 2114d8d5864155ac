"""TL at the cost of TL+KD: the teacher's multiply-adds, in steps of TL."""

import dataclasses
import json
import math

import pytest

from tests import tiny
from tlkd_jax import arms, protocols
from tlkd_jax.models import describe
from tlkd_jax.runtime import sharding
from tlkd_jax.settings import WrongSettings
from tlkd_jax.training import costs, decoding, finished
from tlkd_jax.training.metric_writers import read_rows

pytestmark = pytest.mark.usefixtures('tiny_models')


def make_config(cache_dir, **changes):
  return tiny.make_config('tl', cache_dir, cost_matched=True, **changes)


@pytest.fixture(scope='module')
def macs():
  """Side -> multiply-adds of (student, teacher) for an image."""

  def of(name, size):
    with tiny.registered():
      return describe.describe(name, size, num_classes=10).macs

  return {
    size: (of('tiny', size), of('tiny_teacher', size)) for size in (16, 32)
  }


# Six steps of 8 of 40 training images; changes -> (images or as much as so
# many that the teacher's fit takes, images that it speaks of).
CASES = {
  'finetuned': ({}, 3 * 6 * 8, 6 * 8),
  'longer': ({'teacher__num_steps': 11}, 3 * 11 * 8, 6 * 8),
  'early': ({'teacher__fit': 'early'}, 3 * 6 * 8, 6 * 8),
  'probed': ({'teacher__fit': 'probed'}, 40 * 5, 6 * 8),
  'crossfitted': (
    {'teacher__fit': 'crossfitted', 'teacher__probe_views': 1},
    40 * 2,
    6 * 8,
  ),
  'crossfitted_finetuned': (
    {
      'teacher__fit': 'crossfitted_finetuned',
      'teacher__probe_folds': 3,
      'teacher__num_steps': 5,
    },
    3 * (3 * 5 * 8),
    3 * (6 * 8),
  ),
  'stored': (
    {'targets__mode': 'cached', 'targets__views': 1},
    3 * 6 * 8,
    40,
  ),
  'views that are not drawn': (
    {'targets__mode': 'cached', 'targets__views': 9},
    3 * 6 * 8,
    6 * 8,
  ),
}


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('size', [16, 32])
def test_the_count_by_hand(case, size, cache_dir, macs):
  changes, fit, says = CASES[case]
  config = make_config(cache_dir, teacher__image_size=size, **changes)
  assert (config.num_steps, config.batch_size) == (6, 8)
  dataset = decoding.load_dataset(config)
  assert len(dataset.splits['train']) == 40
  own, theirs = macs[16][0], macs[size][1]
  cost = costs.count(config, dataset)
  assert cost.teacher_fit == fit * theirs
  assert cost.teacher_says == says * theirs
  assert cost.student_step == 3 * 8 * own
  further = (fit + says) * theirs / (3 * 8 * own)
  assert cost.further_steps == math.ceil(further)
  assert cost.total_steps == 6 + cost.further_steps


def test_a_step_of_the_head_alone_is_one_pass(cache_dir, macs):
  config = make_config(cache_dir, optimizer__train_only='head')
  cost = costs.count(config, decoding.load_dataset(config))
  own, theirs = macs[16]
  assert cost.student_step == 8 * own
  assert cost.teacher_fit == cost.teacher_says == 6 * 8 * theirs


def test_a_run_has_the_steps_and_says_so(cache_dir, tmp_path, caplog):
  config = make_config(cache_dir, log_every_steps=1)
  caplog.set_level('INFO', logger='absl')
  summary = arms.run(config, tmp_path, sharding.make_mesh(1))['tl']
  cost = costs.count(config, decoding.load_dataset(config))
  assert cost.further_steps > 6
  told = {'unit': 'multiply-adds', **dataclasses.asdict(cost)}
  assert summary['cost_matched'] == told
  steps, total = cost.further_steps, cost.total_steps
  assert f': 6 + {steps} = {total} steps' in caplog.text
  rows = [r for r in read_rows(tmp_path / 'metrics.jsonl') if 'loss' in r]
  assert rows[-1]['step'] == total
  # The schedule is that of the longer run.
  assert rows[5]['learning_rate'] > 2 * rows[-1]['learning_rate']
  recorded = json.loads((tmp_path / 'config.json').read_text())
  assert recorded['num_steps'] == 6 and recorded['cost_matched']
  assert arms.run(config, tmp_path, sharding.make_mesh(1))['tl'] == summary
  (tmp_path / 'summary.json').unlink()
  assert f' of {total}' in (finished.unfinished(tmp_path) or '')


@pytest.mark.parametrize(
  ('arm', 'changes', 'problem'),
  [
    ('kd', {}, "cost_matched is True, which gives arm tl .*arm is 'kd'"),
    ('compare', {}, "cost_matched is True, .*arm is 'compare'"),
    ('teacher', {}, "cost_matched is True, .*arm is 'teacher'"),
    ('tl', {'student__fit': 'probed'}, "student.fit is 'probed', and cost_ma"),
    (
      'tl',
      {'teacher__checkpoint': 'runs/a'},
      "teacher.checkpoint is 'runs/a', and cost_matched",
    ),
    (
      'tl',
      {'distillation__more_teachers': ('runs/a',)},
      'distillation.more_teachers is .*, and cost_matched counts',
    ),
    (
      'tl',
      {'distillation__generations': 3},
      'distillation.generations is 3, and cost_matched counts',
    ),
    (
      'tl',
      {'distillation__assistants': ('tiny',)},
      'distillation.assistants is .*, and cost_matched counts',
    ),
    (
      'tl',
      {'distillation__mutual': True},
      'distillation.mutual is True, and cost_matched counts',
    ),
    (
      'tl',
      {
        'distillation__unlabelled': 'folder:x',
        'targets__mode': 'cached',
        'targets__views': 2,
      },
      "distillation.unlabelled is 'folder:x', and cost_matched counts",
    ),
  ],
)
def test_what_it_cannot_count_is_refused(arm, changes, problem):
  with pytest.raises(WrongSettings, match=problem):
    tiny.make_config(arm, cost_matched=True, **changes)


def test_a_probe_before_it_keeps_its_own_steps(tmp_path):
  config = tiny.make_config('tl', cost_matched=True, transfer__probe_steps=2)
  probe, last = protocols.plan(config, tmp_path)
  assert not probe.settings.cost_matched and last.settings.cost_matched
