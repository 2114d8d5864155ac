"""Mutated images, archives and weight files, in a process with bounds.

    python -m tests.reliability.fuzz KIND COUNT SEED FOLDER

has Hypothesis draw COUNT mutated files and prints a line of JSON for each:
[result, what]. Each file may take `SECONDS`, and the process `GIGABYTES` of
memory. A file that is neither read nor refused ends the search; the smallest
found that does so is then FOLDER/last.
"""

import io
import json
import pathlib
import pickle
import resource
import signal
import sys
import tarfile
import zipfile
from collections.abc import Callable

import hypothesis
import numpy as np
from hypothesis import configuration
from hypothesis import strategies as st

from tests.reliability.outcomes import BAD

SECONDS = 10
GIGABYTES = 6
_TORCH = pathlib.Path(__file__).resolve().parents[1] / 'fixtures/torch_files'


class TooLongError(BaseException):
  """No reader catches it."""


def inject(place) -> list:
  """A process for each kind of file."""
  from tests.reliability import runs
  from tests.reliability.outcomes import Outcome

  found = []
  for kind in SEEDS:
    count = 800 if place.long else 60
    folder = place.root / f'fuzz-{kind}'
    folder.mkdir()
    arguments = ['-m', 'tests.reliability.fuzz', kind, str(count)]
    process = runs.start([*arguments, str(place.seed), str(folder)])
    done = runs.wait(process, 60 + count * SECONDS)
    name = f'mutated {kind}'
    lines = [line for line in done.error.splitlines() if line[:1] == '[']
    found += [Outcome(name, *json.loads(line)) for line in lines]
    told = {result for result, _ in map(json.loads, lines)} & set(BAD)
    if done.code != 0 or (len(lines) < count and not told):
      # A reader that took the process with it.
      bad = 'hang' if done.code is None else 'traceback'
      what = f'file {len(lines)}, code {done.code}: {done.error[-500:]}'
      found.append(Outcome(name, bad, what))
  return found


def images() -> list[bytes]:
  """One of each format that Pillow writes here."""
  from PIL import Image

  draw = np.random.default_rng(0)
  picture = Image.fromarray(draw.integers(0, 256, (24, 20, 3), np.uint8))
  found = []
  for name, options in {
    'JPEG': {},
    'PNG': {},
    'GIF': {},
    'BMP': {},
    'TIFF': {'compression': 'tiff_lzw'},
    'WEBP': {},
    'PPM': {},
    'JPEG2000': {},
    'ICO': {},
    'TGA': {},
    'PCX': {},
    'DDS': {},
  }.items():
    stream = io.BytesIO()
    picture.save(stream, name, **options)
    found.append(stream.getvalue())
  return found


def archives() -> list[bytes]:
  """A zip, a tar and a compressed tar of two classes."""
  data = images()[:3]
  members = {f'{c}/{i}.png': data[i] for c in 'ab' for i in range(3)}
  found = []
  for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w', method) as archive:
      for name, content in members.items():
        archive.writestr(name, content)
    found.append(stream.getvalue())
  for mode in ('w', 'w:gz', 'w:xz'):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
      for name, content in members.items():
        about = tarfile.TarInfo(name)
        about.size = len(content)
        archive.addfile(about, io.BytesIO(content))
    found.append(stream.getvalue())
  return found


def safetensors_files() -> list[bytes]:
  """Files with every kind of shape."""
  import safetensors.numpy

  arrays = {
    'a.weight': np.arange(1024, dtype=np.float32).reshape(32, 32),
    'a.bias': np.zeros(0, np.float16),
    'steps': np.asarray(3),
  }
  return [safetensors.numpy.save(arrays, {'made': 'here'})]


def pickles() -> list[bytes]:
  """What torch.save wrote, and pickles that do something."""

  class Calls:
    def __reduce__(self):
      return (pathlib.Path, ('never',))

  found = [path.read_bytes() for path in sorted(_TORCH.glob('*.bin'))]
  found += [pickle.dumps(Calls(), protocol=p) for p in (0, 2, 4)]
  found += [pickle.dumps({'a': Calls()})]
  return found


SEEDS: dict[str, Callable[[], list[bytes]]] = {
  'images': images,
  'archives': archives,
  'safetensors': safetensors_files,
  'pickles': pickles,
}


