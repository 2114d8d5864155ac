"""A teacher that was fine-tuned elsewhere: a file with the data's classes."""

import json
import logging

import jax
import numpy as np
import pytest

from tests import tiny
from tests.fixtures import fill_rule
from tlkd_jax import arms, models, protocols, settings
from tlkd_jax.evaluation import evaluate
from tlkd_jax.models.weights import pretrained, torch_files
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import UserError
from tlkd_jax.settings import WrongSettings
from tlkd_jax.training import (
  checkpoints,
  decoding,
  elsewhere,
  finished,
  networks,
  workdir,
)

pytestmark = pytest.mark.usefixtures('tiny_models')

DIGITS = [str(k) for k in range(10)]
# Another order than that of the data.
THEIRS = DIGITS[::-1]
SAID = {
  'architecture': 'tiny_teacher',
  'library': 'efficientnet_lite_pytorch',
  'label_names': THEIRS,
  'pretrained_cfg': {
    'mean': [0.4, 0.5, 0.6],
    'std': [0.2, 0.25, 0.3],
    'input_size': [3, 20, 20],
    'crop_pct': 0.9,
    'interpolation': 'bilinear',
  },
}


@pytest.fixture(scope='module')
def state_dict():
  with tiny.registered():
    model = models.create_model('tiny_teacher', num_classes=10)
  found = {}
  for shape, leaf in pretrained.leaf_table(model).values():
    shape = leaf.to_torch(np.empty(shape, np.bool_)).shape
    found[leaf.key] = fill_rule.fill(leaf.key, shape)
  return found


@pytest.fixture
def folder(state_dict, tmp_path):
  """As transformers and timm save a model."""
  path = tmp_path / 'elsewhere'
  path.mkdir()
  torch_files.write_safetensors(path / 'model.safetensors', state_dict)
  (path / 'config.json').write_text(json.dumps(SAID))
  return path


def config_of(arm, place, cache_dir=None, **changes):
  values = {'teacher__checkpoint': str(place), 'teacher__head': 'keep'}
  return tiny.make_config(arm, cache_dir, **values | changes)


def test_it_is_evaluated_first_and_used_as_it_is(
  folder, state_dict, cache_dir, tmp_path, caplog
):
  config = config_of('kd', folder, cache_dir)
  with caplog.at_level(logging.INFO, logger='absl'):
    summaries = arms.run(config, tmp_path / 'run', sharding.make_mesh())
  assert list(summaries) == ['teacher', 'kd']
  said = [record.getMessage() for record in caplog.records]
  first = next(i for i, text in enumerate(said) if 'used as it is: top' in text)
  assert first < next(
    i for i, t in enumerate(said) if t.startswith('TL+KD, in')
  )

  # Its weights are the file's, its classes those of the data.
  place = tmp_path / 'run' / 'teacher'
  description = checkpoints.read_description(place)
  loaded = finished.restore(str(place), description)
  back = pretrained.to_torch(
    loaded.network.model, loaded.params, loaded.model_state
  )
  for key, value in state_dict.items():
    value = value[::-1] if key.startswith('classifier.') else value
    np.testing.assert_array_equal(back[key], value, err_msg=key)
  assert list(description.class_names) == DIGITS
  assert str(description.look) == '20 px, crop 0.9, bilinear'
  np.testing.assert_allclose(description.mean, [102.0, 127.5, 153.0])
  np.testing.assert_allclose(description.std, [51.0, 63.75, 76.5])
  assert description.step == 0

  # Its predictions are those of the model on images cut for it.
  data = decoding.load_seen(config, description.look).splits['test']
  images = loaded.network.prepare(np.asarray(data.images, np.float32))
  expected = jax.jit(loaded.network.model.apply)(
    loaded.params, loaded.model_state, images
  )[0]['logits']
  stored = evaluate.load(place / 'predictions' / 'test.npz').logits
  by_row = {int(k): row for k, row in zip(data.indices, expected, strict=True)}
  got = evaluate.load(place / 'predictions' / 'test.npz')
  rows = np.stack([by_row[int(k)] for k in got.indices])
  np.testing.assert_allclose(stored, rows, atol=1e-4)

  # Under the student it is the same network, and nothing is done twice.
  under = summaries['kd']['teacher']
  own = summaries['teacher']['teacher']
  for split in ('validation', 'test'):
    assert under[split]['nll'] == pytest.approx(own[split]['nll'])
  again = arms.run(config, tmp_path / 'run', sharding.make_mesh())
  assert again == summaries


def test_the_arm_teacher_evaluates_it(folder, cache_dir, tmp_path):
  config = config_of('teacher', folder, cache_dir, teacher__num_steps=5)
  summary = arms.run(config, tmp_path / 'run', sharding.make_mesh())['teacher']
  assert summary['best_step'] == 0
  assert finished.unfinished(tmp_path / 'run') is None
  # A run as any other: it may teach.
  values = {'teacher__checkpoint': str(tmp_path / 'run')}
  guided = tiny.make_config('kd', cache_dir, **values)
  (loaded,) = networks.load_teachers(guided, DIGITS).values()
  np.testing.assert_allclose(loaded.network.model.spec.mean, [102, 127.5, 153])


