"""Plans of chains, generations and probes; images without labels."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tlkd_jax import arms, protocols
from tlkd_jax.report import closing
from tlkd_jax.runtime import sharding
from tlkd_jax.training import decoding, inputs

pytestmark = pytest.mark.usefixtures('tiny_models')
ROOT = pathlib.Path('runs/a')


def plan(arm, **changes):
  parts = protocols.plan(tiny.make_config(arm, **changes), ROOT)
  return {
    part.key: (
      str(part.workdir.relative_to(ROOT)),
      part.settings.arm,
      part.settings.student.name,
      part.settings.teacher.name if part.settings.arm == 'kd' else None,
      part.settings.teacher.checkpoint if part.settings.arm == 'kd' else None,
      part.settings.student.checkpoint,
    )
    for part in parts
  }


def test_plain_arms():
  kd = ('kd', 'tiny', 'tiny_teacher', 'runs/a/teacher', None)
  teacher = ('teacher', 'teacher', 'tiny', None, None, None)
  assert plan('tl') == {'tl': ('.', 'tl', 'tiny', None, None, None)}
  assert plan('kd') == {'teacher': teacher, 'kd': ('.', *kd)}
  assert plan('compare') == {
    'teacher': teacher,
    'tl': ('tl', 'tl', 'tiny', None, None, None),
    'kd': ('kd', *kd),
  }


def test_assistants_then_generations():
  found = plan(
    'compare',
    distillation__assistants=('resnet50', 'resnet18'),
    distillation__generations=3,
    teacher__image_size=24,
  )
  places = [f'runs/a/{name}' for name in found if name != 'tl']
  assert list(found) == [
    *('teacher', 'tl', 'assistant1', 'assistant2'),
    *('generation1', 'generation2', 'kd'),
  ]
  rest = {k: v for k, v in found.items() if k not in ('teacher', 'tl')}
  chain = [(v[2], v[3], v[4]) for v in rest.values()]
  assert chain == [
    ('resnet50', 'tiny_teacher', places[0]),
    ('resnet18', 'resnet50', places[1]),
    ('tiny', 'resnet18', places[2]),
    ('tiny', 'tiny', places[3]),
    ('tiny', 'tiny', places[4]),
  ]
  parts = protocols.plan(
    tiny.make_config(
      'kd', distillation__assistants=('resnet50',), teacher__image_size=24
    ),
    ROOT,
  )
  sizes = [p.settings.teacher.image_size for p in parts if p.key != 'teacher']
  assert sizes == [24, 0]


def test_a_probe_comes_before_the_students_that_start_from_it():
  changes = {'transfer__probe_steps': 7, 'transfer__l2_sp': 0.1}
  parts = protocols.plan(tiny.make_config('compare', **changes), ROOT)
  assert [part.key for part in parts] == ['teacher', 'probe', 'tl', 'kd']
  probe = parts[1].settings
  assert (probe.arm, probe.optimizer.train_only, probe.num_steps) == (
    *('tl', 'head'),
    7,
  )
  assert probe.student.checkpoint is None and probe.transfer.l2_sp == 0
  for part in parts[2:]:
    assert part.settings.student.checkpoint == 'runs/a/probe'
    assert part.settings.optimizer.train_only == 'all'
    assert part.settings.transfer.l2_sp == 0.1


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'distillation__generations': 0}, 'generations is 0'),
    ({'transfer__probe_steps': -1}, 'probe_steps is -1'),
    (
      {
        'distillation__generations': 2,
        'distillation__more_teachers': ('runs/b',),
      },
      'more_teachers cannot be combined',
    ),
  ],
)
def test_protocols_that_exclude_each_other(changes, message):
  with pytest.raises(ValueError, match=message):
    plan('kd', **changes)


def test_a_chain_runs_and_is_not_run_twice(
  tiny_models, compare_run, cache_dir, tmp_path
):
  config = tiny.make_config(
    'kd',
    cache_dir,
    teacher__checkpoint=str(compare_run / 'teacher'),
    distillation__assistants=('tiny_teacher',),
    distillation__generations=2,
    transfer__probe_steps=1,
    num_steps=1,
  )
  mesh = sharding.make_mesh(1)
  summaries = arms.run(config, tmp_path, mesh)
  parts = ['probe', 'assistant1', 'generation1', 'kd']
  assert list(summaries) == parts
  told = json.loads((tmp_path / 'config.json').read_text())
  assert told['teacher']['checkpoint'] == str(tmp_path / 'generation1')
  # The last student's teacher is the generation before, as it was evaluated.
  assert (
    summaries['kd']['teacher']['test']['nll']
    == summaries['generation1']['student']['test']['nll']
  )
  folders = {
    part.key: part.workdir for part in protocols.plan(config, tmp_path)
  }
  text = closing.table(summaries, folders)
  lines = [line.split('  ')[0] for line in text.splitlines()]
  assert {'teacher', 'linear probe', 'assistant 1', 'TL+KD'} <= set(lines)
  times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.npz')}
  assert arms.run(config, tmp_path, mesh) == summaries
  assert times == {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.npz')}


@pytest.fixture
def pictures(tmp_path):
  folder = tmp_path / 'pictures'
  for number in range(5):
    path = folder / str(number % 2) / f'{number}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (20, 24), (40 * number,) * 3).save(path)
  return folder


def test_unlabelled_images_join_the_training_images(pictures, cache_dir):
  changes = {'distillation__unlabelled': f'folder:{pictures}'}
  config = tiny.make_config('kd', cache_dir, **changes)
  plain = decoding.load_dataset(config)
  dataset = inputs.training_data(config, plain)
  own, split = plain.splits['train'], dataset.splits['train']
  count = len(own)
  assert len(split) == count + 5
  np.testing.assert_array_equal(split.images[:count], own.images)
  np.testing.assert_array_equal(split.labels[:count], own.labels)
  assert (split.labels[count:] == -1).all()
  assert len(set(split.indices.tolist())) == count + 5
  # Sorted by path: those of folder 0 come first.
  means = split.images[count:].mean((1, 2, 3))
  np.testing.assert_allclose(means, [0, 80, 160, 40, 120])
  assert dataset.splits['test'] is plain.splits['test']
  alone = tiny.make_config('tl', cache_dir, **changes)
  assert inputs.training_data(alone, plain) is plain


def test_a_run_on_unlabelled_images(
  tiny_models, pictures, compare_run, cache_dir, tmp_path
):
  config = tiny.make_config(
    'kd',
    cache_dir,
    teacher__checkpoint=str(compare_run / 'teacher'),
    distillation__unlabelled=f'folder:{pictures}',
    num_steps=2,
  )
  summary = arms.run(config, tmp_path / 'run', sharding.make_mesh(1))['kd']
  assert summary['num_train'] == 40
  assert any('5 images' in note for note in summary['notes'])


@pytest.mark.parametrize(
  ('place', 'error', 'message'),
  [
    ('folder:nowhere', FileNotFoundError, 'no folder nowhere'),
    ('folder:configs', ValueError, 'no images in configs'),
  ],
)
def test_no_images_there(place, error, message, cache_dir):
  config = tiny.make_config('kd', cache_dir, distillation__unlabelled=place)
  dataset = decoding.load_dataset(tiny.make_config('kd', cache_dir))
  with pytest.raises(error, match=message):
    inputs.training_data(config, dataset)
