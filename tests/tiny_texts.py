"""Very small CLIPs and SigLIPs of both towers, from fixtures/texts."""

import contextlib
import functools
import gzip
import json
import pathlib
import shutil

import numpy as np

from tests.fixtures import fill_rule
from tlkd_jax import models
from tlkd_jax.models.families import clip, siglip, vit_keys
from tlkd_jax.models.spec import TextDesign
from tlkd_jax.models.weights import torch_files

FOLDER = pathlib.Path(__file__).parent / 'fixtures' / 'texts'
_SIZES = {'hidden': 48, 'patch': 8, 'image_size': 16}


SPECS = {
  'tiny_clip': clip.transformers_spec(
    clip.design(32, 2, 2, activation='quick_gelu', **_SIZES),
    texts=TextDesign(32, 2, 2, 24, hidden=56, activation='quick_gelu'),
  ),
  # timm's names, under which open_clip's files are read.
  'tiny_timm_clip': vit_keys.spec(
    clip.design(32, 2, 2, **_SIZES),
    texts=TextDesign(32, 2, 2, 24, hidden=56),
  ),
  'tiny_siglip': siglip.transformers_spec(
    siglip.design(32, 2, 2, **_SIZES),
    texts=siglip.text_design(32, 2, 2, hidden=56),
  ),
  # As open_clip's: of other numbers than its images.
  'tiny_wide_siglip': siglip.transformers_spec(
    siglip.design(32, 2, 2, **_SIZES),
    texts=siglip.text_design(32, 2, 2, hidden=56, embedding=24),
  ),
}
# Fixture -> its variant, and the tokens of its prompts.
FIXTURES = {
  'clip_old': ('tiny_clip', 'clip'),
  'clip_new': ('tiny_clip', 'clip'),
  'siglip': ('tiny_siglip', 'siglip'),
  'siglip2': ('tiny_siglip', 'siglip2'),
  'open_clip': ('tiny_timm_clip', 'open_clip'),
  'open_clip_siglip': ('tiny_wide_siglip', 'siglip'),
}
OF_IMAGES = ('clip_old', 'clip_new', 'siglip', 'siglip2', 'open_clip')


@contextlib.contextmanager
def registered():
  """The variants are in MODELS while this is open."""
  models.MODELS.update(SPECS)
  try:
    yield
  finally:
    for name in SPECS:
      del models.MODELS[name]


@functools.cache
def tokens() -> dict[str, list]:
  """The prompts, and what each library makes of them."""
  return json.loads((FOLDER / 'tokens.json').read_text('utf-8'))


@functools.cache
def load(fixture: str) -> tuple[dict, dict, dict]:
  """(meta, state dict, reference arrays)."""
  with np.load(FOLDER / f'{fixture}.npz') as archive:
    arrays = {name: archive[name] for name in archive.files}
  meta = json.loads(str(arrays.pop('meta')))
  state_dict = {}
  for name, shape in json.loads(str(arrays.pop('state_dict'))):
    value = fill_rule.fill(name, shape)
    if name in meta['numbers']:
      value = np.full(shape, meta['numbers'][name], np.float32)
    state_dict[name] = value
  return meta, state_dict, arrays


def ids(fixture: str) -> np.ndarray:
  """int [10, L], the tokens that its reference was given."""
  found = np.array(tokens()[FIXTURES[fixture][1]])
  # See make_texts: there the first two words of the vocabulary are the ends.
  return (found + 2) % (found.max() + 1) if fixture == 'clip_new' else found


def write(folder: pathlib.Path, fixture: str) -> pathlib.Path:
  """A folder as a model is published: weights, config.json, tokenizer."""
  meta, state_dict, _ = load(fixture)
  folder.mkdir(parents=True, exist_ok=True)
  torch_files.write_safetensors(folder / 'model.safetensors', state_dict)
  kind = fixture.partition('_')[0]
  if kind == 'open':
    # Its repositories have no config.json of transformers.
    if fixture == 'open_clip':
      pairs = (FOLDER / 'clip' / 'merges.txt').read_bytes()
      path = folder / 'bpe_simple_vocab_16e6.txt.gz'
      path.write_bytes(gzip.compress(pairs))
    else:
      shutil.copy(FOLDER / 'siglip' / 'tokenizer.json', folder)
    return folder
  said = {'text_config': meta['config']['text_config']}
  (folder / 'config.json').write_text(json.dumps(said))
  for path in (FOLDER / kind).iterdir():
    shutil.copy(path, folder)
  if fixture == 'clip_new':
    path = folder / 'vocab.json'
    words = json.loads(path.read_text('utf-8'))
    shifted = {word: (i + 2) % len(words) for word, i in words.items()}
    path.write_text(json.dumps(shifted), 'utf-8')
  return folder
