"""A stage on images without labels alone, before TL or TL+KD."""

import json
import pathlib

import numpy as np
import pytest

from tests import tiny
from tests.test_resume import assert_same_run
from tests.test_without_labels import permute_hidden_labels
from tests.workdirs import arrays
from tlkd_jax import arms, protocols
from tlkd_jax.report import closing, runs
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import Interrupted
from tlkd_jax.settings import WrongSettings, with_values
from tlkd_jax.training import decoding, inputs, loop, says, shares
from tlkd_jax.training.metric_writers import read_rows

pytestmark = pytest.mark.usefixtures('tiny_models')

ROOT = pathlib.Path('runs/a')
STAGE = {
  'distillation__unlabelled': 'rest',
  'distillation__pretrain_steps': 4,
}


def plan(arm, **changes):
  return protocols.plan(tiny.make_config(arm, **STAGE | changes), ROOT)


@pytest.mark.parametrize(
  ('arm', 'changes', 'keys'),
  [
    ('tl', {}, ['teacher', 'pretrain', 'tl']),
    ('kd', {}, ['teacher', 'pretrain', 'kd']),
    ('compare', {}, ['teacher', 'pretrain', 'tl', 'kd']),
    ('tl', {'teacher__checkpoint': 'runs/b'}, ['pretrain', 'tl']),
    ('kd', {'teacher__checkpoint': 'runs/b'}, ['pretrain', 'kd']),
    (
      'compare',
      {'transfer__probe_steps': 2},
      ['teacher', 'pretrain', 'probe', 'tl', 'kd'],
    ),
    (
      'kd',
      {'distillation__generations': 2},
      ['teacher', 'pretrain', 'generation1', 'kd'],
    ),
    ('tl', {'student__fit': 'fixmatch'}, ['teacher', 'pretrain', 'tl']),
    ('tl', {'student__fit': 'probed'}, ['teacher', 'pretrain', 'tl']),
  ],
)
def test_the_stage_comes_before_the_students(arm, changes, keys):
  parts = {part.key: part for part in plan(arm, **changes)}
  assert list(parts) == keys
  stage = parts.pop('pretrain')
  parts.pop('teacher', None)
  assert stage.workdir == ROOT / 'pretrain'
  assert (stage.settings.arm, stage.settings.num_steps) == ('kd', 4)
  assert shares.alone(stage.settings)
  assert stage.settings.student.checkpoint is None
  teacher = changes.get('teacher__checkpoint', 'runs/a/teacher')
  assert stage.settings.teacher.checkpoint == teacher
  section = stage.settings.distillation
  assert (section.loss, section.extra) == ('cosine', {})
  first = next(iter(parts.values()))
  assert first.settings.student.checkpoint == 'runs/a/pretrain'
  for part in parts.values():
    assert not part.settings.distillation.pretrain_steps
    assert not shares.alone(part.settings)
    # TL+KD itself is what was asked for.
    if part.key == 'kd':
      assert part.settings.distillation.loss == 'kd'
      assert part.settings.teacher.checkpoint in (teacher, 'runs/a/generation1')
  # What a run has recorded, taken as it is, is that run.
  for part in (stage, *parts.values()):
    (again,) = protocols.plan(part.settings, part.workdir)
    assert again.settings == part.settings


def test_the_stage_has_a_loss_of_its_own():
  changes = {
    'loss': 'kd+at',
    'distillation__schedule': 'cosine',
    'distillation__warmup_fraction': 0.5,
    'distillation__soft_weight': 7.0,
    'distillation__finish_fraction': 0.25,
    'distillation__pretrain_loss': 'fitnet',
    'distillation__pretrain_options': {'stages': ('stage2',)},
    'optimizer__train_only': 'head',
    'transfer__l2_sp': 0.1,
  }
  _, stage, last = plan('kd', **changes)
  section = stage.settings.distillation
  assert (section.loss, dict(section.options)) == (
    *('fitnet', {'stages': ('stage2',)}),
  )
  assert section.soft_weight == 1.0 and not section.extra
  assert stage.settings.optimizer.train_only == 'all'
  assert stage.settings.transfer.l2_sp == 0
  section = last.settings.distillation
  assert (section.loss, list(section.extra)) == ('kd', ['at'])
  assert last.settings.transfer.l2_sp == 0.1
  assert last.settings.optimizer.train_only == 'head'


