"""Teachers that know the classes by their names alone."""

import dataclasses
import json
import logging
import types

import jax
import numpy as np
import pytest

from tests import tiny, tiny_texts
from tests.fixtures import fill_rule
from tlkd_jax import arms, models, settings
from tlkd_jax.data import Look
from tlkd_jax.evaluation import evaluate
from tlkd_jax.models import zero_shot as network
from tlkd_jax.models.weights import pretrained, texts, tokens, torch_files
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import UserError
from tlkd_jax.settings import Teacher, WrongSettings
from tlkd_jax.study import cells
from tlkd_jax.training import (
  checkpoints,
  costs,
  decoding,
  defaults,
  finished,
  learned,
  networks,
  workdir,
  zero_shot,
)

pytestmark = pytest.mark.usefixtures('tiny_models')

NAMES = ['paper', 'glass_bottle', 'metal', 'trash']


@pytest.fixture(autouse=True)
def registered():
  with tiny_texts.registered():
    yield


@pytest.fixture
def folder(tmp_path):
  return tiny_texts.write(tmp_path / 'clip', 'clip_old')


def section(place, **changes):
  values = {'name': 'tiny_clip', 'weights': str(place), 'fit': 'zero_shot'}
  return Teacher(**values | changes)


def config_of(arm, place, cache_dir=None, **changes):
  values = {
    'teacher__name': 'tiny_clip',
    'teacher__weights': str(place),
    'teacher__fit': 'zero_shot',
  }
  return tiny.make_config(arm, cache_dir, **values | changes)


def test_it_teaches_without_having_learned(folder, cache_dir, tmp_path, caplog):
  config = config_of(
    'kd', folder, cache_dir, loss='kd+cosine', targets__mode='cached',
    targets__views=1, num_steps=3,
    teacher__prompts=('a photo of a {class}.', 'the number {class}'),
  )  # fmt: skip
  with caplog.at_level(logging.INFO, logger='absl'):
    summaries = arms.run(config, tmp_path / 'run', sharding.make_mesh(1))
  assert list(summaries) == ['teacher', 'kd']
  said = caplog.text
  assert 'zero-shot: 10 classes by name: 0, 1, 2, 3, ' in said
  assert "2 prompts, the first text 'a photo of a 0.'" in said
  assert '0, 1, 2, 3, 4, ... (5 more) say nothing to a text encoder' in said
  assert 'teacher, used as it is: top-1' in said
  assert 'teacher is hardly better than chance' in said

  # A run as any other, of a network that is known by its name.
  place = tmp_path / 'run' / 'teacher'
  description = checkpoints.read_description(place)
  assert description.model == 'tiny_clip zero-shot'
  assert description.step == 0
  assert str(description.look) == '16 px, crop 1, bicubic'
  assert 'model.safetensors#sha256=' in summaries['kd']['licences'][0]
  loaded = finished.restore(str(place), description)
  section_ = config.teacher
  expected = zero_shot.read(section_, [str(k) for k in range(10)])
  assert expected.model.params_shape.keys() == {'tower', 'head'}
  jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
  images = decoding.load_seen(config, description.look).splits['test']
  prepared = loaded.network.prepare(np.asarray(images.images, np.float32))
  say = jax.jit(expected.model.apply)
  logits = say(expected.params, {}, prepared)[0]['logits']
  stored = evaluate.load(place / 'predictions' / 'test.npz')
  by_row = {int(k): r for k, r in zip(images.indices, logits, strict=True)}
  rows = np.stack([by_row[int(k)] for k in stored.indices])
  np.testing.assert_allclose(stored.logits, rows, atol=1e-4)

  # What its targets say is measured as of any teacher.
  own, under = (summaries[k]['teacher'] for k in ('teacher', 'kd'))
  assert under['test']['nll'] == pytest.approx(own['test']['nll'])
  assert 'effective_classes' in str(summaries['kd'])
  again = arms.run(config, tmp_path / 'run', sharding.make_mesh(1))
  assert again == summaries


