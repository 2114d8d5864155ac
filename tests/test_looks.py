"""Each network's images are those that were cut from the files for it."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.workdirs import change_description
from tlkd_jax import arms, evaluating
from tlkd_jax.data import Look, augment, pipeline
from tlkd_jax.evaluation import evaluate
from tlkd_jax.runtime import sharding
from tlkd_jax.study.cells import Loader
from tlkd_jax.training import decoding, drawing, inputs, networks, showing

pytestmark = pytest.mark.usefixtures('tiny_models')

# Of digits, whose crop is 1, for the student of tests/tiny.py.
OWN = Look(16, 1.0, 'bicubic')
THEIRS = Look(24, 0.8, 'lanczos')


@pytest.fixture(scope='module')
def teacher(compare_run, tmp_path_factory):
  """A finished teacher that says that it saw other images."""
  folder = tmp_path_factory.mktemp('looks') / 'teacher'
  shutil.copytree(compare_run / 'teacher', folder)
  change_description(folder, **dataclasses.asdict(THEIRS))
  return str(folder)


CASES = [
  # Fine-tuned here: what the settings say, else as the student's.
  ('tl', {'teacher__image_size': 32}, [OWN]),
  ('kd', {}, [OWN]),
  ('kd', {'teacher__image_size': 32}, [OWN, Look(32, 1.0, 'bicubic')]),
  ('compare', {'teacher__crop': 0.5}, [OWN, Look(16, 0.5, 'bicubic')]),
  ('teacher', {'teacher__image_size': 32}, [Look(32, 1.0, 'bicubic')]),
  ('kd', {'data__crop': 0.9}, [Look(16, 0.9, 'bicubic')]),
  # Finished: its own, where the settings leave that open.
  ('kd', {'teacher__checkpoint': ''}, [OWN, THEIRS]),
  ('compare', {'teacher__checkpoint': ''}, [OWN, THEIRS]),
  (
    'kd',
    {'teacher__checkpoint': '', 'data__interpolation': 'box'},
    [Look(16, 1.0, 'box'), THEIRS],
  ),
  (
    'kd',
    {'teacher__checkpoint': '', 'teacher__image_size': 16},
    [OWN, Look(16, 0.8, 'lanczos')],
  ),
  (
    'kd',
    {
      'teacher__checkpoint': '',
      'teacher__image_size': 16,
      'teacher__crop': 1.0,
      'teacher__interpolation': 'bicubic',
    },
    [OWN],
  ),
  ('kd', {'distillation__more_teachers': ('',)}, [OWN, THEIRS]),
  # A peer is not finished.
  (
    'kd',
    {
      'teacher__checkpoint': '',
      'distillation__mutual': True,
      'teacher__image_size': 8,
    },
    [OWN, Look(8, 1.0, 'bicubic')],
  ),
]


@pytest.mark.parametrize(('arm', 'changes', 'expected'), CASES)
def test_the_looks_of_a_run(arm, changes, expected, teacher):
  named = {'': teacher, ('',): (teacher,)}
  changes = {
    key: named[value] if value in named else value
    for key, value in changes.items()
  }
  assert networks.looks(tiny.make_config(arm, **changes)) == tuple(expected)


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    ({}, ['float32', 'float32']),
    ({'compute_dtype': 'bfloat16'}, ['bfloat16', 'bfloat16']),
    ({'teacher__compute_dtype': 'bfloat16'}, ['float32', 'bfloat16']),
    (
      {'compute_dtype': 'bfloat16', 'teacher__compute_dtype': 'float32'},
      ['bfloat16', 'float32'],
    ),
  ],
)
def test_a_teacher_may_compute_in_another_precision(changes, expected, teacher):
  config = tiny.make_config('kd', teacher__checkpoint=teacher, **changes)
  names = [str(i) for i in range(10)]
  (guide,) = networks.load_teachers(config, names).values()
  (student,) = networks.load_learners(config, names).values()
  dtypes = []
  for loaded in (student, guide):
    images = jax.eval_shape(
      loaded.network.prepare, jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    )
    outputs, _ = jax.eval_shape(
      loaded.network.model.apply, loaded.params, loaded.model_state, images
    )
    assert outputs['logits'].dtype == jnp.float32
    dtypes.append(outputs['pre_logits'].dtype.name)
  assert dtypes == expected


def assert_equal(one, other):
  for split in ('train', 'validation', 'test'):
    a, b = one.splits[split], other.splits[split]
    for name in ('images', 'labels', 'indices'):
      np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.names == b.names


def test_a_students_pixels_do_not_depend_on_its_teacher(cache_dir, teacher):
  alone = decoding.load_dataset(tiny.make_config('tl', cache_dir))
  assert alone.look == OWN and not alone.others
  for changes in (
    {'teacher__image_size': 24},
    {'teacher__checkpoint': teacher},
  ):
    guided = decoding.load_dataset(tiny.make_config('kd', cache_dir, **changes))
    assert_equal(guided, alone)
    (other,) = guided.others
    assert guided.seen(other.look) is other
    assert other.splits['test'].images.shape == (40, 24, 24, 3)
    for split in ('train', 'validation', 'test'):
      assert guided.splits[split].names == other.splits[split].names


def test_a_teacher_in_another_run_sees_what_it_saw_in_its_own(
  cache_dir, teacher
):
  taught = tiny.make_config('teacher', cache_dir, teacher__image_size=24)
  own = decoding.load_dataset(taught)
  guided = tiny.make_config('kd', cache_dir, teacher__image_size=24)
  assert_equal(decoding.load_dataset(guided).seen(own.look), own)


def test_cells_of_a_study_share_what_is_decoded(cache_dir, monkeypatch):
  decoded, load_seen = [], decoding.load_seen

  def count(settings, look, *more):
    decoded.append(look.image_size)
    return load_seen(settings, look, *more)

  monkeypatch.setattr(decoding, 'load_seen', count)
  load = Loader()
  for arm, size, seed in (
    ('tl', 0, 0),
    ('kd', 0, 0),
    ('kd', 24, 0),
    ('kd', 24, 0),
    ('tl', 0, 0),
    ('tl', 0, 1),
  ):
    changes = {'teacher__image_size': size, 'seed': seed}
    found = load(tiny.make_config(arm, cache_dir, **changes))
    assert [found.look, *(other.look for other in found.others)] == (
      [OWN, dataclasses.replace(OWN, image_size=24)] if size else [OWN]
    )
  assert decoded == [16, 24, 16]


def ramps(size: int, count: int = 6) -> np.ndarray:
  """Pictures of which a pixel says where it lies: rows, columns, grey."""
  place = ((np.arange(size) + 0.5) / size * 255).astype(np.uint8)
  rows = np.broadcast_to(place[:, None], (size, size))
  image = np.stack([rows, rows.T, np.full((size, size), 99, np.uint8)], -1)
  return np.repeat(image[None], count, 0)


@pytest.mark.parametrize(
  'options',
  [
    {'crop': 'random_resized', 'scale': (0.35, 1.0), 'flip': True},
    {'crop': 'random', 'flip': True},
    {'crop': 'centre', 'brightness': 0.3, 'contrast': 0.3, 'saturation': 0.3},
    {'crop': 'centre', 'randaugment_ops': 2},
  ],
  ids=lambda options: '+'.join(options),
)
def test_all_networks_see_the_same_view(options):
  """The same place, mirrored or not, in the same light, at either size."""
  index, view = np.arange(6), np.arange(6, dtype=np.int32)
  # Sides 64 and 32 at a crop of 0.8.
  large, small = (
    augment.augment(
      ramps(size * 5 // 4), 3, index, view, image_size=size, **options
    )
    for size in (64, 32)
  )
  shrunk = augment.resize_for(large, 32)
  # A stored pixel of the smaller is 6 levels wide, and a border blends.
  differ = np.abs(np.asarray(shrunk) - np.asarray(small))
  assert np.median(differ) < 6 and np.mean(differ) < 8


def test_batches_bring_the_images_of_each_look(cache_dir):
  config = tiny.make_config('kd', cache_dir, teacher__image_size=24)
  dataset = decoding.load_dataset(config)
  (other,) = dataset.others
  batches = inputs.train_batches(config, dataset, 2, {}, [other.look])
  for batch in batches:
    rows = [
      dataset.splits['train'].indices.tolist().index(index)
      for index in batch['index']
    ]
    (images,) = batch['others'].values()
    np.testing.assert_array_equal(images, other.splits['train'].images[rows])
    np.testing.assert_array_equal(
      batch['image'], dataset.splits['train'].images[rows]
    )
  batches.close()
  plain = pipeline.train_iterator(dataset.splits['train'], 8, 0)
  assert 'others' not in next(plain)
  plain.close()


@pytest.mark.parametrize('in_the_step', [True, False])
def test_clean_views_are_of_the_looks_in_the_step(in_the_step, cache_dir):
  """Not of those whose outputs are stored, nor of other runs of a command."""
  config = tiny.make_config(
    'kd',
    cache_dir,
    teacher__image_size=24,
    distillation__teacher_view='clean',
  )
  dataset = decoding.load_dataset(config)
  looks = [other.look for other in dataset.others] if in_the_step else []
  views = drawing.make_views(config, dataset, looks)
  assert set(views.clean) == {None, *looks}
  sizes = [draw.keywords['image_size'] for draw in views.clean.values()]
  assert sizes == [16, 24][: 1 + in_the_step]
  (batch, *_) = inputs.train_batches(config, dataset, 1, {}, looks)
  seen = showing.draw_views(
    batch,
    views.clean[None],
    {look: draw for look, draw in views.clean.items() if look},
    np.int32(0),
  )
  assert set(seen) == {None, *looks}


def test_the_views_of_a_batch_by_look():
  batch = {
    'image': np.zeros((2, 4, 4, 3)),
    'others': {str(THEIRS): np.ones((2, 6, 6, 3))},
    'index': np.arange(2),
    'view': np.zeros(2, np.int32),
  }

  def draw(images, index, view, *, seed, times=1):
    return images * times + seed

  def twice(images, index, view, *, seed):
    return draw(images, index, view, seed=seed, times=2)

  views = showing.draw_views(batch, draw, {THEIRS: twice}, 5)
  assert views.keys() == {None, THEIRS}
  assert (views[None] == 5).all() and views[None].shape == (2, 4, 4, 3)
  assert (views[THEIRS] == 7).all() and views[THEIRS].shape == (2, 6, 6, 3)


@pytest.fixture(scope='module')
def guided(cache_dir, compare_run, teacher, tmp_path_factory):
  """TL+KD of compare_run under that teacher, which has no weight."""
  workdir = tmp_path_factory.mktemp('guided') / 'run'
  with tiny.registered():
    config = tiny.make_config(
      'kd',
      cache_dir,
      teacher__checkpoint=teacher,
      distillation__soft_weight=0.0,
    )
    arms.run(config, workdir, sharding.make_mesh())
  return workdir


def test_a_teacher_answers_in_a_run_as_it_does_alone(guided, teacher, tmp_path):
  """Its accuracy is not lost under a student of another size."""
  alone = tmp_path / 'alone'
  shutil.copytree(teacher, alone)
  evaluating.evaluate_run(str(alone), sharding.make_mesh())
  for split in ('validation', 'test'):
    own = evaluate.load(alone / 'predictions' / f'{split}.npz')
    inside = evaluate.load(guided / 'predictions' / f'teacher_{split}.npz')
    np.testing.assert_allclose(own.logits, inside.logits, rtol=1e-5, atol=1e-6)


def test_a_student_learns_from_the_pixels_it_has_alone(guided, compare_run):
  """A teacher of another size without weight changes nothing."""
  for split in ('validation', 'test'):
    alone, under = (
      evaluate.load(run / 'predictions' / f'{split}.npz').logits
      for run in (compare_run / 'tl', guided)
    )
    np.testing.assert_allclose(under, alone, rtol=1e-5, atol=1e-6)


def test_what_a_run_says_of_its_network(guided):
  (path,) = guided.glob('checkpoints/best/*/record/metadata')
  record = json.loads(path.read_text())
  look = dataclasses.asdict(OWN)
  assert {name: record[name] for name in look} == look


def test_the_step_compares_with_what_the_teacher_says_of_its_own(
  cache_dir, teacher, tmp_path
):
  """Stored targets, which are computed apart, are those of the step."""
  logits = []
  for mode in ('online', 'cached'):
    config = tiny.make_config(
      'kd',
      cache_dir,
      teacher__checkpoint=teacher,
      targets__mode=mode,
      targets__views=1,
      targets__dtype='float32',
      targets__dir=str(tmp_path),
      distillation__soft_weight=30.0,
      augment__crop='random_resized',
      data__train_size=27,
      num_steps=3,
    )
    workdir = tmp_path / mode
    arms.run(config, workdir, sharding.make_mesh())
    stored = evaluate.load(workdir / 'predictions' / 'test.npz')
    logits.append(stored.logits)
  np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-6)