@st.composite
def mutated(draw, seeds: list[bytes]) -> bytes:
  """Bits, numbers, cuts, doubled and swapped parts, one to four at once."""
  content = bytearray(draw(st.sampled_from(seeds)))
  for _ in range(draw(st.integers(1, 4))):
    if content:
      _mutate(content, draw)
  return bytes(content)


def _mutate(content: bytearray, draw) -> None:
  # Headers are where the numbers are.
  most = len(content) if draw(st.booleans()) else min(len(content), 200)
  at = draw(st.integers(0, most - 1))
  end = at + draw(st.integers(1, 8))
  how = draw(st.integers(0, 5))
  if how == 0:
    content[at] ^= 1 << draw(st.integers(0, 7))
  elif how == 1:
    content[at:end] = bytes([draw(st.sampled_from([0, 1, 127, 128, 255]))] * 4)
  elif how == 2:
    del content[at : draw(st.integers(at + 1, len(content)))]
  elif how == 3:
    content[at:at] = content[at:end] * draw(st.integers(1, 49))
  elif how == 4:
    content[at:end] = draw(st.binary(min_size=1, max_size=8))
  else:
    other = draw(st.integers(0, len(content) - 1))
    content[at:end], content[other : other + end - at] = (
      content[other : other + end - at],
      content[at:end],
    )


def _reader(kind: str, folder: pathlib.Path) -> Callable[[bytes], None]:
  from tlkd_jax.data import transforms
  from tlkd_jax.data.builders import archives as archived
  from tlkd_jax.data.builders import walk
  from tlkd_jax.models.weights import torch_files

  endings = {'safetensors': 'safetensors', 'pickles': 'pth'}
  path = folder / f'file.{endings.get(kind, kind)}'

  def image(content: bytes) -> None:
    square = transforms.load_square(content, short_side=16, size=16)
    assert square.shape == (16, 16, 3)

  def archive(content: bytes) -> None:
    path.write_bytes(content)
    with archived.open_tree(str(path), folder) as tree:
      for file in tree.files:
        assert not file.name.startswith('/') and '..' not in file.parts
        walk.read_image(tree, file)

  def weights(content: bytes) -> None:
    path.write_bytes(content)
    found = torch_files.read_state_dict(path)
    assert all(isinstance(v, np.ndarray) for v in found.values())

  return {'images': image, 'archives': archive}.get(kind, weights)


def _too_long(*_) -> None:
  raise TooLongError


def _outcome(read: Callable[[bytes], None], content: bytes) -> tuple[str, str]:
  signal.alarm(SECONDS)
  try:
    read(content)
  except ValueError as error:
    return ('refused' if str(error) else 'traceback'), str(error)[:200]
  except TooLongError:
    return 'hang', f'{len(content)} bytes'
  except BaseException as error:
    return 'traceback', repr(error)[:500]
  finally:
    signal.alarm(0)
  return 'survived', ''


def search(
  contents: st.SearchStrategy[bytes],
  read: Callable[[bytes], None],
  count: int,
  seed: int,
  folder: pathlib.Path,
) -> None:
  """Reads `count` drawn files; prints what came of each, or of the smallest.

  Ends with the first that is not survived or refused, which Hypothesis then
  makes smaller, each try a line less to print.
  """
  # What it remembers between runs would make one depend on the last.
  configuration.set_hypothesis_home_dir(folder / 'hypothesis')
  bad: list[tuple[str, str]] = []
  seen = 0

  @hypothesis.seed(seed)
  @hypothesis.settings(
    max_examples=count,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  @hypothesis.given(contents)
  def check(content: bytes) -> None:
    nonlocal seen
    (folder / 'last').write_bytes(content)
    result, what = _outcome(read, content)
    if result in BAD:
      bad.append((result, what))
      raise AssertionError(what)
    if not bad:
      print(json.dumps([result, f'{seen}: {what}']), flush=True)
      seen += 1

  try:
    check()
  except AssertionError:
    print(json.dumps([bad[-1][0], f'{seen}: {bad[-1][1]}']), flush=True)


def main(kind: str, count: int, seed: int, folder: pathlib.Path) -> None:
  """Reads mutated files of a kind, one after the other."""
  read = _reader(kind, folder)
  resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30,) * 2)
  signal.signal(signal.SIGALRM, _too_long)
  contents = mutated(SEEDS[kind]())
  search(contents, read, count, seed + sum(kind.encode()), folder)


if __name__ == '__main__':
  main(
    sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), pathlib.Path(sys.argv[4])
  )