def test_a_finished_one_teaches_by_its_folder(folder, cache_dir, tmp_path):
  config = config_of('teacher', folder, cache_dir)
  run = tmp_path / 'run'
  arms.run(config, run, sharding.make_mesh(1))
  for changes in ({}, {'teacher__fit': 'zero_shot'}):
    guided = tiny.make_config(
      'kd', cache_dir, teacher__name='tiny_clip',
      teacher__checkpoint=str(run), **changes,
    )  # fmt: skip
    finished.check_named(guided)
    digits = [str(k) for k in range(10)]
    (loaded,) = networks.load_teachers(guided, digits).values()
    assert loaded.network.model.name == 'tiny_clip zero-shot'
    # In another order of classes.
    (other,) = networks.load_teachers(guided, digits[::-1]).values()
    kernel = np.asarray(loaded.params['head']['kernel'])
    np.testing.assert_array_equal(
      other.params['head']['kernel'], kernel[:, ::-1]
    )


def filled_clip(folder):
  """A published size of both towers by the fill rule, with few words."""
  name = 'transformers/clip_vit_base_patch32'
  design = models.MODELS[name].texts
  design = dataclasses.replace(design, vocabulary=914)
  tables = [
    pretrained.leaf_table(models.create_model(name, num_classes=512)),
    pretrained.leaf_table(texts.create(design, 'transformers')),
  ]
  state_dict = {
    leaf.key: fill_rule.fill(leaf.key, leaf.to_torch(np.empty(shape)).shape)
    for table in tables
    for shape, leaf in table.values()
  }
  del state_dict['visual_projection.bias']
  torch_files.write_safetensors(folder / 'model.safetensors', state_dict)
  said = {
    'model_type': 'clip',
    'text_config': {'hidden_act': 'quick_gelu', 'eos_token_id': 2},
    'vision_config': {'hidden_act': 'quick_gelu', 'patch_size': 32},
  }
  (folder / 'config.json').write_text(json.dumps(said))
  return name


@pytest.mark.slow
def test_the_command_with_a_clip_of_a_published_size(
  start_main, folder, cache_dir, tmp_path
):
  name = filled_clip(folder)
  process = start_main(
    f'--config=configs/kd.py:teacher={name},student=mobilenet_v2,smoke',
    '--config.teacher.fit=zero_shot',
    "--config.teacher.prompts=('a photo of a {class}.','the number {class}')",
    f'--config.teacher.weights={folder}',
    '--config.teacher.image_size=64',
    '--config.student.weights=scratch',
    '--config.image_size=32',
    f'--config.data.cache_dir={cache_dir}',
    f'--workdir={tmp_path / "run"}',
  )
  output, errors = process.communicate(timeout=1500)
  assert process.returncode == 0, errors
  assert 'TL+KD' in output
  assert 'say nothing to a text encoder' in errors
  assert f'{name} by {folder / "config.json"}' in errors
  summaries = [path.parent for path in tmp_path.glob('run/**/summary.json')]
  place = next(path for path in summaries if path.name == 'teacher')
  assert checkpoints.read_description(place).model == f'{name} zero-shot'


# --- The head ---


def test_prompts_are_averaged_as_unit_vectors(folder):
  prompts = ('a photo of a {class}.', 'a {class} and a {class}', '{class}')
  tower = texts.read('tiny_clip', str(folder))
  tokenizer = tokens.read(folder / 'vocab.json')
  names = [zero_shot.as_text(name) for name in NAMES]
  head = zero_shot.head_of(tower, tokenizer, names, prompts)
  assert head['kernel'].shape == (24, 4)
  assert head['kernel'].dtype == head['bias'].dtype == np.float32
  for column, name in zip(head['kernel'].T, names, strict=True):
    ids = tokenizer.encode([p.replace('{class}', name) for p in prompts], 77)
    each = zero_shot.embed(tower, ids)
    mean = np.mean([e / np.linalg.norm(e) for e in each], axis=0)
    expected = np.exp(2.5) * mean / np.linalg.norm(mean)
    np.testing.assert_allclose(column, expected, atol=1e-5)
  assert not head['bias'].any()


