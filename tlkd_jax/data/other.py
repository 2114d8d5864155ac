"""Other labelled data, for a network that was trained on classes of its own."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from tlkd_jax.data import (
  Dataset,
  Files,
  Labelling,
  Look,
  Split,
  decode,
  facts,
  sources,
  transforms,
)
from tlkd_jax.runtime.errors import nearest


def load(
  name: str,
  class_names: Sequence[str],
  look: Look,
  *,
  on_bad_image: str = 'error',
  data_dir: str | os.PathLike | None = None,
  cache_dir: str | os.PathLike | None = None,
  labelling: Labelling | None = None,
) -> Dataset:
  """Decodes a data set for a test alone; its classes are matched by name.

  Args:
    name: of the data, as in load_splits.
    class_names: of the network, K of them; the data may lack some.
    look: of the network.
    on_bad_image: as in load_splits.
    data_dir: likewise.
    cache_dir: likewise.
    labelling: likewise.

  Returns:
    A data set with `class_names` and the one split 'test'; see
    sources.open_test for what that is.

  Raises:
    ValueError: a class that the network does not know, or as load_splits.
    FileNotFoundError: as load_splits.
  """
  found = sources.open_test(
    name, data_dir=data_dir, cache_dir=cache_dir, labelling=labelling
  )
  check_classes(name, found.class_names, class_names)
  places = [list(class_names).index(n) for n in found.class_names]
  source = found.splits['test']
  source = dataclasses.replace(
    source, labels=np.asarray(places, np.int32)[source.labels]
  )
  decoded = decode.decode(
    source,
    decode.whole(source, len(class_names)),
    decode.Geometry(
      transforms.resize_size(look.image_size, look.crop),
      look.image_size,
      look.interpolation,
    ),
    description=f'{name} test',
    on_bad_image=on_bad_image,
  )
  decoded.images.flags.writeable = False
  split = Split(
    decoded.images,
    source.labels[decoded.rows],
    source.indices[decoded.rows],
    [source.names[row] for row in decoded.rows.tolist()],
  )
  absent = [n for n in class_names if n not in found.class_names]
  notes = list(found.notes)
  if absent:
    dots = ', ...' * (len(absent) > 5)
    notes.append(
      f"without {len(absent)} of the network's {len(class_names)} classes, "
      f'with which it may still answer: {", ".join(absent[:5])}{dots}'
    )
  found = dataclasses.replace(
    found, class_names=list(class_names), splits={'test': source}
  )
  return Dataset(
    name,
    list(class_names),
    {'test': split},
    look.image_size,
    found.flip_ok,
    {'test': decoded.skipped},
    notes,
    facts.collect(found, {'test': split.labels}),
    {'test': Files(source.names, source.labels, source.digests)},
    look,
  )


def check_classes(
  name: str, theirs: Sequence[str], class_names: Sequence[str]
) -> None:
  """Raises ValueError where data have a class that a network does not know.

  Args:
    name: of the data.
    theirs: their classes.
    class_names: those of the network.
  """
  unknown = [n for n in theirs if n not in class_names]
  if not unknown:
    return
  near = {n: nearest(n, class_names)[:1] for n in unknown[:5]}
  said = [
    f'{n!r} (is it {found[0]!r}?)' if found else repr(n)
    for n, found in near.items()
  ]
  dots = ', ...' * (len(unknown) > 5)
  more = ', ...' * (len(class_names) > 20)
  raise ValueError(
    f'data set {name!r} has {len(unknown)} classes that the network does not '
    f'know: {", ".join(said)}{dots}; it knows '
    f'{", ".join(list(class_names)[:20])}{more}. Classes are matched by name, '
    'and the data may have fewer'
  )