@pytest.mark.parametrize(
  ('changes', 'start'),
  [
    ({'distillation__unlabelled': ''}, 'distillation.pretrain_steps is 4, of'),
    ({'distillation__mutual': True}, 'distillation.mutual is True, and before'),
    (
      {'distillation__self_training': 'hard'},
      "distillation.self_training is 'hard', and before distillation.pretrain",
    ),
    ({'transfer__lwf': 1.0}, 'transfer.lwf is 1.0, and before'),
    (
      {'distillation__pretrain_loss': 'crd'},
      "distillation.pretrain_loss is 'crd', which needs labels",
    ),
    (
      {'distillation__pretrain_loss': 'l2sp'},
      "distillation.pretrain_loss is 'l2sp', which compares a student with its",
    ),
    (
      {'distillation__pretrain_options': {'embeding': 'mean'}},
      "distillation.pretrain_options: unknown hyperparameter of 'cosine'",
    ),
    (
      {'distillation__pretrain_options': {'embedding': 'mean'}},
      "distillation.pretrain_options.embedding is 'mean', which tiny_teacher",
    ),
    (
      {
        'distillation__pretrain_loss': 'at',
        'distillation__pretrain_options': {'stages': ('stage9',)},
      },
      "distillation.pretrain_options.stages names 'stage9'; tiny has stage1",
    ),
    (
      {'distillation__pretrain_loss': 'at', 'targets__mode': 'cached'}
      | {'targets__views': 2},
      "targets.mode is 'cached', and distillation.pretrain_loss 'at'",
    ),
    (
      {'optimizer__accumulate_steps': 5},
      'optimizer.accumulate_steps is 5, so that 4 steps (distillation.pretrain',
    ),
  ],
)
def test_what_goes_with_no_such_stage_is_one_line(changes, start):
  # Co-Tuning and LwF want weights with a head; the optimizer more steps.
  base = {'student__weights': 'pretrained', 'num_steps': 6}
  for arm in ('tl', 'kd'):
    with pytest.raises(WrongSettings) as error:
      tiny.make_config(arm, **base | STAGE | changes)
    (line,) = error.value.problems
    assert line.startswith(start), line


def test_batches_are_of_images_without_labels_alone(cache_dir):
  config = tiny.make_config('kd', cache_dir, **STAGE)
  stage = protocols.plan(config, ROOT)[1].settings
  labelled = decoding.load_dataset(config)
  dataset = inputs.training_data(stage, labelled)
  batches = inputs.train_batches(stage, dataset, 3, {})
  seen = [next(batches) for _ in range(3)]
  batches.close()
  assert all((batch['label'] == -1).all() for batch in seen)
  index = np.concatenate([batch['index'] for batch in seen])
  assert not np.isin(index, labelled.splits['train'].indices).any()
  assert np.unique(index).size == index.size == 24
  (line,) = shares.about(stage, dataset)
  assert line.startswith('each batch is of 8 of ') and 'no label' in line
  # A weight above 0, or an end with labels, needs some.
  for change in (
    {'distillation.hard_weight': 0.1},
    {'distillation.taught': 'all'},
    {'distillation.unlabelled': '', 'distillation.taught': 'all'},
  ):
    assert not shares.alone(with_values(stage, change))


@pytest.fixture(scope='module')
def whole(cache_dir, compare_run, tmp_path_factory):
  """A plan of TL that ran to its end without a stop, and its settings."""
  workdir = tmp_path_factory.mktemp('whole')
  config = tiny.make_config(
    'tl',
    cache_dir,
    teacher__checkpoint=str(compare_run / 'teacher'),
    num_steps=4,
    eval_every_steps=2,
    log_every_steps=2,
    augment__crop='random_resized',
    batch_norm='train',
    **STAGE,
  )
  with tiny.registered(), pytest.MonkeyPatch.context() as patch:
    patch.setattr(says, 'measure', lambda *_: {})
    summaries = arms.run(config, workdir, sharding.make_mesh(1))
  return config, workdir, summaries


