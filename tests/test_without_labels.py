"""Images without labels in a run: terms by hand, hidden labels, resuming."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from tests import tiny
from tests.marks import slow
from tests.test_resume import assert_same_run
from tests.test_train_step import (
  constants_of,
  make_batch,
  make_lessons_step,
  make_models,
  make_state,
  variables,
)
from tests.workdirs import arrays
from tlkd_jax import arms, protocols
from tlkd_jax.data import augment, sources, subsets
from tlkd_jax.report import closing
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import Interrupted, UserError
from tlkd_jax.settings import WrongSettings
from tlkd_jax.training import (
  decoding,
  defaults,
  drawing,
  guides,
  inputs,
  judging,
  lessons,
  loop,
  networks,
  says,
  shares,
)
from tlkd_jax.training.metric_writers import read_rows
from tlkd_jax.training.objective import Objective, Term
from tlkd_jax.training.step import Lesson

pytestmark = pytest.mark.usefixtures('tiny_models')

LABELLED, BATCH = 3, 8
REST = {'distillation__unlabelled': 'rest'}


def inverted(images, index=None, view=None, seed=None):
  del index, view, seed
  return 255.0 - jnp.asarray(images, jnp.float32)


def halves(images, soft_labels, key):
  del key
  return (images + images[::-1]) / 2, (soft_labels + soft_labels[::-1]) / 2


def batch_of_both():
  batch = make_batch()
  batch['label'][LABELLED:] = -1
  return batch


def one_step(term, *, taught=True, **mode):
  """Metrics of the first update with one term."""
  mesh, (student, teacher) = sharding.make_mesh(1), make_models()
  names = ('teacher',) if term.guide is None else ()
  lesson = Lesson(student, Objective(0.5, 0.0, (term,)), optax.sgd(0.1), names)
  step = make_lessons_step(
    {'student': lesson},
    dict.fromkeys(names, teacher),
    optax.constant_schedule(0.1),
    mesh,
    taught_from=LABELLED if taught else 0,
    **mode,
  )
  given = {name: variables(teacher, 2) for name in names}
  batch = sharding.shard_batch(batch_of_both(), mesh)
  _, metrics = step(
    make_state(lesson, mesh), constants_of(mesh, **given), batch
  )
  return jax.device_get(metrics)


@functools.cache
def logits_of(number, change):
  """Float64 logits of the student (0) or the teacher (1) for changed images."""
  images = batch_of_both()['image'].astype(np.float32)
  network = make_models()[number]
  outputs, _ = jax.jit(network.model.apply)(
    *variables(network, 1 + number), network.prepare(change(images))
  )
  return np.asarray(outputs['logits'], np.float64)


def plain(images):
  return images


def mixed(images):
  return halves(images, np.zeros((BATCH, 1)), None)[0]


def hard_by_hand():
  logs = special.log_softmax(logits_of(0, plain)[:LABELLED], -1)
  return -logs[np.arange(LABELLED), make_batch()['label'][:LABELLED]].mean()


def kd_by_hand(student, teacher, temperature=3.0):
  p, q = (special.log_softmax(z / temperature, -1) for z in (teacher, student))
  return temperature**2 * (np.exp(p) * (p - q)).sum(-1).mean()


def kd_term():
  return Term('kd', optax.constant_schedule(0.7), {'temperature': 3.0})


def test_fixmatch_by_hand():
  """Loss and gradient: the weak view of an image is a target, no variable."""
  weak = special.softmax(logits_of(0, plain)[LABELLED:], -1)
  threshold = float(np.median(weak.max(-1)))
  sure, target = weak.max(-1) >= threshold, weak.argmax(-1)
  assert 0 < sure.sum() < sure.size
  strong = special.log_softmax(logits_of(0, inverted)[LABELLED:], -1)
  nll = -strong[np.arange(target.size), target]
  expected = (sure * nll).sum() / target.size
  term = Term(
    'pseudo_label',
    optax.constant_schedule(0.7),
    {'threshold': threshold},
    guide=guides.ITSELF,
  )
  metrics = one_step(term, strong=inverted)
  hard = hard_by_hand()
  np.testing.assert_allclose(metrics['hard_loss'], hard, rtol=1e-5)
  np.testing.assert_allclose(metrics['pseudo_label_loss'], expected, rtol=1e-5)
  np.testing.assert_allclose(
    metrics['loss'], 0.5 * hard + 0.7 * expected, rtol=1e-5
  )
  assert 'soft_loss' not in metrics and 'teacher_accuracy' not in metrics

  student = make_models()[0]
  params, model_state = variables(student, 1)
  batch = batch_of_both()

  def by_hand(params):
    def answer(images):
      seen = student.prepare(images.astype(jnp.float32))
      found = student.model.apply(params, model_state, seen)[0]['logits']
      return jax.nn.log_softmax(found)

    own = answer(batch['image'][:LABELLED])
    rest = answer(inverted(batch['image'][LABELLED:]))
    labels = batch['label'][:LABELLED]
    known = own[np.arange(LABELLED), labels].mean()
    pseudo = (sure * rest[np.arange(target.size), target]).sum() / target.size
    return -0.5 * known - 0.7 * pseudo

  norm = optax.tree.norm(jax.jit(jax.grad(by_hand))(params))
  np.testing.assert_allclose(metrics['gradient_norm'], norm, rtol=1e-4)


@pytest.mark.parametrize('taught', [False, True])
def test_the_teacher_alone_sees_mixed_images(taught):
  first = LABELLED if taught else 0
  metrics = one_step(kd_term(), taught=taught, mixing=halves, mixed_apart=True)
  soft = kd_by_hand(logits_of(0, mixed)[first:], logits_of(1, mixed)[first:])
  np.testing.assert_allclose(metrics['soft_loss'], soft, rtol=1e-4)
  np.testing.assert_allclose(metrics['hard_loss'], hard_by_hand(), rtol=1e-5)
  np.testing.assert_allclose(
    metrics['loss'], 0.5 * hard_by_hand() + 0.7 * soft, rtol=1e-4
  )


@pytest.mark.parametrize('clean', [False, True])
def test_unlabelled_images_alone_are_taught(clean):
  """By a teacher that sees the student's views, or other ones."""
  mode = {'clean': {None: inverted}} if clean else {}
  metrics = one_step(kd_term(), **mode)
  theirs = logits_of(1, inverted if clean else plain)[LABELLED:]
  soft = kd_by_hand(logits_of(0, plain)[LABELLED:], theirs)
  np.testing.assert_allclose(metrics['soft_loss'], soft, rtol=1e-4)
  np.testing.assert_allclose(metrics['hard_loss'], hard_by_hand(), rtol=1e-5)


