"""What a data set holds, for the start of a run, its summary and its page.

Counts of classes, images and what was left out, and exact copies: files of the
same bytes, which make a test easier than it looks. All of it is known from the
index of the prepared copy, so that it costs nothing to say it in every run.
Near copies are looked for where that is asked.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tlkd_jax.data.index import NO_DIGEST, Source
from tlkd_jax.data.sources import Sources

_FIRST_CLASSES = 10

# Splits that must not hold images of those before them.
_ORDER = ('train', 'validation', 'test')
_EARLIER = {'validation': 'train', 'test': 'train or validation'}


def collect(found: Sources, used: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The facts of a data set, as JSON takes them.

  Args:
    found: the data set.
    used: split -> int[N], the labels of the images that a run uses.

  Returns:
    'classes' (count), 'first_classes', 'splits' (for each 'images', of which
    'used', and 'smallest' and 'largest' class as [name, images used]),
    'left_out' (see `walk.count_left_out`) and 'copies' (see `find_copies`).
  """
  names = found.class_names
  splits = {}
  for split, labels in used.items():
    counts = np.bincount(labels, minlength=len(names))
    low, high = int(counts.argmin()), int(counts.argmax())
    splits[split] = {
      'images': len(found.splits[split].names),
      'used': len(labels),
      'smallest': [names[low], int(counts[low])],
      'largest': [names[high], int(counts[high])],
    }
  return {
    'classes': len(names),
    'first_classes': names[:_FIRST_CLASSES],
    'splits': splits,
    'left_out': found.left_out,
    'copies': find_copies(found.splits),
  }


def find_copies(splits: Mapping[str, Source]) -> list[dict[str, Any]]:
  """Exact copies within and across splits and classes.

  Returns:
    What was found, each with 'what' ('across', 'within', 'classes'), the
    'split' where it counts, the 'count' of images there, and an 'example' of
    two names. 'across' has the images of a split that an earlier one holds
    too, 'within' those that the split itself holds once more, 'classes' those
    that are there before with another label.
  """
  order = [split for split in _ORDER if split in splits]
  digests = np.concatenate([splits[s].digests for s in order])
  labels = np.concatenate([splits[s].labels for s in order])
  names = [name for split in order for name in splits[split].names]
  ends = np.cumsum([splits[s].labels.size for s in order])
  first = _first_alike(digests)
  copies = []
  for split, stop in zip(order, ends.tolist(), strict=True):
    rows = np.arange(stop - splits[split].labels.size, stop)
    rows = rows[digests[rows] != NO_DIGEST]
    inside = rows[_first_alike(digests[rows])]
    start = stop - splits[split].labels.size
    for what, others, alike in (
      ('across', first[rows], first[rows] < start),
      ('within', inside, inside != rows),
      ('classes', first[rows], labels[first[rows]] != labels[rows]),
    ):
      if alike.any():
        one = int(alike.argmax())
        copies.append(
          {
            'what': what,
            'split': split,
            'count': int(alike.sum()),
            'example': [names[rows[one]], names[others[one]]],
          }
        )
  return copies


def _first_alike(values: np.ndarray) -> np.ndarray:
  """For each value the position where it stands for the first time."""
  _, first, group = np.unique(values, return_index=True, return_inverse=True)
  return first[group]


def lines(name: str, facts: Mapping[str, Any], notes: Iterable[str]):
  """The facts in words, a line each."""
  if not facts:
    return [*notes]
  first = ', '.join(facts['first_classes'])
  dots = ', ...' * (facts['classes'] > len(facts['first_classes']))
  found = [f'data {name}', f'{facts["classes"]} classes: {first}{dots}']
  for split, held in facts['splits'].items():
    of = f' of {held["images"]}' * (held['used'] < held['images'])
    (low, least), (high, most) = held['smallest'], held['largest']
    each = f'{least} of each class'
    if least < most:
      each = f'{least} ({low}) to {most} ({high}) of a class'
    found.append(f'{split}: {held["used"]}{of} images, {each}')
  found += [f'left out: {line}' for line in left_out_lines(facts['left_out'])]
  found += copies_lines(facts)
  return [*found, *notes]


def left_out_lines(kinds: Iterable[Mapping[str, Any]]) -> list[str]:
  """What `walk.count_left_out` gave, in words."""
  return [
    f'{kind["count"]} ({kind["why"]}), such as {kind["example"]}'
    for kind in kinds
  ]


def copies_lines(facts: Mapping[str, Any]) -> list[str]:
  """The copies of a data set, in words."""
  found = []
  for copy in facts['copies']:
    split, count = copy['split'], copy['count']
    whole = facts['splits'][split]['images']
    said = {
      'across': f'are exact copies of images of {_EARLIER.get(split)}',
      'within': 'are exact copies of others of the same split',
      'classes': 'are exact copies of images of another class',
    }[copy['what']]
    pair = ' = '.join(copy['example'])
    found.append(f'{count} of {whole} images of {split} {said}, such as {pair}')
  return found + _near_lines(facts)


def _near_lines(facts: Mapping[str, Any]) -> list[str]:
  near = facts.get('near_copies')
  if near == []:
    return ['no image of validation or test looks like one of an earlier split']
  return [
    f'{copy["count"]} of {facts["splits"][copy["split"]]["used"]} images of '
    f'{copy["split"]} look like images of {_EARLIER[copy["split"]]} (beside '
    f'exact copies), such as {" ~ ".join(copy["example"])}'
    for copy in near or ()
  ]