def test_a_bias_and_many_texts(tmp_path, monkeypatch):
  """SigLIP's bias; batches of texts, of which the last is filled up."""
  folder = tiny_texts.write(tmp_path / 'siglip', 'siglip')
  tower = texts.read('tiny_siglip', str(folder))
  tokenizer = tokens.read(folder / 'tokenizer.json')
  head = zero_shot.head_of(tower, tokenizer, NAMES, ('{class}', 'a {class}'))
  np.testing.assert_array_equal(head['bias'], np.float32(-9.5))
  monkeypatch.setattr(zero_shot, '_AT_ONCE', 3)
  again = zero_shot.head_of(tower, tokenizer, NAMES, ('{class}', 'a {class}'))
  np.testing.assert_allclose(again['kernel'], head['kernel'], atol=1e-5)


def test_bfloat16_leaves_the_cosines_their_digits(folder):
  """Rounded to eight bits, logits would be wrong by tenths."""
  found = zero_shot.read(section(folder), NAMES)
  images = fill_rule.make_input(16, 16)
  apply = jax.jit(found.model.apply)
  said = apply(found.params, {}, images.astype(jax.numpy.bfloat16))[0]
  assert said['logits'].dtype == np.float32
  unit = np.asarray(said['pre_logits'], np.float32)
  rounded = unit @ found.params['head']['kernel'] + found.params['head']['bias']
  np.testing.assert_allclose(said['logits'], rounded, atol=0.1)
  values = np.asarray(said['logits'])
  assert (values != values.astype(jax.numpy.bfloat16)).any()


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('glass_bottle', 'glass bottle'),
    ('_a__b_', 'a b'),
    ('Glass  bottle ', 'Glass bottle'),
    ('t-shirt', 't-shirt'),
    ('7', '7'),
  ],
)
def test_names_are_written_as_one_would(name, text):
  assert zero_shot.as_text(name) == text


@pytest.mark.parametrize(
  ('name', 'number'),
  [
    *[(name, True) for name in ('7', '007', '1.5', '10-19', 'c0', 'n01440764')],
    *[(name, True) for name in ('#3', '-1', '2 000')],
    *[(name, False) for name in ('cat', 'A', '3d', 'route 66', 'x2y', 'мяч')],
    *[(name, False) for name in ('7 up', 'no7', 'café')],
  ],
)
def test_names_that_say_nothing(name, number):
  assert zero_shot.is_number(name) == number


@pytest.mark.parametrize(
  ('names', 'warned'),
  [
    (['Cat', 'cat'], "the classes 'Cat' and 'cat' are the same"),
    (['cat', 'dog', 'dog '], "the classes 'dog' and 'dog ' are the same"),
    (['cat', 'dog'], ''),
    (['cat', '3', '4'], '3, 4 say nothing to a text encoder'),
  ],
)
def test_warnings_about_names(names, warned, folder, caplog, monkeypatch):
  monkeypatch.setattr(zero_shot, 'embed', lambda texts, ids: np.ones((1, 24)))
  monkeypatch.setattr(zero_shot, 'as_text', lambda name: name)
  monkeypatch.setattr(zero_shot, '_unit', lambda x: np.ones((len(names), 24)))
  zero_shot.read(section(folder), names)
  found = [r.getMessage() for r in caplog.records if r.levelname == 'WARNING']
  found = [text for text in found if text.startswith('zero-shot: ')]
  assert len(found) == bool(warned)
  assert warned in ''.join(found)