def test_weights_of_the_last_steps_are_0():
  config = tiny.make_config(
    'kd',
    num_steps=10,
    distillation__finish_fraction=0.25,
    distillation__schedule='cosine',
    distillation__end_weight=3.0,
  )
  # 2.5 steps are rounded to 2.
  assert shares.finish_step(config) == 8
  objective = lessons.make_objective(config, None, guided=True)
  weights = [float(objective.terms[0].weight(step)) for step in range(10)]
  assert min(weights[:8]) >= 1.0 and weights[8:] == [0.0, 0.0]
  config = tiny.make_config(
    'tl',
    num_steps=10,
    student__fit='fixmatch',
    distillation__fixmatch_weight=0.3,
    distillation__finish_fraction=0.5,
    **REST,
  )
  weight = lessons.consistency(config).weight
  assert [round(float(weight(step)), 5) for step in (0, 4, 5, 9)] == [
    *(0.3, 0.3),
    *(0.0, 0.0),
  ]


@pytest.mark.parametrize(
  ('fraction', 'batch_size', 'labelled'),
  [
    (0.5, 8, 4),
    (0.5, 7, 4),
    (0.3, 8, 2),
    (0.01, 8, 1),
    (0.99, 8, 7),
    (0.5, 2, 1),
  ],
)
def test_shares_are_rounded_and_of_both_kinds(fraction, batch_size, labelled):
  config = tiny.make_config(
    'kd',
    batch_size=batch_size,
    distillation__labelled_fraction=fraction,
    **REST,
  )
  found = shares.of_batch(config)
  assert found is not None
  assert (found.labelled, found.finish_step) == (labelled, 6)
  for other in (tiny.make_config('kd'), tiny.make_config('tl', **REST)):
    assert shares.of_batch(other) is None and shares.taught_from(other) == 0


