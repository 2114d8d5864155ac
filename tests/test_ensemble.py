"""TL from the mean of several students."""

import dataclasses
import json

import numpy as np
import pytest

from tests import tiny
from tests.workdirs import arrays
from tlkd_jax import arms, evaluating, inference, models, protocols
from tlkd_jax.evaluation import evaluate
from tlkd_jax.models.network import DTYPES, Network
from tlkd_jax.models.weights import loading
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import Interrupted, UserError
from tlkd_jax.settings import Settings, with_values
from tlkd_jax.training import (
  decoding,
  drawing,
  ensemble,
  finished,
  inputs,
  joined,
  loop,
)

pytestmark = pytest.mark.usefixtures('tiny_models')

# Order, augmentation, dropout (of the models) and a start that is drawn.
OPTIONS = {
  'augment__crop': 'random_resized',
  'num_steps': 4,
  'eval_every_steps': 4,
  'seed': 7,
}


def make_config(cache_dir=None, **changes):
  options = OPTIONS | {'student__fit': ensemble.KIND} | changes
  return tiny.make_config('tl', cache_dir, **options)


@pytest.fixture(scope='module')
def run(cache_dir, tmp_path_factory):
  """(settings, workdir, summary) of an ensemble of two."""
  workdir = tmp_path_factory.mktemp('ensemble')
  config = make_config(cache_dir)
  with tiny.registered():
    summary = arms.run(config, workdir, sharding.make_mesh())['tl']
  return config, workdir, summary


def test_it_says_the_mean_of_the_logits_of_its_members(run):
  _, workdir, summary = run
  members = [ensemble.folder_of(workdir, number) for number in (1, 2)]
  assert sorted(workdir.glob('member*')) == members
  for split in ('validation', 'test'):
    whole, *each = (
      evaluate.load(place / 'predictions' / f'{split}.npz')
      for place in (workdir, *members)
    )
    assert np.abs(each[0].logits - each[1].logits).max() > 0.05
    mean = np.mean([one.logits for one in each], axis=0)
    np.testing.assert_allclose(whole.logits, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(whole.indices, each[0].indices)
    found = evaluate.summarize(whole)
    assert summary['student'][split]['nll'] == pytest.approx(found['nll'])
  told = [json.loads((p / 'summary.json').read_text()) for p in members]
  assert summary['seconds'] == pytest.approx(sum(t['seconds'] for t in told))
  assert {t['num_train'] for t in told} == {summary['num_train']}


def test_the_first_member_is_tl_of_the_seed(run, cache_dir, tmp_path):
  _, workdir, _ = run
  config = make_config(cache_dir, student__fit='finetuned')
  arms.run(config, tmp_path, sharding.make_mesh())
  for kind in ('latest', 'best'):
    plain, first, second = (
      arrays(place, kind)
      for place in (tmp_path, *(workdir / f'member{n}' for n in (1, 2)))
    )
    assert plain.keys() == first.keys() and len(plain) > 10
    for name, value in plain.items():
      np.testing.assert_array_equal(value, first[name], err_msg=name)
    assert any(not np.array_equal(plain[n], second[n]) for n in plain)


def test_members_draw_differently_from_the_same_images(cache_dir, tmp_path):
  config = make_config(cache_dir, student__members=3)
  members = list(ensemble.parts(config, tmp_path).values())
  assert [own.student.member for own in members] == [1, 2, 3]
  assert {decoding.data_key(own) for own in members} == {
    decoding.data_key(config)
  }
  dataset = decoding.load_dataset(config)
  count = len(dataset.splits['train'])
  orders = []
  for own in members:
    batches = inputs.train_batches(own, dataset, count // own.batch_size, {})
    orders.append(np.concatenate([batch['index'] for batch in batches]))
    batches.close()
    augmentation = drawing.make_augmentation(own, dataset)
    assert augmentation.keywords['seed'] == own.seed_of_draws
  known = set(dataset.splits['train'].indices)
  assert all(set(order) <= known for order in orders)
  for one, other in ((0, 1), (0, 2), (1, 2)):
    assert not np.array_equal(orders[one], orders[other])


def test_draws_of_members_and_seeds_do_not_meet():
  found = {}
  for seed in (0, 1, 7, 2**31 - 1):
    for member in range(1, 5):
      changes = {'student.members': 4, 'student.member': member, 'arm': 'tl'}
      own = with_values(Settings(), changes | {'seed': seed})
      assert 0 <= own.seed_of_draws < 2**31
      found[seed, member] = own.seed_of_draws
    assert found[seed, 1] == seed
  assert len(set(found.values())) == len(found)


def test_stopped_in_a_member_it_is_resumed_bitwise(run, tmp_path, monkeypatch):
  """A member that is finished is left as it is."""
  config, whole, _ = run
  steps = []

  def requested(self, step):
    steps.append(step)
    return len(steps) == config.num_steps + 2

  with monkeypatch.context() as patch:
    patch.setattr(loop.StopRequest, 'requested', requested)
    with pytest.raises(Interrupted, match='at step 2 of 4, .*member2; resume'):
      arms.run(config, tmp_path, sharding.make_mesh())
  assert not (tmp_path / 'summary.json').exists()
  first = tmp_path / 'member1'
  before = {p: p.stat().st_mtime_ns for p in first.rglob('*') if p.is_file()}
  steps.clear()
  monkeypatch.setattr(
    loop.StopRequest, 'requested', lambda self, step: steps.append(step)
  )
  summary = arms.run(config, tmp_path, sharding.make_mesh())
  assert steps == [3, 4]
  kept = {'config.json', 'origins.json', 'data.json.gz'}
  assert all(
    p.stat().st_mtime_ns == written
    for p, written in before.items()
    if p.name not in kept
  )
  for place in ('.', 'member1', 'member2'):
    expected, found = (arrays(r / place, 'best') for r in (whole, tmp_path))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
      np.testing.assert_array_equal(value, found[name], err_msg=name)
  assert arms.run(config, tmp_path, sharding.make_mesh()) == summary
  assert steps == [3, 4]


def test_it_is_evaluated_and_predicts_as_any_run(run):
  _, workdir, summary = run
  mesh = sharding.make_mesh()
  evaluating.evaluate_run(str(workdir), mesh)
  told = json.loads((workdir / 'evaluation' / 'clean.json').read_text())
  nll = summary['student']['test']['nll']
  assert told['test']['nll'] == pytest.approx(nll)
  predictor = inference.load_predictor(str(workdir), mesh)
  assert predictor.description.model == 'tiny x2'
  images = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), np.uint8)
  whole, *each = (
    np.log(inference.load_predictor(str(place), mesh)(images).probabilities)
    for place in (workdir, workdir / 'member1', workdir / 'member2')
  )
  # The geometric mean of probabilities, normalised.
  mean = np.mean(each, axis=0)
  mean -= np.log(np.exp(mean).sum(-1, keepdims=True))
  np.testing.assert_allclose(whole, mean, rtol=1e-4, atol=1e-5)