@pytest.mark.parametrize(
  ('changes', 'look'),
  [
    ({}, '20 px, crop 0.9, bilinear'),
    ({'teacher__image_size': 24}, '24 px, crop 0.9, bilinear'),
    ({'teacher__crop': 0.5}, '20 px, crop 0.5, bilinear'),
    ({'teacher__interpolation': 'box'}, '20 px, crop 0.9, box'),
  ],
)
def test_it_sees_images_as_is_said(changes, look, folder):
  plan = protocols.plan(config_of('kd', folder, **changes), folder / 'run')
  assert [part.key for part in plan] == ['teacher', 'kd']
  teacher, kd = (part.settings for part in plan)
  assert str(networks.look(teacher, 'teacher')) == look
  # The student under it sees its own.
  assert networks.look(kd, 'student').image_size == 16
  assert kd.teacher.checkpoint == str(folder / 'run' / 'teacher')


def test_it_sees_images_as_published_where_nothing_is_said(folder):
  (folder / 'config.json').unlink()
  plan = protocols.plan(config_of('kd', folder), folder / 'run')
  look = networks.look(plan[0].settings, 'teacher')
  assert str(look) == '32 px, crop 0.875, bicubic'


def loaded_with(folder, said=None, class_names=DIGITS, **changes):
  """The teacher's kernel, with another config.json or settings."""
  if said is None:
    (folder / 'config.json').unlink()
  else:
    (folder / 'config.json').write_text(json.dumps(said))
  (part, *_) = protocols.plan(config_of('kd', folder, **changes), folder / 'r')
  loaded = networks.load(part.settings, 'teacher', list(class_names))
  return loaded.params['head']['kernel']


@pytest.mark.parametrize(
  ('said', 'classes', 'order'),
  [
    (SAID, (), THEIRS),
    (SAID | {'label_names': DIGITS}, (), DIGITS),
    ({k: v for k, v in SAID.items() if k != 'label_names'}, THEIRS, THEIRS),
    (None, DIGITS[5:] + DIGITS[:5], DIGITS[5:] + DIGITS[:5]),
    # What is said here counts.
    (SAID, DIGITS, DIGITS),
  ],
)
def test_classes_are_matched_by_name(said, classes, order, folder, state_dict):
  kernel = loaded_with(folder, said, teacher__classes=tuple(classes))
  expected = state_dict['classifier.weight'].T
  expected = expected[:, [order.index(name) for name in DIGITS]]
  np.testing.assert_array_equal(kernel, expected)


@pytest.mark.parametrize(
  ('said', 'changes', 'message'),
  [
    (None, {}, r'does not name its classes .*config\.teacher\.classes'),
    (
      SAID | {'label_names': [*DIGITS[:9], 'nine']},
      {},
      'only there: nine; only in the data: 9',
    ),
    (
      SAID | {'label_names': [*DIGITS[:9], '0']},
      {},
      'several classes called 0',
    ),
    (
      SAID,
      {'teacher__classes': ('a', 'b')},
      '2 classes there, 10 in the data',
    ),
    (SAID | {'label_names': ['0', '1']}, {}, 'names 2 classes, the head has'),
    (
      SAID | {'architecture': 'resnet18', 'library': 'timm'},
      {},
      'another network than tiny_teacher.*choose timm/resnet18',
    ),
    (SAID, {'teacher__head': 'new'}, 'with config.teacher.head=keep'),
    (SAID, {'teacher__fit': 'early'}, "teacher.fit is 'early', and teacher"),
  ],
)
def test_what_cannot_teach_as_it_is(said, changes, message, folder):
  with pytest.raises(ValueError, match=message):
    loaded_with(folder, said, **changes)


def test_other_classes_than_the_datas(folder):
  with pytest.raises(ValueError, match='10 classes there, 2 in the data'):
    loaded_with(folder, SAID, class_names=['cat', 'dog'])


@pytest.mark.parametrize(
  ('arm', 'changes', 'message'),
  [
    ('tl', {'student__checkpoint': ...}, 'Give them as student.weights'),
    (
      'kd',
      {'distillation__more_teachers': (...,)},
      'make a run of them: --config configs/teacher.py',
    ),
    (
      'kd',
      {'teacher__checkpoint': ..., 'distillation__mutual': True},
      'give them as teacher.weights',
    ),
    ('kd', {'teacher__checkpoint': ...}, 'teacher.head=keep'),
  ],
)
def test_weights_in_the_place_of_a_run(arm, changes, message, folder):
  def put(value):
    if isinstance(value, tuple):
      return tuple(put(part) for part in value)
    return str(folder) if value is ... else value

  config = tiny.make_config(arm, **{k: put(v) for k, v in changes.items()})
  with pytest.raises(UserError, match=message):
    arms.run(config, folder / 'run', sharding.make_mesh())
  assert not (folder / 'run').exists()


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'teacher.classes': ('a', 'b')}, "teacher.head is 'new'; accepted: keep"),
    ({'student.classes': ('a',)}, "student.head is 'new'; accepted: keep"),
    (
      {'teacher.classes': ('a', 'b', 'a'), 'teacher.head': 'keep'},
      "teacher.classes has 'a' twice",
    ),
  ],
)
def test_classes_that_are_not_accepted(values, message):
  with pytest.raises(WrongSettings, match=message):
    settings.with_values(settings.make('kd'), values)