def test_how_often_images_are_drawn_is_said(cache_dir):
  config = tiny.make_config(
    'kd',
    cache_dir,
    num_steps=10,
    num_train_per_class=2,
    distillation__labelled_fraction=0.25,
    distillation__finish_fraction=0.2,
    **REST,
  )
  dataset = inputs.training_data(config, decoding.load_dataset(config))
  count = len(dataset.splits['train']) - 20
  # 8 steps of 2 and 6 images, then 2 of 8.
  assert shares.about(config, dataset) == [
    f'each batch of 8 has 2 of 20 labelled images and 6 of {count} without '
    'label; in 10 steps one of the former is drawn 1.6 times, one of the '
    f'latter {48 / count:.3g} times',
    'the last 2 steps are of labels alone',
  ]
  assert shares.about(tiny.make_config('kd'), dataset) == []


def test_strong_views_differ_from_weak_ones_and_are_of_the_seed():
  images = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3), np.uint8)
  weak = functools.partial(
    drawing._draw_view, seed=3, image_size=8, crop='random_resized', flip=False
  )
  index, view = np.arange(4), np.zeros(4, np.int32)
  strong, clean = drawing.make_strong(weak), drawing.make_clean(weak)
  for change in (drawing._STRONG, {'crop': 'random_resized', 'seed': 3}):
    assert change.items() <= strong.keywords.items()
  draw = jax.jit(lambda *args: strong(*args[:3], seed=args[3]))
  found = np.asarray(draw(images, index, view, 3))
  again = draw(images[::-1], index[::-1], view, 3)
  np.testing.assert_array_equal(again[::-1], found)
  others = {
    'weak': jax.jit(weak)(images, index, view),
    'other seed': draw(images, index, view, 4),
    'other view': draw(images, index, view + 1, 3),
  }
  for name, other in others.items():
    assert (np.abs(found - other).mean((1, 2, 3)) > 1).all(), name
  np.testing.assert_array_equal(
    jax.jit(clean)(images, index, view), images[:, 2:10, 2:10]
  )


def test_cutout_is_a_grey_square_of_at_most_its_share():
  images = np.zeros((64, 16, 16, 3), np.uint8)
  found = jax.jit(
    lambda images: augment.augment(
      images, 0, np.arange(64), np.zeros(64, np.int32), image_size=16,
      crop='centre', flip=False, cutout=0.5,
    )
  )(images)  # fmt: skip
  grey = np.asarray(found)[..., 0] == 128
  np.testing.assert_array_equal(np.asarray(found)[..., 0], 128 * grey)
  sides = grey.any(2).sum(1), grey.any(1).sum(1)
  assert max(sides[0].max(), sides[1].max()) <= 9
  assert sides[0].max() >= 6 and grey.any((1, 2)).mean() > 0.5
  for square in grey:
    rows, columns = square.any(1), square.any(0)
    np.testing.assert_array_equal(square, np.outer(rows, columns))


def permute_hidden_labels(monkeypatch, seed):
  """Other labels for training images that no subset of ours can choose."""
  open_sources = sources.open_sources

  def permuted(name, **options):
    found = open_sources(name, **options)
    train = found.splits['train']
    order = subsets.stable_order(train.names, 'subset-0')
    # 4 of each class are the first of it in this order.
    seen, last = np.zeros(10, int), 0
    for place, row in enumerate(order.tolist()):
      last = place if seen[train.labels[row]] < 4 else last
      seen[train.labels[row]] += 1
    hidden = order[last + 1 :]
    labels = train.labels.copy()
    labels[hidden] = np.random.default_rng(seed).permutation(labels[hidden])
    assert (labels != train.labels).sum() > 800
    train = dataclasses.replace(train, labels=labels)
    return dataclasses.replace(found, splits=found.splits | {'train': train})

  monkeypatch.setattr(sources, 'open_sources', permuted)


KINDS = {
  'kd': ('kd', {'teacher__num_steps': 2}),
  'fixmatch': (
    'tl',
    {'student__fit': 'fixmatch', 'distillation__fixmatch_threshold': 0.1},
  ),
}