def test_a_model_of_several_heads_is_refused(cache_dir, tmp_path, monkeypatch):
  config = make_config(cache_dir)
  spec = dataclasses.replace(tiny.SPECS['tiny'], head=('head', 'other'))
  single = models.create_model('tiny', num_classes=10)
  network = Network(
    dataclasses.replace(single, spec=spec), 16, DTYPES['float32'], None
  )

  class Whole:
    settings, own, workdir = config, 'student', tmp_path

  Whole.network = network
  with pytest.raises(UserError, match="student.fit is 'ensemble', which .* 2"):
    ensemble.fit(Whole, None, None)


def test_the_whole_sees_images_as_its_members_were_trained():
  """Weights may bring another mean and deviation than were published."""
  model = loading.with_preprocessing(
    models.create_model('tiny', num_classes=10), (1.0, 2.0, 3.0), (4.0,) * 3
  )
  whole = joined.as_one(Network(model, 16, DTYPES['float32'], None), 3)
  assert whole.model.name == 'tiny x3'
  assert tuple(whole.model.spec.mean) == (1.0, 2.0, 3.0)
  assert tuple(whole.model.spec.std) == (4.0,) * 3


def test_members_start_from_one_probe(tmp_path):
  config = make_config(transfer__probe_steps=2)
  probe, last = protocols.plan(config, tmp_path)
  assert probe.settings.fit == 'finetuned'
  assert last.settings.fit == ensemble.KIND
  for own in ensemble.parts(last.settings, tmp_path).values():
    assert own.student.checkpoint == str(tmp_path / 'probe')
    assert not own.transfer.probe_steps


def test_a_head_that_is_there_may_be_kept():
  changes = {'arm': 'tl', 'student.fit': ensemble.KIND, 'student.head': 'keep'}
  assert with_values(Settings(), changes).student.head == 'keep'


def test_it_is_no_start_of_a_student(run):
  _, workdir, _ = run
  single = models.create_model('tiny', num_classes=10)
  with pytest.raises(ValueError, match='holds a tiny x2, the configuration'):
    finished.read_as(str(workdir), single, [])
