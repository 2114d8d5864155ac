"""Frozen backbones are run once for all that is made of what they say."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from tests import tiny
from tests.workdirs import arrays
from tlkd_jax import arms
from tlkd_jax.runtime import sharding
from tlkd_jax.training import (
  decoding,
  drawing,
  feature_heads,
  features,
  folds,
  forecast,
  guides,
  logistic,
  memory,
  probes,
  targets,
)
from tlkd_jax.training import run as run_parts

pytestmark = pytest.mark.usefixtures('tiny_models')

OPTIONS = {
  'teacher__fit': 'probed',
  'teacher__probe_views': 2,
  'teacher__probe_folds': 3,
  'augment__crop': 'random_resized',
  'data__crop': 0.8,
}
# 40 training images in batches of 8; the images of both other splits.
TRAIN, VIEWS = 5, 2


class Counts:
  """Batches that a backbone was run on."""

  def __init__(self):
    self.batches = 0

  def taken(self) -> int:
    taken, self.batches = self.batches, 0
    return taken


@pytest.fixture
def counts(monkeypatch):
  made, make_say = Counts(), features.make_say

  def count(network, outputs, mesh):
    say = make_say(network, outputs, mesh)

    def call(*given):
      made.batches += 1
      return say(*given)

    return call

  monkeypatch.setattr(features, 'make_say', count)
  return made


@pytest.fixture
def make_run(cache_dir, tmp_path):
  """(store, **changes) -> a run of a probe that is set up."""

  def call(store, **changes):
    options = OPTIONS | {'targets__features_dir': str(store)} | changes
    config = tiny.make_config('teacher', cache_dir, **options)
    dataset = decoding.load_dataset(config)
    return run_parts.set_up(config, tmp_path, dataset, sharding.make_mesh())

  return call


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  return tmp_path_factory.mktemp('features')


@pytest.fixture
def reference(make_run, tmp_path):
  """Features [N, 1 + V, D] without a store."""
  run = make_run(tmp_path / 'none', targets__features_mib=0)
  found = probes.Backbone(run, VIEWS).of_training()
  assert not (tmp_path / 'none').exists()
  return found


def test_the_backbone_is_run_once(make_run, store, counts, reference):
  """Bitwise what it says without the store, whichever run asks."""
  counts.taken()
  run = make_run(store)
  backbone = probes.Backbone(run, VIEWS)
  np.testing.assert_array_equal(backbone.of_training(), reference)
  assert counts.taken() == TRAIN * (1 + VIEWS)
  for other in (
    {'teacher__fit': 'crossfitted'},
    {'teacher__probe_folds': 4},
    {'distillation__temperature': 4.0},
    {'teacher__head_init': 'small_random'},
  ):
    again = probes.Backbone(make_run(store, **other), VIEWS)
    np.testing.assert_array_equal(again.of_training(), reference)
    assert counts.taken() == 0
  # Fewer views are there; of one more, that one alone is computed.
  probes.Backbone(run, 1).of_training()
  assert counts.taken() == 0
  more = probes.Backbone(run, VIEWS + 1).of_training()
  assert counts.taken() == TRAIN
  np.testing.assert_array_equal(more[:, : 1 + VIEWS], reference)


def test_another_seed_computes_the_images_that_are_new(
  make_run, tmp_path, counts
):
  """Those of its own drawing as they are evaluated, and its own views."""
  first = make_run(tmp_path)
  before = probes.Backbone(first, 0).of_training()
  counts.taken()
  second = make_run(tmp_path, seed=1)
  indices = [run.dataset.splits['train'].indices for run in (first, second)]
  shared = np.isin(indices[1], indices[0])
  assert 0 < shared.sum() < shared.size
  # Of other weights: it starts from scratch. The same backbone, then.
  second = dataclasses.replace(second, learners=first.learners)
  found = probes.Backbone(second, 0).of_training()
  assert counts.taken() == -(-np.sum(~shared) // 8)
  place = {index: row for row, index in enumerate(indices[0].tolist())}
  for row in np.flatnonzero(shared):
    np.testing.assert_array_equal(
      found[row], before[place[int(indices[1][row])]]
    )
  probes.Backbone(second, 1).of_training()
  assert counts.taken() == TRAIN


def test_targets_of_a_probe_are_its_head_on_stored_features(
  make_run, cache_dir, tmp_path, counts
):
  """The views that the probe drew are those of a student of its seed."""
  places = {
    'targets__features_dir': str(tmp_path / 'features'),
    'targets__dir': str(tmp_path / 'targets'),
  }
  config = tiny.make_config('teacher', cache_dir, **OPTIONS | places)
  arms.run(config, tmp_path / 'teacher', sharding.make_mesh())
  ends = sum(
    -(-len(split) // 8)
    for name, split in decoding.load_dataset(config).splits.items()
    if name != 'train'
  )
  assert counts.taken() == TRAIN * (1 + VIEWS) + ends
  summary = json.loads((tmp_path / 'teacher' / 'summary.json').read_text())
  assert summary['teacher']['test']['count'] > 0

  def stored(num_views, **changes):
    settings = tiny.make_config(
      'kd',
      cache_dir,
      teacher__checkpoint=str(tmp_path / 'teacher'),
      augment__crop='random_resized',
      data__crop=0.8,
      targets__mode='cached',
      targets__views=num_views,
      targets__dtype='float32',
      **places | changes,
    )
    dataset = decoding.load_dataset(settings)
    mesh = sharding.make_mesh()
    run = run_parts.set_up(settings, tmp_path / 'kd', dataset, mesh)
    recipe = dataclasses.replace(run.recipes['teacher'], root=tmp_path / 'new')
    variables = run_parts.constants(
      run.teachers['teacher'], dataset.splits['train']
    )
    assert recipe.backbone is not None
    found = targets.prepare(recipe, variables, 15, mesh)
    rows = np.repeat(np.arange(40), num_views)
    views = np.tile(np.arange(num_views), 40)
    return recipe, found(rows, views)['logits'].reshape(40, num_views, -1)

  recipe, logits = stored(VIEWS)
  assert counts.taken() == 0
  features_of = probes.Backbone(
    make_run(tmp_path / 'features'), VIEWS
  ).of_training()[:, 1:]
  head = [arrays(tmp_path / 'teacher', 'best')[f'params.head.{name}']
          for name in ('kernel', 'bias')]  # fmt: skip
  np.testing.assert_allclose(
    logits, features_of @ head[0] + head[1], rtol=1e-5, atol=1e-5
  )
  counts.taken()
  # Another loss, which reads embeddings too, and clean views.
  _, logits = stored(1, distillation__teacher_view='clean')
  assert counts.taken() == 0
  centre = probes.Backbone(make_run(tmp_path / 'features'), 0).of_training()
  np.testing.assert_allclose(
    logits, centre @ head[0] + head[1], rtol=1e-5, atol=1e-5
  )
  counts.taken()
  # In half precision the features are rounded, and the targets say so.
  rounded, half = stored(1, targets__features_dtype='float16')
  assert counts.taken() == TRAIN
  mesh = sharding.make_mesh()
  variables = {'params': {'head': {}}, 'model_state': {}}
  told = [one.fingerprint(variables, mesh) for one in (recipe, rounded)]
  assert 'features' not in told[0] and told[1]['features'] == 'float16'
  exact = features_of[:, :1] @ head[0] + head[1]
  assert (
    0
    < np.abs(half - exact).max()
    < 2**-10 * np.abs(features_of).max() * (np.abs(head[0]).sum(0).max())
  )


def test_a_wrong_bit_in_the_store_changes_nothing(make_run, tmp_path, counts):
  run = make_run(tmp_path)
  whole = probes.Backbone(run, 1).of_training()
  counts.taken()
  path = sorted(tmp_path.glob('*/view0-*.npy'))[0]
  data = bytearray(path.read_bytes())
  data[-9] ^= 4
  path.write_bytes(data)
  np.testing.assert_array_equal(probes.Backbone(run, 1).of_training(), whole)
  assert counts.taken() == TRAIN
  np.testing.assert_array_equal(probes.Backbone(run, 1).of_training(), whole)
  assert counts.taken() == 0


def test_what_is_too_large_is_not_stored(make_run, tmp_path, caplog):
  caplog.set_level('INFO', logger='absl')
  run = make_run(tmp_path / 'store')
  row = probes.Backbone(run, VIEWS)._clean.row
  assert row.itemsize == 8 + 4 * 16
  sizes = [len(split) for split in run.dataset.splits.values()]
  total = features.bytes_of(sum(sizes) + VIEWS * sizes[0], 1, row)
  for size, root in ((2**20, True), (2**20 + 1, False)):
    settings = dataclasses.replace(
      run.settings,
      targets=dataclasses.replace(run.settings.targets, features_mib=1),
    )
    found = features.root_of(settings, size, 'teacher')
    assert (found == tmp_path / 'store') == root
  assert 'features of teacher would take 1.05 MB, more than' in caplog.text
  line = forecast.stored(run.settings, run.dataset)
  assert f'{total // row.itemsize} x 16 numbers of float32' in line
  assert f'{features.in_words(total)} in {tmp_path / "store"}' in line
  assert forecast.stored(tiny.make_config('tl'), run.dataset) == ''


def test_a_head_that_does_not_fit_into_memory_is_named_before():
  each = 1000 * 500 * 28
  memory.check_features(1000, 5, 500, free=5 * each)
  with pytest.raises(ValueError, match='probe_views at most 3; memory_check'):
    memory.check_features(1000, 5, 500, free=5 * each - 1)
  with pytest.raises(ValueError, match='accepted: fewer training images'):
    memory.check_features(1000, 1, 500, free=each - 1)


def recipe_of(run, **changes):
  settings, dataset = run.settings, run.dataset
  recipe = features.Recipe(
    None,
    run.network,
    ('pre_logits',),
    drawing.make_augmentation(settings, dataset),
    dataset.splits['train'],
    settings.batch_size,
    'float32',
  )
  return dataclasses.replace(recipe, **changes)


CHANGES = {
  'seed': ({'seed': 1}, 'views'),
  'augment.brightness': ({'augment__brightness': 0.2}, 'views'),
  'augment.scale': ({'augment__scale': (0.5, 1.0)}, 'views'),
  'batch_size': ({'batch_size': 4}, 'batches'),
  'compute_dtype': ({'compute_dtype': 'bfloat16'}, 'preprocessing'),
  'teacher.name': ({'teacher__name': 'tiny'}, 'backbone weights'),
  'train_size': ({'data__train_size': 24}, 'images'),
}


def fingerprint_of(run):
  loaded = run.learners['teacher']
  given = {'params': loaded.params, 'model_state': loaded.model_state}
  return recipe_of(run).fingerprint(given, run.mesh)


@pytest.fixture(scope='module')
def unchanged():
  """The fingerprint of the run as it is, filled by the first test."""
  return {}


@pytest.mark.parametrize('name', CHANGES)
def test_the_fingerprint_names_what_changed(
  name, make_run, tmp_path, unchanged
):
  changes, named = CHANGES[name]
  if not unchanged:
    unchanged.update(fingerprint_of(make_run(tmp_path)))
  told = [unchanged, fingerprint_of(make_run(tmp_path, **changes))]
  assert json.loads(json.dumps(told[0])) == told[0]
  assert named in [key for key in told[0] if told[0][key] != told[1][key]]


def test_neither_head_nor_what_is_not_drawn_is_in_the_fingerprint(
  make_run, tmp_path
):
  run = make_run(tmp_path)
  loaded = run.learners['teacher']
  given = {'params': loaded.params, 'model_state': loaded.model_state}
  other = loaded.params | {
    'head': jax.tree.map(lambda x: x + 1, loaded.params['head'])
  }
  clean = features.as_evaluated(run.settings, run.dataset, 'train')
  recipe = recipe_of(run, augmentation=clean)
  assert recipe_of(run).is_drawn and not recipe.is_drawn
  told = recipe.fingerprint(given, run.mesh)
  assert told == recipe.fingerprint(given | {'params': other}, run.mesh)
  reseeded = functools.partial(clean, seed=5, scale=(0.1, 0.2))
  assert told == recipe_of(run, augmentation=reseeded).fingerprint(
    given, run.mesh
  )
  stem = loaded.params | {
    'stem': jax.tree.map(lambda x: x + 1, loaded.params['stem'])
  }
  assert told != recipe.fingerprint(given | {'params': stem}, run.mesh)
  assert told != dataclasses.replace(recipe, dtype='float16').fingerprint(
    given, run.mesh
  )


@pytest.mark.parametrize(
  ('config', 'expected'),
  [
    ({'arm': 'teacher', 'teacher': {'fit': 'probed'}}, True),
    ({'arm': 'teacher', 'teacher': {'fit': 'crossfitted'}}, True),
    ({'arm': 'tl', 'student': {'fit': 'probed'}}, True),
    ({'arm': 'teacher', 'teacher': {'fit': 'finetuned'}}, False),
    ({'arm': 'teacher', 'teacher': {'fit': 'crossfitted_finetuned'}}, False),
    ({'arm': 'tl', 'student': {}, 'teacher': {'fit': 'probed'}}, False),
    ({'arm': 'kd', 'student': {'fit': 'finetuned'}}, False),
    (None, False),
  ],
)
def test_which_runs_left_their_backbone_as_it_was(config, expected, tmp_path):
  if config is not None:
    (tmp_path / 'config.json').write_text(json.dumps(config))
  assert features.is_probe(tmp_path) == expected


def test_features_that_are_no_numbers_are_an_error(make_run, tmp_path):
  values = np.asarray([[1.0, np.inf]], np.float32)
  with pytest.raises(ValueError, match='pre_logits are not finite'):
    features._check_range('pre_logits', values, 'float32')
  values = np.asarray([[1.0, 7e4]], np.float32)
  features._check_range('pre_logits', values, 'float32')
  with pytest.raises(ValueError, match=r'features_dtype to "float32"'):
    features._check_range('pre_logits', values, 'float16')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('crossfitted', [False, True])
def test_the_head_is_that_of_the_model(crossfitted, dtype, make_run, tmp_path):
  """Bitwise, in the dtype of the compute."""
  run = make_run(tmp_path, compute_dtype=dtype)
  loaded, split = run.learners['teacher'], run.dataset.splits['train']
  draw = np.random.default_rng(0)
  params = loaded.params | {
    'head': {
      'kernel': draw.normal(size=(16, 10)).astype(np.float32),
      'bias': draw.normal(size=10).astype(np.float32),
    }
  }
  loaded = dataclasses.replace(loaded, params=params)
  if crossfitted:
    of_image = logistic.make_folds(split.labels, 3, 0)
    found = {
      'kernel': draw.normal(size=(3, 16, 10)).astype(np.float32),
      'bias': draw.normal(size=(3, 10)).astype(np.float32),
      'image': folds.image_keys(split),
      'fold': of_image,
    }
    loaded = dataclasses.replace(loaded, folds=found)
  constants = run_parts.constants(loaded, split)
  images = draw.uniform(0, 255, (8, 16, 16, 3)).astype(np.float32)
  index = split.indices[:8].astype(np.int32)

  @jax.jit
  def both(constants, images, index):
    said = guides.speak(loaded.network, constants, images, index)
    return {name: said[name] for name in ('logits', 'pre_logits')}

  said = both(constants, images, index)
  mesh = sharding.make_mesh(1)
  head = feature_heads.make_head(loaded.network, mesh)
  kept = feature_heads.of_head(loaded.network, constants)
  assert len(jax.tree.leaves(kept['params'])) == 2
  pre_logits = np.asarray(said['pre_logits'], np.float32)
  np.testing.assert_array_equal(head(kept, pre_logits, index), said['logits'])