@pytest.mark.parametrize('kind', ['kd', *slow('fixmatch')])
def test_permuting_hidden_labels_changes_nothing(
  kind, cache_dir, tmp_path, monkeypatch
):
  arm, changes = KINDS[kind]
  config = tiny.make_config(arm, cache_dir, num_steps=2, **REST, **changes)
  mesh, found, batches = sharding.make_mesh(1), [], []
  monkeypatch.setattr(says, 'measure', lambda *_: {})
  for name in ('as it is', 'permuted'):
    if name == 'permuted':
      permute_hidden_labels(monkeypatch, 1)
    whole = decoding.load_dataset(config)
    files = whole.files['train'].labels
    split = inputs.training_data(config, whole)
    iterator = inputs.train_batches(config, split, 2, {})
    batches.append((files, [next(iterator), next(iterator)]))
    iterator.close()
    arms.run(config, tmp_path / name, mesh)
    runs = sorted(p.parent for p in (tmp_path / name).rglob('summary.json'))
    found.append([(arrays(r), read_rows(r / 'metrics.jsonl')) for r in runs])
  assert (batches[0][0] != batches[1][0]).sum() > 800
  jax.tree.map(np.testing.assert_array_equal, batches[0][1], batches[1][1])
  assert len(found[0]) == (2 if kind == 'kd' else 1)
  for (left, rows), (right, others) in zip(*found, strict=True):
    assert left.keys() == right.keys() and len(left) > 5
    for name, value in left.items():
      np.testing.assert_array_equal(value, right[name], err_msg=name)
    for row in (*rows, *others):
      row.pop('seconds', None)
    assert rows == others


STATEFUL = {
  'num_steps': 6,
  'eval_every_steps': 2,
  'log_every_steps': 3,
  'augment__crop': 'random_resized',
  'distillation__labelled_fraction': 0.4,
  'distillation__finish_fraction': 0.34,
}


@pytest.mark.parametrize('kind', ['fixmatch', *slow('mixed')])
def test_a_stopped_run_goes_on(
  kind, cache_dir, compare_run, tmp_path, monkeypatch
):
  if kind == 'fixmatch':
    arm, changes = KINDS['fixmatch']
  else:
    arm, changes = (
      'kd',
      {
        'teacher__checkpoint': str(compare_run / 'teacher'),
        'augment__cutmix_alpha': 1.0,
        'distillation__mixed': 'soft',
        'distillation__taught': 'unlabelled',
      },
    )
  config = tiny.make_config(arm, cache_dir, **STATEFUL, **REST, **changes)
  mesh = sharding.make_mesh()
  monkeypatch.setattr(says, 'measure', lambda *_: {})
  arms.run(config, tmp_path / 'whole', mesh)
  with monkeypatch.context() as patch:
    patch.setattr(loop.StopRequest, 'requested', lambda self, step: step == 3)
    with pytest.raises(Interrupted):
      arms.run(config, tmp_path / 'stopped', mesh)
  arms.run(config, tmp_path / 'stopped', mesh)
  assert_same_run(tmp_path / 'whole', tmp_path / 'stopped')


@pytest.mark.parametrize('clean', [False, *slow(True)])
def test_stored_targets_are_those_of_the_step(
  clean, cache_dir, compare_run, tmp_path, monkeypatch
):
  # What is learned is compared, and no more is compiled.
  for module, name in (
    (loop, 'finish'),
    (judging, 'validate'),
    (says, 'measure'),
  ):
    monkeypatch.setattr(module, name, lambda *_: {})
  found = []
  for mode in ('online', 'cached'):
    config = tiny.make_config(
      'kd',
      cache_dir,
      num_steps=4,
      augment__crop='random_resized',
      teacher__checkpoint=str(compare_run / 'teacher'),
      targets__mode=mode,
      targets__views=2,
      targets__dtype='float32',
      targets__dir=str(tmp_path / 'targets'),
      distillation__teacher_view='clean' if clean else 'same',
      distillation__taught='unlabelled' if clean else 'all',
      # Two views of a labelled image, one of another.
      distillation__labelled_fraction=0.9,
      distillation__soft_weight=30.0,
      num_train_per_class=2,
      **REST,
    )
    arms.run(config, tmp_path / mode, sharding.make_mesh(1))
    found.append(arrays(tmp_path / mode))
  for name, value in found[0].items():
    np.testing.assert_array_equal(value, found[1][name], err_msg=name)


