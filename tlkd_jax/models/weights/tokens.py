"""Texts to the tokens of CLIP, SigLIP and SigLIP 2, by the library tokenizers.

Read are tokenizer.json of any of them and, of CLIP, vocab.json with merges.txt
or open_clip's list of merges. What the published processors do before and
after (cleaning, which tokens begin and end a text, length) is done here, by
the kind that the vocabulary shows, so that it does not hang on what a file says
of it: transformers 5 (CLIPTokenizer, SiglipTokenizer, Siglip2Tokenizer).
"""

import dataclasses
import gzip
import json
import pathlib
import re
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tlkd_jax.models.weights import hub
from tlkd_jax.models.weights.torch_records import WeightsError

JSON = 'tokenizer.json'
_VOCABULARY, _MERGES = 'vocab.json', 'merges.txt'
_OPEN_CLIP = 'bpe_simple_vocab_16e6.txt.gz'
FORMS = f'{JSON}, {_VOCABULARY} with {_MERGES}, or {_OPEN_CLIP}'
# Merges of open_clip's list that are used, behind a line about the version.
_NUM_MERGES = 49152 - 256 - 2
# CLIP's pieces of a text, before byte pairs are merged.
_PIECES = (
  r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
  r'|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+'
)


def canonical(text: str) -> str:
  """Lower case, no punctuation, single spaces: as SigLIP was trained."""
  text = text.lower().translate(str.maketrans('', '', string.punctuation))
  return re.sub(r'\s+', ' ', text).strip()


@dataclasses.dataclass(frozen=True)
class Kind:
  """What surrounds the tokens of a text.

  Attributes:
    title: for messages.
    causal: whether it goes with towers that read the end of a text.
    start: names of the token before a text, () for none.
    end: names of the one behind it, by which the kind is known.
    pad: names of those that fill up a text; () for those of `end`.
    clean: what is done to a text first.
  """

  title: str
  causal: bool
  start: tuple[str, ...]
  end: tuple[str, ...]
  pad: tuple[str, ...]
  clean: Callable[[str], str]


KINDS = (
  Kind(
    'CLIP',
    True,
    ('<|startoftext|>', '<start_of_text>'),
    ('<|endoftext|>', '<end_of_text>'),
    (),
    str,
  ),
  # Before SigLIP, whose `</s>` is a piece of HTML in its vocabulary.
  Kind('SigLIP 2', False, (), ('<eos>',), ('<pad>',), str.lower),
  Kind('SigLIP', False, (), ('</s>',), (), canonical),
)


@dataclasses.dataclass(frozen=True)
class Tokens:
  """A tokenizer, and what it does around a text.

  Attributes:
    path: of its file.
    kind: of KINDS.
    tokenizer: tokenizers.Tokenizer.
    start: number of the token before a text; None for none.
    end: of the one behind it.
    pad: of those that fill it up.
  """

  path: pathlib.Path
  kind: Kind
  tokenizer: Any
  start: int | None
  end: int
  pad: int

  def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
    """int32 [N, length]; a longer text is cut, and keeps its end."""
    rows = []
    for text in texts:
      found = self.tokenizer.encode(
        self.kind.clean(text), add_special_tokens=False
      )
      first = [] if self.start is None else [self.start]
      row = (first + found.ids)[: length - 1] + [self.end]
      rows.append(row + [self.pad] * (length - len(row)))
    return np.array(rows, np.int32)


def find(weights: str, path: pathlib.Path, given: str | None) -> pathlib.Path:
  """The file of the tokenizer that goes with a tower of texts.

  Args:
    weights: of the tower, as `hub.resolve` takes it.
    path: what it gave for them.
    given: config.teacher.tokenizer: a file, a folder, or a name on a hub; None
      looks beside the weights.

  Raises:
    FileNotFoundError: there is none.
  """
  if given is None:
    names = (JSON, _VOCABULARY, _OPEN_CLIP)
    places = (hub.companion(weights, path, name) for name in names)
    found = next((place for place in places if place is not None), None)
    if found is not None and found.name == _VOCABULARY:
      # In a hub's cache it need not be there yet.
      merges = hub.companion(weights, path, _MERGES)
      found = found if merges is not None else None
    if found is None:
      raise FileNotFoundError(
        f'{weights}: no tokenizer lies beside it (nor does a hub give one, '
        f'where it is a name there); accepted are {FORMS} in '
        f'{path.parent}, or one of them, a folder or a name on the hub with '
        'one as config.teacher.tokenizer'
      )
    return found
  place = pathlib.Path(given).expanduser()
  if place.is_dir():
    files = [place / name for name in (JSON, _VOCABULARY, _OPEN_CLIP)]
    place = next((file for file in files if file.is_file()), place)
  elif not place.is_file():
    place = hub.file_of(given, JSON) or place
  if not place.is_file():
    raise FileNotFoundError(
      f'config.teacher.tokenizer is {given!r}, and there is no tokenizer; '
      f'accepted: a file or a folder with {FORMS}, or hf-hub:organisation/name '
      f'with {JSON}'
    )
  return place


