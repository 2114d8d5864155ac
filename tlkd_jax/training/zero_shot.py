"""A teacher that learns nothing of the data but its classes' names.

CLIP and SigLIP were trained to tell which text goes with an image. Each class
is the mean of the embeddings of some texts with its name in them (Radford et
al. 2021, arXiv 2103.00020, section 3.1.4); logits are the cosines with the
image's embedding, scaled as both towers learned it. SigLIP was trained by
sigmoids (Zhai et al. 2023, arXiv 2303.15343, section 3); of classes that
exclude each other its logits go through a softmax like all others here, which
its bias, the same for all classes, does not change.

All of it is a linear head (models.zero_shot), computed before the run; then the
tower of texts is let go.
"""

import re
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging

from tlkd_jax import models
from tlkd_jax.models import zero_shot
from tlkd_jax.models.functional import Tree
from tlkd_jax.models.weights import loading, tokens
from tlkd_jax.models.weights import texts as text_files
from tlkd_jax.models.weights.texts import Texts
from tlkd_jax.models.weights.tokens import Tokens
from tlkd_jax.runtime import bars
from tlkd_jax.runtime.errors import listed
from tlkd_jax.settings.networks import PLACE, Teacher
from tlkd_jax.training import preparation

_AT_ONCE = 64
# '7', 'c0', 'n01440764', '10-19'.
_NUMBER = re.compile(r'[\W_]*[^\W\d_]?\d[\d\W_]*')


def read(section: Teacher, class_names: list[str]) -> loading.Weights:
  """The teacher's network under a head of its classes' names.

  Args:
    section: of the settings.
    class_names: of the data.

  Returns:
    As loading.load; the model is 'NAME zero-shot'.

  Raises:
    FileNotFoundError: a file is missing, such as the tokenizer's.
    ValueError: a file is damaged, or has not what is needed: an image tower
      with its projection, a tower of texts.
  """
  source = preparation.weights_of(section)
  if source is None:
    raise ValueError(
      f'no pretrained weights are known for {section.name}; give a file in '
      'config.teacher.weights'
    )
  texts = text_files.read(section.name, section.text_weights or source)
  tokenizer = _tokenizer(section, texts)
  names = [as_text(name) for name in class_names]
  _say(section, names)
  head = head_of(texts, tokenizer, names, section.prompts)
  image = _image_tower(section, source, texts)
  model = models.create_model(
    zero_shot.name_of(section.name), num_classes=len(names)
  )
  model = loading.like(model, image.model)
  licence = image.licence
  if texts.licence != licence:
    licence = f'{licence}; texts: {texts.licence}'
  return loading.Weights(
    model,
    zero_shot.join(image.params, head),
    image.model_state,
    image.source,
    (),
    licence,
  )


def as_text(class_name: str) -> str:
  """A class's name as one would write it: no underscores, single spaces."""
  return ' '.join(class_name.replace('_', ' ').split())


def is_number(class_name: str) -> bool:
  """Whether a name is a number, such as '7', 'c0' or 'n01440764'."""
  return _NUMBER.fullmatch(class_name) is not None


def head_of(
  texts: Texts, tokenizer: Tokens, names: Sequence[str], prompts: Sequence[str]
) -> Tree:
  """{'kernel': [E, K], 'bias': [K]} on the image's unit embedding.

  Both are in the dtype of the tower's parameters.

  Args:
    texts: the tower of texts.
    tokenizer: that goes with it.
    names: of the K classes, as texts.
    prompts: texts with {class}; the classes' embeddings are means over them.
  """
  length = texts.design.length
  ids = tokenizer.encode(
    [prompt.replace(PLACE, name) for name in names for prompt in prompts],
    length,
  )
  _check_numbers(ids, texts, tokenizer)
  _warn_alike(ids.reshape(len(names), -1), names)
  said = _unit(embed(texts, ids)).reshape(len(names), len(prompts), -1)
  classes = _unit(said.mean(axis=1))
  scale = np.exp(np.float64(texts.params['logit_scale']))
  bias = float(texts.params.get('logit_bias', 0.0))
  logging.info(
    'zero-shot: logits are %.4g times the cosine%s',
    *(scale, f' {bias:+.4g}' if bias else ''),
  )
  dtype = np.asarray(texts.params['logit_scale']).dtype
  return {
    'kernel': np.asarray(scale * classes.T, dtype, order='C'),
    'bias': np.full(len(names), bias, dtype),
  }


