"""Texts of CLIP and SigLIP: tokens, embeddings and logits of the libraries."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from huggingface_hub import errors

from tests import tiny_texts
from tests.fixtures import fill_rule
from tests.models.parity import error
from tlkd_jax import models
from tlkd_jax.models import zero_shot as network
from tlkd_jax.models.families import text_tower
from tlkd_jax.models.weights import (
  hub,
  huggingface,
  pretrained,
  texts,
  tokens,
  torch_files,
)
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.settings import Teacher
from tlkd_jax.training import zero_shot

FIXTURES = list(tiny_texts.FIXTURES)


@pytest.fixture(autouse=True)
def registered():
  with tiny_texts.registered():
    yield


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp('texts')
  return {name: tiny_texts.write(root / name, name) for name in FIXTURES}


def read(fixture, folders):
  return texts.read(tiny_texts.FIXTURES[fixture][0], str(folders[fixture]))


def tokenizer_of(folder):
  weights = folder / 'model.safetensors'
  return tokens.read(tokens.find(str(folder), weights, None))


@pytest.mark.parametrize('fixture', FIXTURES)
def test_embeddings_of_ten_prompts_are_the_references(fixture, folders):
  found = read(fixture, folders)
  ids = tiny_texts.ids(fixture)
  reference = tiny_texts.load(fixture)[2]['texts64']
  assert error(zero_shot.embed(found, ids), reference) < 5e-5
  with jax.enable_x64(True):
    wide = jax.tree.map(np.float64, found.params)
    found = dataclasses.replace(found, params=wide)
    ours = zero_shot.embed(found, ids)
  assert ours.dtype == np.float64
  assert error(ours, reference) < 1e-6


@pytest.mark.parametrize('fixture', FIXTURES)
def test_tokens_are_the_references(fixture, folders):
  ids = tiny_texts.ids(fixture)
  found = tokenizer_of(folders[fixture])
  ours = found.encode(tiny_texts.tokens()['prompts'], ids.shape[1])
  if fixture == 'open_clip':
    # It fills up with 0, behind the end, where nothing looks.
    assert found.kind.title == 'CLIP'
    behind = np.cumsum(ids == found.end, axis=1) - (ids == found.end) > 0
    ids = np.where(behind, found.pad, ids)
  np.testing.assert_array_equal(ours, ids)
  # One of them is cut, and ends all the same.
  assert (ours[:, -2] != found.pad).sum() == 1
  assert ours[8, -1] == found.end


@pytest.mark.parametrize('fixture', FIXTURES)
def test_every_entry_is_used_once_and_written_back(fixture, folders):
  state_dict = tiny_texts.load(fixture)[1]
  found = read(fixture, folders)
  back = pretrained.to_torch(found.model, found.params, {})
  own = {
    key: value
    for key, value in state_dict.items()
    if not key.startswith(('vision_model.', 'visual_projection.', 'visual.'))
  }
  assert back.keys() == own.keys()
  for key, value in own.items():
    assert (back[key].dtype, back[key].shape) == (value.dtype, value.shape)
    np.testing.assert_array_equal(back[key], value, err_msg=key)
  # A further one is no text's.
  whole = state_dict | {'logit_temperature': np.zeros(())}
  with pytest.raises(ValueError, match='1 unexpected: logit_temperature'):
    pretrained.from_torch(found.model, whole)


@pytest.mark.parametrize(
  'name', ['clip_vit_base_patch32', 'siglip_base_patch16_224']
)
@pytest.mark.parametrize(
  'style', ['transformers', 'open_clip', 'open_clip_apart']
)
def test_published_designs_go_both_ways(name, style):
  """By shapes alone."""
  design = models.MODELS[f'transformers/{name}'].texts
  model = texts.create(design, style)
  table = pretrained.leaf_table(model)
  assert len(table) == len(flatten(model.params_shape))
  assert text_tower.style_of({leaf.key for _, leaf in table.values()}) == style
  parameters = sum(np.prod(shape, dtype=int) for shape, _ in table.values())
  # Those of transformers' CLIPTextModelWithProjection and SiglipTextModel, and
  # the scale, and the bias.
  expected = {True: 63_428_096 + 1, False: 110_271_744 + 2}
  assert parameters == expected[design.causal]


@pytest.mark.parametrize('fixture', tiny_texts.OF_IMAGES)
def test_logits_of_images_are_those_of_both_towers(
  fixture, folders, monkeypatch
):
  name = tiny_texts.FIXTURES[fixture][0]
  # Which of those that it knows a CLIP is, by its names alone.
  known = (huggingface.Network('tiny_timm_clip', {}),)
  monkeypatch.setitem(huggingface.NETWORKS, 'clip', known)
  section = Teacher(
    name=name, weights=str(folders[fixture]), fit='zero_shot',
    prompts=('{class}',),
  )  # fmt: skip
  prompts = tiny_texts.tokens()['prompts']
  found = zero_shot.read(section, prompts)
  assert found.model.name == network.name_of(name)
  images = fill_rule.make_input(16, 16)
  reference = tiny_texts.load(fixture)[2]['logits64']
  # Names of classes are cleaned, which these texts do not all survive.
  names = [zero_shot.as_text(text) for text in prompts]
  same = [i for i, text in enumerate(prompts) if names[i] == text]
  assert len(same) >= 7
  apply = jax.jit(found.model.apply)
  said = np.asarray(apply(found.params, {}, images)[0]['logits'])
  assert error(said[:, same], reference[:, same]) < 5e-5
  with jax.enable_x64(True):
    wide = jax.tree.map(np.float64, found.params)
    tower = read(fixture, folders)
    tower = dataclasses.replace(
      tower, params=jax.tree.map(np.float64, tower.params)
    )
    tokenizer = tokenizer_of(folders[fixture])
    wide['head'] = zero_shot.head_of(tower, tokenizer, names, ('{class}',))
    said = apply(wide, {}, np.float64(images))[0]
  logits = np.asarray(said['logits'])
  assert logits.dtype == np.float64
  assert error(logits[:, same], reference[:, same]) < 1e-6
  norms = np.linalg.norm(np.asarray(said['pre_logits']), axis=1)
  np.testing.assert_allclose(norms, 1)


def test_the_token_that_is_read():
  ids = np.array([[5, 9, 3, 3], [5, 3, 3, 3], [5, 4, 9, 3]])
  design = tiny_texts.SPECS['tiny_clip'].texts
  given = {'design': design, 'model': None, 'params': {}, 'source': ''}
  given |= {'path': None, 'licence': ''}
  of_largest = texts.Texts(end=None, **given)
  of_end = texts.Texts(end=3, **given)
  assert zero_shot.ends(of_largest, ids).tolist() == [1, 0, 2]
  assert zero_shot.ends(of_end, ids).tolist() == [2, 1, 3]
  given['design'] = tiny_texts.SPECS['tiny_siglip'].texts
  assert zero_shot.ends(texts.Texts(end=3, **given), ids).tolist() == [3] * 3


@pytest.mark.parametrize(
  ('said', 'end'),
  [
    ({'text_config': {'eos_token_id': 2}}, None),
    ({'text_config': {'eos_token_id': 1}}, 1),
    ({'text_config': {}}, 49407),
    ({'model_type': 'clip'}, 49407),
    # The older files' second dict counts.
    (
      {
        'text_config': {'eos_token_id': 1},
        'text_config_dict': {'eos_token_id': 2},
      },
      None,
    ),
    ({'text_config': {'eos_token_id': 7}, 'text_config_dict': None}, 7),
    (None, None),
  ],
)
def test_what_config_json_says_of_the_end(said, end, folders, tmp_path):
  folder = tiny_texts.write(tmp_path / 'a', 'clip_old')
  if said is None:
    (folder / 'config.json').unlink()
  else:
    said = {k: v for k, v in said.items() if k != 'model_type'} or {'a': 1}
    (folder / 'config.json').write_text(json.dumps(said))
  assert texts.read('tiny_clip', str(folder)).end == end


@pytest.mark.parametrize(
  ('own', 'message'),
  [
    ({'hidden_act': 'gelu'}, "hidden_act 'gelu' for 'quick_gelu'"),
    ({'num_attention_heads': 4}, 'num_attention_heads 4 for 2'),
    ({'layer_norm_eps': 1e-6}, 'layer_norm_eps 1e-06 for 1e-05'),
  ],
)
def test_texts_of_another_network_by_config_json(own, message, tmp_path):
  folder = tiny_texts.write(tmp_path / 'a', 'clip_old')
  (folder / 'config.json').write_text(json.dumps({'text_config': own}))
  with pytest.raises(ValueError, match=message):
    texts.read('tiny_clip', str(folder))


def test_an_images_tower_alone_has_no_texts(tmp_path):
  state_dict = {
    key: value
    for key, value in tiny_texts.load('clip_old')[1].items()
    if key.startswith('vision')
  }
  path = tmp_path / 'model.safetensors'
  torch_files.write_safetensors(path, state_dict)
  with pytest.raises(ValueError, match=r'no tower of texts .*text_weights'):
    texts.read('tiny_clip', str(path))


def test_texts_of_another_size(tmp_path):
  folder = tiny_texts.write(tmp_path / 'a', 'open_clip')
  with pytest.raises(ValueError, match='not those of texts in open_clip'):
    texts.read('timm/vit_base_patch32_clip_224', str(folder))


# --- Tokenizers ---


def test_no_tokenizer_beside_the_weights(tmp_path):
  weights = tmp_path / 'model.safetensors'
  with pytest.raises(FileNotFoundError, match=r'tokenizer\.json, vocab\.json'):
    tokens.find(str(tmp_path), weights, None)
  # One of two files.
  (tmp_path / 'vocab.json').write_text('{}')
  with pytest.raises(FileNotFoundError, match=r'config\.teacher\.tokenizer'):
    tokens.find(str(tmp_path), weights, None)


@pytest.mark.parametrize('given', ['nowhere', 'empty', 'empty/tokenizer.json'])
def test_a_tokenizer_that_is_not_there(given, tmp_path):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(FileNotFoundError, match='there is no tokenizer; a'):
    tokens.find('x', tmp_path / 'x', str(tmp_path / given))


@pytest.mark.parametrize('name', ['clip', 'siglip', 'siglip2'])
def test_a_tokenizer_by_its_folder_or_file(name, tmp_path):
  folder = tiny_texts.FOLDER / name
  found = tokens.find('x', tmp_path / 'x', str(folder))
  assert found.parent == folder
  assert tokens.find('x', tmp_path / 'x', str(found)) == found
  assert tokens.read(found).kind.title.lower().replace(' ', '') == name


@pytest.mark.parametrize(
  ('weights', 'given', 'there', 'asked'),
  [
    ('hf-hub:a/b@r', None, 'tokenizer.json', [('a/b', 'r')]),
    # CLIP's two files, of which the first is found after the one file is not.
    ('hf-hub:a/b', None, 'vocab.json', [('a/b', None)] * 3),
    ('timm:b.t', None, 'tokenizer.json', [('timm/b.t', None)]),
    ('hf-hub:a/b', 'hf-hub:c/d@r', 'tokenizer.json', [('c/d', 'r')]),
  ],
)
def test_a_tokenizer_of_a_repository(
  weights, given, there, asked, tmp_path, monkeypatch
):
  kind = 'siglip' if there == 'tokenizer.json' else 'clip'
  found = []

  def download(repository, file_name, *, revision, local_files_only):
    assert not local_files_only
    found.append((repository, revision))
    path = tiny_texts.FOLDER / kind / file_name
    if not path.is_file():
      raise errors.LocalEntryNotFoundError('not there')
    return str(path)

  monkeypatch.setattr(hub.huggingface_hub, 'hf_hub_download', download)
  path = tokens.find(weights, tmp_path / 'model.safetensors', given)
  assert path == tiny_texts.FOLDER / kind / there
  # Merges are looked for in the same place, beside the words.
  assert found[: len(asked)] == asked
  monkeypatch.setattr(tiny_texts, 'FOLDER', tmp_path)
  with pytest.raises(FileNotFoundError, match='accepted'):
    tokens.find(weights, tmp_path / 'model.safetensors', given)


@pytest.mark.parametrize(
  ('file_name', 'content'),
  [
    ('tokenizer.json', b'{}'),
    ('tokenizer.json', b'{"model": '),
    ('vocab.json', b'[]'),
    ('bpe.txt.gz', b'no gzip'),
    ('merges.txt.gz', b'\x1f\x8b'),
  ],
)
def test_a_damaged_tokenizer(file_name, content, tmp_path):
  path = tmp_path / file_name
  path.write_bytes(content)
  (tmp_path / 'merges.txt').write_text('#version\na b\n')
  with pytest.raises(ValueError, match='no tokenizer .*accepted: tokenizer'):
    tokens.read(path)


def test_a_tokenizer_of_another_kind(tmp_path):
  content = json.loads(
    (tiny_texts.FOLDER / 'siglip' / 'tokenizer.json').read_text('utf-8')
  )
  text = json.dumps(content).replace('</s>', '[SEP]')
  path = tmp_path / 'tokenizer.json'
  path.write_text(text, 'utf-8')
  with pytest.raises(ValueError, match=r'none of the kinds .*\(</s>\)'):
    tokens.read(path)


@pytest.mark.parametrize(
  ('text', 'clean'),
  [
    ('A photo of a Cat.', 'a photo of a cat'),
    (" bird's  _nest_ ", 'birds nest'),
    ('a\n\tb', 'a b'),
    ('...', ''),
    ('naïve – café', 'naïve – café'),
  ],
)
def test_siglips_texts_are_cleaned(text, clean):
  assert tokens.canonical(text) == clean


def test_what_a_tokenizers_file_says_of_lengths_is_not_followed(tmp_path):
  source = tiny_texts.FOLDER / 'siglip' / 'tokenizer.json'
  content = json.loads(source.read_text('utf-8'))
  content['truncation'] = {
    'direction': 'Right', 'max_length': 3,
    'strategy': 'LongestFirst', 'stride': 0,
  }  # fmt: skip
  path = tmp_path / 'tokenizer.json'
  path.write_text(json.dumps(content), 'utf-8')
  prompts = tiny_texts.tokens()['prompts']
  ours = tokens.read(path).encode(prompts, 64)
  np.testing.assert_array_equal(ours, tiny_texts.ids('siglip'))