def test_a_teacher_of_chance_is_said_to_be(
  folder, state_dict, cache_dir, tmp_path, caplog
):
  """One class for all images: a tenth of them."""
  same = {
    key: np.zeros_like(value) if key.startswith('classifier.') else value
    for key, value in state_dict.items()
  }
  torch_files.write_safetensors(folder / 'model.safetensors', same)
  config = config_of('teacher', folder, cache_dir)
  arms.run(config, tmp_path / 'run', sharding.make_mesh())
  assert 'teacher is hardly better than chance (0.100)' in caplog.text


# --- Students: how images are prepared ---


@pytest.mark.parametrize(
  ('changes', 'look'),
  [
    ({}, '16 px, crop 0.9, bilinear'),
    ({'data__crop': 0.8}, '16 px, crop 0.8, bilinear'),
    ({'data__interpolation': 'box'}, '16 px, crop 0.9, box'),
    ({'student__weights': 'scratch'}, '16 px, crop 0.875, bicubic'),
    # Digits have no margin.
    ({'dataset': 'digits'}, '16 px, crop 1, bilinear'),
  ],
)
def test_a_students_images_are_cut_as_its_weights_say(changes, look, folder):
  values = {'dataset': 'folder:birds', 'student__weights': str(folder)}
  config = tiny.make_config('tl', **values | changes)
  assert str(networks.look(config, 'student')) == look


def test_all_runs_of_a_plan_see_the_students_images(folder):
  """A probe that it starts from, assistants with weights of their own."""
  config = tiny.make_config(
    'kd',
    dataset='folder:birds',
    student__weights=str(folder),
    student__name='tiny_teacher',
    transfer__probe_steps=2,
    distillation__assistants=('timm/tf_efficientnet_lite3', 'resnet18'),
  )
  looks = {
    part.key: str(networks.look(part.settings, 'student'))
    for part in protocols.plan(config, folder / 'run')
    if part.key != 'teacher'
  }
  assert list(looks) == ['probe', 'assistant1', 'assistant2', 'kd']
  assert set(looks.values()) == {'16 px, crop 0.9, bilinear'}
  plain = settings.with_values(config, {'student.weights': 'pretrained'})
  plain = settings.with_values(plain, {'student.name': 'resnet18'})
  first = next(
    part.settings
    for part in protocols.plan(plain, folder / 'run')
    if part.key == 'assistant1'
  )
  # Its published interpolation is bilinear.
  assert first.data.interpolation == 'bicubic'


@pytest.mark.parametrize(
  ('there', 'now', 'same'),
  [
    ('bicubic', None, False),
    ('bilinear', None, True),
    (None, 'bilinear', True),
    (None, 'box', False),
  ],
)
def test_what_was_left_open_is_what_it_came_to(there, now, same, folder):
  values = {'student__weights': str(folder), 'dataset': 'folder:birds'}
  before, after = (
    tiny.make_config('tl', data__interpolation=value, **values)
    for value in (there, now)
  )
  workdir.write(folder / 'run', before)
  if same:
    workdir.check(folder / 'run', after)
  else:
    with pytest.raises(ValueError, match=r'data\.interpolation: '):
      workdir.check(folder / 'run', after)


def test_a_run_keeps_the_mean_and_std_of_its_weights(folder):
  config = tiny.make_config(
    'tl', student__name='tiny_teacher', student__weights=str(folder)
  )
  loaded = networks.load(config, 'student', DIGITS)
  assert loaded.network.model.spec.mean == pytest.approx((102, 127.5, 153))
  prepared = loaded.network.prepare(np.full((1, 16, 16, 3), 102.0))
  np.testing.assert_allclose(prepared[0, 0, 0], [0, -0.4, -2 / 3], atol=1e-6)


def test_look_alikes_are_compared_before_the_first_step(
  state_dict, cache_dir, monkeypatch, caplog
):
  """Here with itself."""
  monkeypatch.setitem(
    models.MODELS, 'timm/other', models.MODELS['tiny_teacher']
  )
  config = tiny.make_config('tl', cache_dir, student__name='tiny_teacher')
  dataset = decoding.load_dataset(config)
  model = models.create_model('tiny_teacher', num_classes=10)
  variables = pretrained.from_torch(model, state_dict)
  network = networks.make_network(config, 'student', model)
  learner = networks.Loaded(network, *variables, look_alikes=('timm/other',))
  caplog.set_level(logging.INFO, 'absl')
  elsewhere.compare_look_alikes({'student': learner}, dataset)
  said = 'of its weights, their BatchNorm statistics do not tell which'
  assert f'student: {said} (tiny_teacher ' in caplog.text