def embed(texts: Texts, ids: np.ndarray) -> np.ndarray:
  """Embeddings of texts [N, E], not normalised, in the parameters' dtype.

  Args:
    texts: the tower.
    ids: int [N, L], tokens of each.
  """
  read = ends(texts, ids)
  if texts.design.causal:
    # What follows the token that is read is not seen by it.
    ids = ids[:, : read.max() + 1]
  # Vocabularies have up to 256,000 rows, of which these few are read.
  used, rows = np.unique(ids, return_inverse=True)
  params = texts.params | {'tokens': texts.params['tokens'][used]}
  rows = rows.reshape(ids.shape)

  @jax.jit
  def apply(params, rows, read):
    return texts.model.apply(params, {}, (rows, read))[0]['logits']

  found = []
  # Half a digit of a cosine is tens of times that in a logit.
  with jax.default_matmul_precision('highest'):
    starts = range(0, len(rows), _AT_ONCE)
    for start in bars.track(starts, len(starts), 'texts'):
      # The last ones are filled up, so that one program serves all.
      several = np.arange(start, start + min(_AT_ONCE, len(rows)))
      several = np.minimum(several, len(rows) - 1)
      found.append(np.asarray(apply(params, rows[several], read[several])))
  return np.concatenate(found)[: len(rows)]


def ends(texts: Texts, ids: np.ndarray) -> np.ndarray:
  """Position of the token that is read for each text, int [N].

  As transformers has it: the first that ends a text, or, by config.json of
  before its pull request 24773 and in open_clip, that of the largest number.
  """
  if not texts.design.causal:
    return np.full(len(ids), ids.shape[1] - 1)
  if texts.end is None:
    return ids.argmax(axis=1)
  return (ids == texts.end).argmax(axis=1)


def _unit(x: np.ndarray) -> np.ndarray:
  x = np.asarray(x, np.float64)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _image_tower(
  section: Teacher, source: str, texts: Texts
) -> loading.Weights:
  """With its projection, whose outputs are the `logits`; SigLIP has none."""
  width = texts.design.embedding if texts.design.causal else 0
  model = models.create_model(
    section.name,
    num_classes=width,
    dropout=section.dropout,
    drop_path=section.drop_path,
  )
  if not width:
    return loading.load(model, source, jax.random.key(0))
  try:
    return loading.load(model, source, jax.random.key(0), head='keep')
  except ValueError as error:
    raise ValueError(
      f"teacher.fit is 'zero_shot', for which {section.name} is read with its "
      f'projection to the {width} numbers of an embedding (visual_projection, '
      f'or head of timm), as its last layer: {error}'
    ) from error


def _tokenizer(section: Teacher, texts: Texts) -> Tokens:
  path = tokens.find(texts.source, texts.path, section.tokenizer)
  found = tokens.read(path)
  if found.kind.causal != texts.design.causal:
    kind = 'CLIP' if texts.design.causal else 'SigLIP or SigLIP 2'
    raise ValueError(
      f'{path}: the tokenizer of {found.kind.title}, and the texts of '
      f'{section.name} are those of {kind}; give its own as '
      'config.teacher.tokenizer'
    )
  return found


def _check_numbers(ids: np.ndarray, texts: Texts, tokenizer: Tokens) -> None:
  count = texts.design.vocabulary
  if ids.max() >= count:
    raise ValueError(
      f'{tokenizer.path}: its tokens have numbers up to {ids.max()}, and the '
      f'tower of texts in {texts.path} knows {count}: they are not of one '
      'model; give its own as config.teacher.tokenizer'
    )


def _warn_alike(ids: np.ndarray, names: Sequence[str]) -> None:
  """Names that are one text to the tower, such as 'Cat' and 'cat'."""
  found: dict[bytes, str] = {}
  for name, row in zip(names, ids, strict=True):
    other = found.setdefault(row.tobytes(), name)
    if other is not name:
      logging.warning(
        'zero-shot: the classes %r and %r are the same to the tower of texts; '
        'the teacher cannot tell them apart',
        *(other, name),
      )


def _say(section: Teacher, names: Sequence[str]) -> None:
  prompts = section.prompts
  logging.info(
    'zero-shot: %d classes by name: %s; %d prompt%s, the first text %r',
    *(len(names), listed(names, 20), len(prompts), 's' * (len(prompts) > 1)),
    prompts[0].replace(PLACE, names[0]),
  )
  numbers = [name for name in names if is_number(name)]
  if numbers:
    logging.warning(
      'zero-shot: %s say nothing to a text encoder, and a zero-shot teacher '
      'knows no more of these %d of %d classes than their names: give the '
      'classes names (of their folders, or in the table of labels), or choose '
      "teacher.fit='probed'",
      *(listed(numbers, 5), len(numbers), len(names)),
    )