def planned(arm, **changes):
  config = tiny.make_config(arm, **REST, **changes)
  return protocols.plan(config, protocols.pathlib.Path('runs/a'))


@pytest.mark.parametrize(
  ('kind', 'loss', 'options'),
  [('hard', 'pseudo_label', {'threshold': 0.0}), ('soft', 'kd', {})],
)
def test_self_training_is_two_runs_of_one_model(kind, loss, options):
  for arm, places in (('kd', ['tl', '.']), ('compare', ['tl', 'kd'])):
    first, last = planned(arm, distillation__self_training=kind)
    assert [first.key, last.key] == ['tl', 'kd']
    assert [str(p.workdir.relative_to('runs/a')) for p in (first, last)] == (
      places
    )
    assert not shares.learns_without_labels(first.settings)
    section = last.settings.distillation
    assert (section.loss, dict(section.options)) == (loss, options)
    assert (section.taught, section.teacher_view) == ('unlabelled', 'clean')
    assert networks.teacher_runs(last.settings) == {'teacher': 'runs/a/tl'}
    assert last.settings.teacher.name == last.settings.student.name == 'tiny'
    # What a run has recorded, taken as it is, is that run.
    (again,) = protocols.plan(last.settings, last.workdir)
    assert again.settings == last.settings
  temperature = last.settings.distillation.temperature
  assert temperature == (1.0 if kind == 'soft' else 2.0)
  (alone,) = planned(
    'kd', distillation__self_training=kind, teacher__checkpoint='runs/b'
  )
  assert alone.settings.teacher.checkpoint == 'runs/b'
  assert alone.settings.teacher.name == 'tiny'


def test_self_training_runs_and_is_called_so(cache_dir, tmp_path):
  config = tiny.make_config(
    'compare',
    cache_dir,
    num_steps=2,
    distillation__self_training='soft',
    **REST,
  )
  summaries = arms.run(config, tmp_path, sharding.make_mesh(1))
  assert list(summaries) == ['tl', 'kd']
  told = json.loads((tmp_path / 'kd' / 'config.json').read_text())
  assert told['teacher']['checkpoint'] == str(tmp_path / 'tl')
  kd = summaries['kd']
  assert (
    kd['teacher']['test']['nll'] == (summaries['tl']['student']['test']['nll'])
  )
  assert (kd['num_train'], kd['self_training']) == (40, 'soft')
  assert kd['num_unlabelled'] > 1000
  assert any('the rest of train' in note for note in kd['notes'])
  text = closing.table(summaries, {n: tmp_path / n for n in summaries})
  labels = {line.split('  ')[0] for line in text.splitlines()}
  assert {'TL', 'self-training'} <= labels and 'teacher' not in labels
  assert 'Self-training minus TL on test' in text and 'KD' not in text
  assert 's for self-training and' in text
  assert 'little to teach' not in text


def test_what_is_missing_is_said_before_the_teacher_learns(
  cache_dir, tmp_path, monkeypatch
):
  monkeypatch.setattr(arms, 'fine_tune', None)
  for place, message in (
    ('folder:nowhere', 'no folder nowhere'),
    ('tfds:cifar11', "unknown data set 'cifar11'"),
  ):
    config = tiny.make_config('kd', cache_dir, distillation__unlabelled=place)
    with pytest.raises(UserError, match=message):
      arms.run(config, tmp_path, sharding.make_mesh(1))
  with pytest.raises(WrongSettings, match='takes all training images'):
    tiny.make_config('kd', cache_dir, num_train_per_class=0, **REST)
  # Of images of one's own all are labelled ones unless told otherwise.
  left_open = tiny.make_config(
    'kd', dataset='folder:x', num_train_per_class=None, **REST
  )
  with pytest.raises(WrongSettings, match='takes all training images'):
    defaults.settled(left_open)
