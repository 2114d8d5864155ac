"""The study's data sets from their public archives.

    python -m benchmarks.public_data trashnet dataset-resized.zip trashnet.zip
    python -m benchmarks.public_data trashnet_whole dataset-resized.zip all.zip
    python -m benchmarks.public_data cifar10 cifar-10-python.tar.gz cifar10.zip

TrashNet (G. Thung and M. Yang, MIT licence): `data/dataset-resized.zip` of
https://github.com/garythung/trashnet, 2,527 photographs of 512 x 384 pixels,
here at half their sides. The 630 of `trashnet_test.txt` are test; without a
split, to be cut into folds, it is `trashnet_whole`.

CIFAR-10 (A. Krizhevsky 2009): https://www.cs.toronto.edu/~kriz/cifar.html, the
Python version; its own split. An image is named by its class and its number
within it, in the order of the batches.

They are written as JPEG in `NAME/{train,test}/CLASS/`, into a zip that is
`folder:` to this package. `python -m tlkd_jax.data.prepare --digest_at` says
whether the decoded arrays are those of docs/reproducing.md.
"""

import argparse
import collections
import io
import pathlib
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tlkd_jax.runtime.atomic import replacing

TEST = pathlib.Path(__file__).with_name('trashnet_test.txt')
# Of the archive, class -> images.
TRASHNET = {
  'cardboard': 403,
  'glass': 501,
  'metal': 410,
  'paper': 594,
  'plastic': 482,
  'trash': 137,
}
_HALF = (256, 192)
_QUALITY = {'trashnet': 90, 'trashnet_whole': 90, 'cifar10': 75}
_BATCHES = {
  'train': [f'data_batch_{number}' for number in range(1, 6)],
  'test': ['test_batch'],
}
_SIDE = 32
# All that a pickle of CIFAR-10 consists of.
_ALLOWED = {
  ('numpy.core.multiarray', '_reconstruct'),
  ('numpy._core.multiarray', '_reconstruct'),
  ('numpy', 'ndarray'),
  ('numpy', 'dtype'),
  ('_codecs', 'encode'),
}
# As every member of the zip is dated, so that it is the same each time.
_DATE = (2020, 1, 1, 0, 0, 0)

# (split or nothing, class, file name, image)
Examples = Iterator[tuple[str, str, str, Image.Image]]


def trashnet(archive: pathlib.Path) -> Examples:
  """The images of TrashNet's archive at half their sides.

  Raises:
    ValueError: it is not that archive; names what is missing or too many.
  """
  test = set(TEST.read_text().split())
  with zipfile.ZipFile(archive) as opened:
    members = {}
    for member in opened.namelist():
      *_, folder, name = ('', *pathlib.PurePosixPath(member).parts)
      hidden = name.startswith('.') or member.startswith('__MACOSX')
      if folder in TRASHNET and name.endswith('.jpg') and not hidden:
        members[f'{folder}/{name}'] = member
    counts = collections.Counter(key.partition('/')[0] for key in members)
    if counts != TRASHNET:
      raise ValueError(
        f'{archive}: images by class {dict(sorted(counts.items()))}; expected '
        f'{TRASHNET}'
      )
    if test - members.keys():
      raise ValueError(
        f'{archive} lacks {len(test - members.keys())} of the images of '
        f'{TEST.name}, such as {min(test - members.keys())}'
      )
    for key, member in sorted(members.items()):
      folder, _, name = key.partition('/')
      image = Image.open(io.BytesIO(opened.read(member))).convert('RGB')
      small = image.resize(_HALF, Image.Resampling.LANCZOS)
      yield ('test' if key in test else 'train'), folder, name, small


def trashnet_whole(archive: pathlib.Path) -> Examples:
  """The same images without a split."""
  for _, label, name, image in trashnet(archive):
    yield '', label, name, image


def cifar10(archive: pathlib.Path) -> Examples:
  """The images of CIFAR-10's archive.

  Raises:
    ValueError: a batch is missing, or holds what no batch holds.
  """
  with tarfile.open(archive) as opened:
    names = {pathlib.PurePosixPath(n).name: n for n in opened.getnames()}

    def read(name: str) -> dict:
      file = opened.extractfile(names[name]) if name in names else None
      if file is None:
        raise ValueError(f'{archive} has no {name}')
      return _Plain(file, encoding='bytes').load()

    classes = [name.decode() for name in read('batches.meta')[b'label_names']]
    for split, batches in _BATCHES.items():
      seen: collections.Counter[str] = collections.Counter()
      for batch in map(read, batches):
        pixels = np.asarray(batch[b'data'], np.uint8)
        pixels = pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
        for values, label in zip(pixels, batch[b'labels'], strict=True):
          name = classes[label]
          yield split, name, f'{seen[name]:04d}.jpg', Image.fromarray(values)
          seen[name] += 1


class _Plain(pickle.Unpickler):
  """Reads arrays, texts, lists and dicts alone: an archive runs no code."""

  def find_class(self, module, name):
    """Refuses what is not in _ALLOWED."""
    if (module, name) not in _ALLOWED:
      raise ValueError(f'a batch holds {module}.{name}, which no batch does')
    return super().find_class(module, name)


MAKERS = {
  'trashnet': trashnet,
  'trashnet_whole': trashnet_whole,
  'cifar10': cifar10,
}


def write(name: str, archive: pathlib.Path, out: pathlib.Path) -> int:
  """Writes a data set as a zip, whole or not at all; returns its images.

  Args:
    name: a key of MAKERS.
    archive: the public one.
    out: the zip.

  Raises:
    ValueError: see MAKERS.
    OSError: a file that cannot be read or written, or is no archive.
  """
  count = 0
  out.parent.mkdir(parents=True, exist_ok=True)
  with replacing(out) as temporary, zipfile.ZipFile(temporary, 'w') as made:
    for split, label, file, image in MAKERS[name](archive):
      data = io.BytesIO()
      image.save(data, 'JPEG', quality=_QUALITY[name])
      path = pathlib.PurePosixPath(name, split, label, file)
      made.writestr(zipfile.ZipInfo(str(path), _DATE), data.getvalue())
      count += 1
  return count


def main(arguments: list[str] | None = None) -> int:
  """Returns the exit code, 2 for a mistake of the user."""
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.public_data', description=__doc__.split('\n')[0]
  )
  parser.add_argument('name', choices=MAKERS)
  parser.add_argument('archive', type=pathlib.Path)
  parser.add_argument('out', type=pathlib.Path)
  args = parser.parse_args(arguments)
  try:
    count = write(args.name, args.archive, args.out)
  except (OSError, ValueError, tarfile.TarError, zipfile.BadZipFile) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'{args.out}: {count:,} images')
  return 0


if __name__ == '__main__':
  sys.exit(main())