# --- What is wrong is said before any work ---


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    (
      {},
      'and efficientnet_lite2 was not trained with texts; accepted: a te',
    ),
    ({'teacher.name': 'resnet50'}, 'resnet50 was not trained with texts'),
    (
      {'teacher.name': 'timm/vit_small_patch14_dinov2'},
      'timm/vit_small_patch14_dinov2 was not trained with texts',
    ),
    (
      {'teacher.name': 'timm/vit_base_patch16_siglip_gap_224'},
      'was not trained with texts',
    ),
    (
      {'teacher.name': 'tiny_clip', 'teacher.weights': 'scratch'},
      'teacher.weights are from scratch',
    ),
    (
      {'teacher.name': 'tiny_clip', 'teacher.head': 'keep'},
      "teacher.head is 'keep', and teacher.fit 'zero_shot'",
    ),
    (
      {
        'arm': 'teacher',
        'teacher.name': 'tiny_clip',
        'teacher.checkpoint': 'runs/a',
      },
      "teacher.checkpoint is 'runs/a'; accepted: None",
    ),
    (
      {'teacher.name': 'tiny_clip', 'distillation.mutual': True},
      "teacher.fit is 'zero_shot', and with distillation.mutual",
    ),
  ],
)
def test_settings_that_exclude_it(values, message):
  with pytest.raises(WrongSettings, match=message):
    settings.with_values(
      settings.make('kd'), {'teacher.fit': 'zero_shot'} | values
    )


def without_projection(folder):
  state_dict = dict(tiny_texts.load('clip_old')[1])
  del state_dict['visual_projection.weight']
  torch_files.write_safetensors(folder / 'model.safetensors', state_dict)


def other_head(folder):
  state_dict = dict(tiny_texts.load('clip_old')[1])
  state_dict['visual_projection.weight'] = np.zeros((1000, 32), np.float32)
  torch_files.write_safetensors(folder / 'model.safetensors', state_dict)


def images_alone(folder):
  state_dict = {
    key: value
    for key, value in tiny_texts.load('clip_old')[1].items()
    if not key.startswith(('text_', 'logit_'))
  }
  torch_files.write_safetensors(folder / 'model.safetensors', state_dict)


def half_of_the_texts(folder):
  state_dict = dict(tiny_texts.load('clip_old')[1])
  del state_dict['logit_scale'], state_dict['text_projection.weight']
  torch_files.write_safetensors(folder / 'model.safetensors', state_dict)


def no_tokenizer(folder):
  (folder / 'vocab.json').unlink()


def tokenizer_of_siglip(folder):
  text = (tiny_texts.FOLDER / 'siglip' / 'tokenizer.json').read_text('utf-8')
  (folder / 'tokenizer.json').write_text(text, 'utf-8')


def larger_vocabulary(folder):
  path = folder / 'vocab.json'
  words = json.loads(path.read_text('utf-8'))
  path.write_text(
    json.dumps({word: i + 9 for word, i in words.items()}), 'utf-8'
  )


BROKEN = [
  (images_alone, r'no tower of texts .*config\.teacher\.text_weights'),
  (half_of_the_texts, '2 missing: logit_scale, text_projection.weight'),
  (without_projection, 'with its projection to the 24 numbers .*no head to ke'),
  (other_head, 'with its projection to the 24 numbers .*has 1000 classes'),
  (no_tokenizer, r'no tokenizer lies beside it .*accepted are tokenizer\.json'),
  (tokenizer_of_siglip, 'the tokenizer of SigLIP, and the texts of tiny_clip'),
  (larger_vocabulary, 'numbers up to 922, and the tower of texts'),
]


@pytest.mark.parametrize(('breaks', 'message'), BROKEN)
def test_files_that_are_not_enough(breaks, message, folder):
  breaks(folder)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    networks.load(config_of('teacher', folder), 'teacher', NAMES)


def test_a_mistake_is_said_before_any_work(
  folder, cache_dir, tmp_path, monkeypatch
):
  images_alone(folder)
  config = config_of('kd', folder, cache_dir)
  forecast = types.SimpleNamespace(say=lambda *_: None)
  monkeypatch.setattr(arms, 'forecast', forecast)
  with pytest.raises(UserError, match=r'no tower of texts .*text_weights'):
    arms.run(config, tmp_path / 'run', sharding.make_mesh(1))
  # Nothing that the mended command would find to be of other settings.
  assert not list((tmp_path / 'run').rglob('config.json'))