def test_stage_and_fine_tuning_are_one_plan(whole):
  config, workdir, summaries = whole
  assert list(summaries) == ['pretrain', 'tl']
  stage = summaries['pretrain']
  # Of equal validation, as without a head all is, the last step is kept.
  assert stage['without_labels'] and stage['best_step'] == 4
  assert 'without_labels' not in summaries['tl']
  rows = read_rows(workdir / 'pretrain' / 'metrics.jsonl')
  soft = [row['soft_loss'] for row in rows if row['split'] == 'train']
  assert len(soft) == 2 and soft[1] < soft[0] < 2
  hard = [row['hard_loss'] for row in rows if row['split'] == 'train']
  assert hard == [0.0, 0.0]
  told = json.loads((workdir / 'config.json').read_text())
  assert told['student']['checkpoint'] == str(workdir / 'pretrain')
  text = closing.table(summaries, {n: workdir / n for n in summaries})
  assert 'stage without labels' in text and 'TL+KD' not in text
  found, notes = runs.collect([workdir])
  assert [run.path for run in found] == [workdir]
  assert any('is a stage without labels' in note for note in notes)


def test_a_stopped_plan_goes_on(whole, tmp_path, monkeypatch):
  """Stopped in the stage, and again after it."""
  config, workdir, _ = whole
  mesh = sharding.make_mesh(1)
  monkeypatch.setattr(says, 'measure', lambda *_: {})
  current, start = [], loop._start

  def remember(run, checkpoints):
    current.append(run.workdir)
    return start(run, checkpoints)

  monkeypatch.setattr(loop, '_start', remember)
  for place in ('pretrain', '.'):

    def requested(self, step, place=place):
      return step == 1 and current[-1] == tmp_path / place

    with monkeypatch.context() as patch:
      patch.setattr(loop.StopRequest, 'requested', requested)
      with pytest.raises(Interrupted):
        arms.run(config, tmp_path, mesh)
    done = (tmp_path / 'pretrain' / 'summary.json').exists()
    assert done == (place == '.')
  arms.run(config, tmp_path, mesh)
  for name in ('pretrain', '.'):
    assert_same_run(workdir / name, tmp_path / name)


def test_hidden_labels_have_no_influence(whole, tmp_path, monkeypatch):
  config, workdir, _ = whole
  monkeypatch.setattr(says, 'measure', lambda *_: {})
  permute_hidden_labels(monkeypatch, 1)
  arms.run(config, tmp_path, sharding.make_mesh(1))
  for name in ('pretrain', '.'):
    for kind in ('latest', 'best'):
      left = arrays(workdir / name, kind)
      for key, value in arrays(tmp_path / name, kind).items():
        np.testing.assert_array_equal(value, left[key], err_msg=key)


@pytest.mark.slow
def test_both_arms_start_from_what_a_vit_taught_without_labels(
  cache_dir, tmp_path
):
  config = tiny.make_config(
    'compare',
    cache_dir,
    loss='kd+at',
    teacher__name='tiny_vit',
    teacher__fit='probed',
    num_steps=4,
    distillation__pretrain_options={'embedding': 'mean'},
    **STAGE,
  )
  summaries = arms.run(config, tmp_path, sharding.make_mesh(1))
  assert list(summaries) == ['teacher', 'pretrain', 'tl', 'kd']
  for name in ('tl', 'kd'):
    told = json.loads((tmp_path / name / 'config.json').read_text())
    assert told['student']['checkpoint'] == str(tmp_path / 'pretrain')
    assert 0 <= summaries[name]['student']['test']['top1'] <= 1
  assert summaries['pretrain']['num_unlabelled'] > 1000
  text = closing.table(summaries, {n: tmp_path / n for n in summaries})
  assert 'TL+KD minus TL on test' in text