def read(path: pathlib.Path) -> Tokens:
  """A tokenizer from a file that `find` gives.

  Raises:
    WeightsError: (a ValueError) it is damaged, or none of CLIP or SigLIP.
  """
  # Few runs need it.
  import tokenizers

  try:
    if path.name in (_VOCABULARY, _MERGES):
      tokenizer = _of_pairs(path)
    elif path.suffix in ('.gz', '.txt'):
      tokenizer = _of_open_clip(path)
    else:
      tokenizer = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # The library raises no class of its own.
    raise WeightsError(
      f'{path}: no tokenizer ({error!r:.200}); accepted: {FORMS}'
    ) from error
  tokenizer.no_padding()
  tokenizer.no_truncation()
  for kind in KINDS:
    end = _number(tokenizer, kind.end)
    if end is None:
      continue
    start = _number(tokenizer, kind.start)
    pad = _number(tokenizer, kind.pad)
    if kind.start and start is None:
      break
    return Tokens(
      path, kind, tokenizer, start, end, end if pad is None else pad
    )
  names = ', '.join(f'{kind.title} ({kind.end[0]})' for kind in KINDS)
  raise WeightsError(
    f'{path}: a tokenizer of none of the kinds that are read, by the token '
    f'that ends a text: {names}'
  )


def _number(tokenizer: Any, names: Sequence[str]) -> int | None:
  numbers = (tokenizer.token_to_id(name) for name in names)
  return next((number for number in numbers if number is not None), None)


def _of_pairs(path: pathlib.Path) -> Any:
  """CLIP's vocab.json and merges.txt, which lie beside each other."""
  vocabulary = json.loads(path.with_name(_VOCABULARY).read_text('utf-8'))
  lines = path.with_name(_MERGES).read_text('utf-8').split('\n')
  lines = lines[1:] if '#version' in lines[0] else lines
  return _clip(vocabulary, _merges(lines))


def _of_open_clip(path: pathlib.Path) -> Any:
  """The list of merges of OpenAI and open_clip, which gives the vocabulary."""
  content = path.read_bytes()
  if path.suffix == '.gz':
    content = gzip.decompress(content)
  merges = _merges(content.decode('utf-8').split('\n')[1 : _NUM_MERGES + 1])
  bytes_ = _bytes()
  words = [*bytes_, *(f'{byte}</w>' for byte in bytes_)]
  words += [''.join(merge) for merge in merges]
  words += ['<|startoftext|>', '<|endoftext|>']
  return _clip({word: i for i, word in enumerate(words)}, merges)


def _merges(lines: Sequence[str]) -> list[tuple[str, str]]:
  pairs = [tuple(line.split()) for line in lines if line.strip()]
  if any(len(pair) != 2 for pair in pairs):
    raise ValueError('a line of merges is no pair')
  return [(first, second) for first, second in pairs]


def _bytes() -> list[str]:
  """A printable character for each byte, in the order of CLIP's vocabulary."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = len(set(range(256)) - set(plain))
  return [chr(code) for code in (*plain, *range(256, 256 + others))]


def _clip(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
  """As transformers makes CLIP's tokenizer of its two files."""
  from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
  )

  special = [
    word
    for names in (KINDS[0].start, KINDS[0].end)
    for word in names
    if word in vocabulary
  ]
  tokenizer = Tokenizer(
    models.BPE(
      vocab=vocabulary,
      merges=merges,
      end_of_word_suffix='</w>',
      unk_token=special[-1] if special else None,
    )
  )
  tokenizer.normalizer = normalizers.Sequence(
    [
      normalizers.NFC(),
      normalizers.Replace(Regex(r'\s+'), ' '),
      normalizers.Lowercase(),
    ]
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(_PIECES), behavior='removed', invert=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  tokenizer.add_special_tokens(
    [AddedToken(word, normalized=False, special=True) for word in special]
  )
  return tokenizer