def test_texts_and_tokenizer_from_elsewhere(folder, tmp_path):
  """As of timm, whose files have images alone."""
  expected = zero_shot.read(section(folder), NAMES)
  other = tiny_texts.write(tmp_path / 'other', 'clip_old')
  images_alone(folder)
  for file_name in ('vocab.json', 'merges.txt'):
    (folder / file_name).rename(tmp_path / file_name)
    (other / file_name).unlink()
  found = zero_shot.read(
    section(
      folder,
      text_weights=str(other),
      tokenizer=str(tmp_path / 'vocab.json'),
    ),
    NAMES,
  )
  jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
  first, second = found.licence.split('; texts: ')
  assert 'clip/model.safetensors' in first
  assert 'other/model.safetensors' in second


# --- Around the run ---


@pytest.mark.parametrize(
  ('changes', 'look'),
  [
    ({}, Look(224, 1.0, 'bicubic')),
    ({'teacher.image_size': 96}, Look(96, 1.0, 'bicubic')),
    ({'teacher.crop': 0.5}, Look(224, 0.5, 'bicubic')),
    ({'teacher.interpolation': 'box'}, Look(224, 1.0, 'box')),
    ({'image_size': 64}, Look(224, 1.0, 'bicubic')),
    ({'teacher.name': 'timm/vit_base_patch16_siglip_384'}, Look(384, 0.9, ...)),
    ({'arm': 'teacher'}, Look(224, 1.0, 'bicubic')),
    ({'arm': 'compare'}, Look(224, 1.0, 'bicubic')),
    # Digits have no margin.
    ({'dataset': 'digits'}, Look(224, 1.0, 'bicubic')),
    ({'dataset': 'digits', 'data.crop': 0.7}, Look(224, 0.7, 'bicubic')),
  ],
)
def test_its_images_are_those_of_its_training(changes, look):
  values = {
    'dataset': 'folder:birds',
    'teacher.fit': 'zero_shot',
    'teacher.name': 'transformers/clip_vit_base_patch32',
  }
  found = defaults.settled(
    settings.with_values(settings.make('kd'), values | changes)
  )
  teacher = settings.with_values(found, {'arm': 'teacher'})
  ours = networks.look(teacher, 'teacher')
  assert (ours.image_size, ours.crop) == (look.image_size, look.crop)
  assert look.interpolation in (ours.interpolation, ...)


def test_a_folder_says_how_its_images_were(folder):
  (folder / 'config.json').write_text(
    json.dumps({
      'architecture': 'tiny_clip', 'library': 'efficientnet_lite_pytorch',
      'pretrained_cfg': {'input_size': [3, 32, 32], 'crop_pct': 0.8},
    })
  )  # fmt: skip
  config = config_of('kd', folder, dataset='folder:birds')
  teacher = defaults.settled(config).teacher
  assert (teacher.image_size, teacher.crop) == (32, 0.8)


def test_it_takes_no_steps_and_costs_nothing_to_fit(folder):
  config = config_of('teacher', folder, teacher__num_steps=7)
  assert workdir.num_steps(config) == 0
  other = config_of('tl', folder, cost_matched=True)
  assert costs._images_to_fit(other, None, 3) == 0
  assert workdir.num_steps(other) > 0


def test_a_study_counts_no_image_that_it_learned_from(folder):
  own = config_of('teacher', folder)
  assert learned.images(own, folder, {'num_train': 9}) == 0
  rows = [{'split': 'validation', 'step': 0, 'top1': 0.5}]
  assert cells._with_seconds(rows) == [rows[0] | {'seconds': 0.0}]


def test_names_of_networks():
  name = network.name_of('tiny_clip')
  assert models.variant_of(name) == network.variant_of(name) == 'tiny_clip'
  assert models.variant_of('tiny_clip') == 'tiny_clip'
  assert models.variant_of('resnet18 x3') == 'resnet18'
  with pytest.raises(ValueError, match='only CLIP and SigLIP'):
    models.create_model('resnet18 zero-shot', num_classes=2)
  with pytest.raises(ValueError, match=r"unknown model 'resnet19"):
    models.create_model('resnet19 zero-shot', num_classes=2)
