"""Files as training scripts leave them: what is beside, around and before.

tests/models/test_torch_files.py has the formats and the hostile files.
"""

import argparse
import collections
import datetime
import decimal
import enum
import functools
import json
import pathlib
import pickle
import random
import struct
import uuid

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.models.test_torch_files import (
  assert_equal,
  program,
  push,
  stack_global,
  storage,
  tensor,
  write_legacy,
  write_zip,
)
from tests.test_weights_from_files import filled
from tlkd_jax import models
from tlkd_jax.models.weights import hub, loading, selection, torch_files
from tlkd_jax.models.weights.torch_files import read, read_state_dict
from tlkd_jax.models.weights.torch_records import WeightsError
from tlkd_jax.runtime.trees import flatten

A = {'a': np.arange(4, dtype=np.float32)}
BOTH = pytest.mark.parametrize('write', [write_legacy, write_zip])


class Colour(enum.Enum):
  RED = 1


class Options(dict):
  """A dictionary of another class."""


class Slots:
  __slots__ = ('x',)

  def __init__(self):
    self.x = np.float64(0.5)


def _circle():
  """An object that is reached from itself."""
  found = argparse.Namespace(lr=0.1)
  found.self = found
  return found


def _generator():
  return np.random.default_rng(0)


# What is found beside weights, and the name that is said of it.
BESIDE = [
  (argparse.Namespace(lr=0.1, model='resnet18'), 'argparse.Namespace'),
  (_circle(), 'argparse.Namespace'),
  (np.float64(0.9), 'multiarray.scalar'),
  (np.int64(3), 'multiarray.scalar'),
  (np.bool_(True), 'multiarray.scalar'),
  (np.arange(6).reshape(2, 3), 'numpy'),
  (np.array(['a', 'b']), 'numpy'),
  (np.dtype('f4'), 'numpy.dtype'),
  (_generator(), 'numpy.random'),
  (np.random.RandomState(0), 'numpy.random'),
  (pathlib.PurePosixPath('/data/x'), 'pathlib.PurePosixPath'),
  (pathlib.PurePath('runs'), 'pathlib.Pure'),
  ({1, 2}, 'set'),
  (frozenset({'a'}), 'frozenset'),
  (datetime.datetime(2026, 1, 2), 'datetime.datetime'),
  (datetime.timedelta(seconds=3), 'datetime.timedelta'),
  (Colour.RED, 'Colour'),
  (Options(a=1), 'Options'),
  (collections.defaultdict(list, a=[1]), 'collections.defaultdict'),
  (collections.deque([1, 2], 5), 'collections.deque'),
  (Slots(), 'Slots'),
  (functools.partial(max, 1), 'functools.partial'),
  (decimal.Decimal('0.1'), 'decimal.Decimal'),
  (uuid.UUID(int=7), 'uuid.UUID'),
  (range(3), 'range'),
  (slice(1, 2), 'slice'),
  (1 + 2j, 'complex'),
  (len, 'len'),
  (Options, 'Options'),
  ({'nested': [{'deep': (argparse.Namespace(),)}]}, 'argparse.Namespace'),
]


@BOTH
@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize(('value', 'name'), BESIDE)
def test_beside_the_weights_anything_is_inert(
  value, name, protocol, write, tmp_path
):
  # First of all, as protocol 4 counts what it remembers.
  content = b'}(\x8c\x04args' + pickle.dumps(value, protocol)[2:-1]
  content += push('state_dict') + program({'a': tensor()}) + b'u'
  found = read(write(tmp_path / 'x', content))
  assert_equal(found.tensors, A)
  assert found.entry == 'state_dict'
  opcode = f'opcode {"FROZENSET" if "frozen" in name else "EMPTY_SET"}'
  assert any(name in said or opcode == said[4:] for said in found.beside)


@BOTH
@pytest.mark.parametrize('place', ['value', 'list', 'key', 'class'])
@pytest.mark.parametrize(('value', 'name'), BESIDE[:3] + BESIDE[10:16])
def test_among_the_weights_it_is_refused(value, name, place, write, tmp_path):
  opcodes = push(value)
  inside = {'a': tensor()}
  items = {
    'value': push('b') + opcodes,
    'list': push('b') + b'](' + opcodes + b'e',
    'key': opcodes + push(1),
    'class': push('b') + push({'c': [(opcodes,)]}),
  }[place]
  if place == 'class':
    items = push('b') + b'}(' + push('c') + b'](' + opcodes + b'eu'
  state = program(inside) + b'(' + items + b'u'
  path = write(tmp_path / 'x', {'model': state, 'epoch': 1})
  with pytest.raises(WeightsError, match='which is refused') as raised:
    read_state_dict(path)
  assert name in str(raised.value)


HOSTILE = stack_global('os', 'system') + push(('touch harm',)) + b'R'


@BOTH
@pytest.mark.parametrize(
  'content',
  [
    # The state dict, or a tensor of it, is what a call gives.
    {'state_dict': HOSTILE},
    HOSTILE,
    {'model': HOSTILE + b'(' + push('a') + tensor() + b'u'},
    {'state_dict': {'a': HOSTILE}},
    {'state_dict': {'a': tensor(), 'b': HOSTILE}},
    # A parameter of it, a tensor in its storage, a class of dictionaries.
    {'a': b'ctorch._utils\n_rebuild_parameter\n(' + HOSTILE + b'\x89}tR'},
    {'a': tensor(stored=HOSTILE)},
    {
      'state_dict': stack_global('os', 'dict')
      + push(('touch harm',))
      + b'R('
      + push('a')
      + tensor()
      + b'u'
    },
  ],
)
def test_a_call_that_would_build_weights_is_refused(content, write, tmp_path):
  path = write(tmp_path / 'x', content)
  with pytest.raises(WeightsError, match=r'refers to os\.\w+, which is ref'):
    read_state_dict(path)
  assert not pathlib.Path('harm').exists()


@BOTH
def test_a_state_dict_of_another_class_of_dictionaries(write, tmp_path):
  made = stack_global('mine', 'FlatDict') + b')\x81'
  state = made + b'(' + push('a') + tensor() + b'u'
  path = write(tmp_path / 'x', {'state_dict': state, 'epoch': 1})
  assert_equal(read_state_dict(path), A)


def test_a_whole_model_is_named(tmp_path):
  whole = stack_global('torchvision.models.resnet', 'ResNet') + b')\x81'
  built = whole + b'}(' + push('_parameters') + b'}ub'
  for content, message in (
    (built, 'refers to torchvision.models.resnet.ResNet'),
    ({'model': built}, "entry 'model' is no state dict but a whole object"),
  ):
    path = write_zip(tmp_path / 'x', content)
    with pytest.raises(WeightsError, match=message):
      read_state_dict(path)


@BOTH
def test_tensors_with_attributes(write, tmp_path):
  """torch.save of a tensor or parameter to which something was tied."""
  kind = b'ctorch.nn.parameter\nParameter\n'
  state = push({'tag': 1})
  inner = b'ctorch._utils\n_rebuild_tensor_v2\n'
  args = b'(' + storage() + push(0) + push((4,)) + push((1,)) + b'\x89}t'
  typed = b'ctorch._tensor\n_rebuild_from_type_v2\n('
  typed += inner + kind + args + state + b'tR'
  with_state = b'ctorch._utils\n_rebuild_parameter_with_state\n('
  with_state += tensor() + b'\x89}' + push(argparse.Namespace()) + b'tR'
  for opcodes in (typed, with_state):
    assert_equal(read_state_dict(write(tmp_path / 'x', {'a': opcodes})), A)
  other = typed.replace(b'ctorch.nn.parameter\nParameter\n', b'cmine\nKind\n')
  with pytest.raises(WeightsError, match=r'mine\.Kind'):
    read_state_dict(write(tmp_path / 'x', {'a': other}))


def test_states_of_random_generators(tmp_path):
  state = push(random.getstate())
  path = write_zip(tmp_path / 'x', {'rng': state, 'model': {'a': tensor()}})
  assert_equal(read_state_dict(path), A)


# --- Where the weights are ---


@pytest.mark.parametrize('wrapper', selection.WRAPPERS)
def test_every_wrapper_also_in_another(wrapper, tmp_path):
  for content, entry in (
    ({wrapper: {'a': tensor()}}, wrapper),
    ({'state': {wrapper: {'a': tensor()}}}, f'state.{wrapper}'),
  ):
    found = read(write_zip(tmp_path / 'x', content))
    assert_equal(found.tensors, A)
    assert found.entry == entry


@pytest.mark.parametrize(
  ('names', 'expected'),
  [
    (['module.a.b', 'module.c'], ['a.b', 'c']),
    (['_orig_mod.a', '_orig_mod.c'], ['a', 'c']),
    (['module._orig_mod.a', 'module._orig_mod.c'], ['a', 'c']),
    (
      ['_fsdp_wrapped_module.a', '_fsdp_wrapped_module.b.0'],
      ['a', 'b.0'],
    ),
    (
      ['a.0._fsdp_wrapped_module.w', 'b._checkpoint_wrapped_module.w'],
      ['a.0.w', 'b.w'],
    ),
    (['layer._orig_mod.w', 'head.w'], ['layer.w', 'head.w']),
  ],
)
def test_names_of_wrappers_of_pytorch(names, expected, tmp_path):
  path = write_zip(tmp_path / 'x', {name: tensor() for name in names})
  assert list(read_state_dict(path)) == expected


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    (['a._orig_mod.w', 'a.w'], 'two of its names mean a.w'),
    (['_fsdp_wrapped_module._flat_param'], 'a flat parameter of FSDP'),
  ],
)
def test_names_that_cannot_be_made_plain(names, message, tmp_path):
  path = write_zip(tmp_path / 'x', {name: tensor() for name in names})
  with pytest.raises(WeightsError, match=message):
    read_state_dict(path)


@pytest.mark.parametrize(
  ('content', 'told'),
  [
    ({'arch': 'tf_efficientnet_lite0.in1k', 'version': 2}, ('timm/{lite}',)),
    ({'arch': 'resnet18'}, ('torchvision/resnet18', 'timm/resnet18')),
    (
      {'args': push(argparse.Namespace(model='resnet18', data_path='/d'))},
      ('torchvision/resnet18',),
    ),
    (
      {'args': push(argparse.Namespace(model='resnet18', amp=True))},
      ('torchvision/resnet18', 'timm/resnet18'),
    ),
    ({'args': push(argparse.Namespace(model=3))}, ()),
    ({'arch': 'hf-hub:me/net'}, ()),
    ({'epoch': 3}, ()),
  ],
)
def test_what_training_scripts_say_of_their_network(content, told, tmp_path):
  path = write_zip(tmp_path / 'x', content | {'state_dict': {'a': tensor()}})
  expected = tuple(name.format(lite='tf_efficientnet_lite0') for name in told)
  assert read(path).told == expected


# --- Prefixes, which only the model can tell ---


@pytest.fixture(scope='module')
def resnet():
  """(model, its state dict, its keys with one number each)."""
  model = models.create_model('resnet18', num_classes=10)
  return model, filled('resnet18')


def load(model, path, **options):
  return loading.load(model, str(path), jax.random.key(0), **options)


PREFIXES = (
  'model.',
  'net.',
  'backbone.',
  'timm_model.',
  'encoder.',
  'module.model.',
  'model.backbone.module.',
  'student.net.',
  '_fsdp_wrapped_module.model.',
  'feature_extractor.0.',
)


@pytest.mark.parametrize('prefix', PREFIXES)
def test_one_prefix_of_all_names(prefix, resnet, tmp_path, caplog):
  model, state_dict = resnet
  path = tmp_path / 'x.safetensors'
  prefixed = {prefix + key: value for key, value in state_dict.items()}
  torch_files.write_safetensors(path, prefixed)
  with caplog.at_level('INFO', 'absl'):
    got = load(model, path, head='keep')
  kernel = state_dict['fc.weight'].T
  np.testing.assert_array_equal(got.params['head']['kernel'], kernel)
  said = prefix.removeprefix('module.').removeprefix('_fsdp_wrapped_module.')
  assert f'names without their prefix {said!r}' in caplog.text


def test_what_is_not_under_the_prefix_is_left_out_by_name(
  resnet, tmp_path, caplog
):
  model, state_dict = resnet
  path = tmp_path / 'x.safetensors'
  torch_files.write_safetensors(
    path,
    {f'model.{key}': value for key, value in state_dict.items()}
    | {'criterion.weight': np.ones(3), 'metric.total': np.zeros(())},
  )
  load(model, path)
  assert "begin with 'model.' are left out: criterion.weight, met" in (
    caplog.text.replace(
      "do not begin with 'model.' are", "begin with 'model.' are"
    )
  )


def test_two_networks_in_one_file_are_refused(resnet, tmp_path):
  model, state_dict = resnet
  path = tmp_path / 'x.safetensors'
  torch_files.write_safetensors(
    path,
    {
      f'{name}.{key}': value
      for name in ('model', 'ema_model')
      for key, value in state_dict.items()
    },
  )
  with pytest.raises(
    ValueError, match=r'2 of its parts are .* ema_model\., model\.'
  ):
    load(model, path)


def test_another_networks_prefix_is_not_taken_off(resnet, tmp_path):
  model, state_dict = resnet
  path = tmp_path / 'x.safetensors'
  partial = dict(list(state_dict.items())[:-8])
  torch_files.write_safetensors(
    path, {f'model.{key}': value for key, value in partial.items()}
  )
  with pytest.raises(ValueError, match=r'\d+ missing: layer4'):
    load(model, path)


# --- Folders and several files ---


def write_folder(folder, state_dict, files, name='model.safetensors', parts=1):
  """Weights as transformers saves them: in one file, or with an index."""
  folder.mkdir(exist_ok=True)
  for file, content in files.items():
    (folder / file).write_text(content)
  if parts == 1:
    torch_files.write_safetensors(folder / name, state_dict)
    return folder
  places = {}
  for part in range(parts):
    keys = list(state_dict)[part::parts]
    file = f'part-{part}.safetensors'
    torch_files.write_safetensors(
      folder / file, {key: state_dict[key] for key in keys}
    )
    places |= dict.fromkeys(keys, file)
  index = {'metadata': {}, 'weight_map': places}
  (folder / f'{name}.index.json').write_text(json.dumps(index))
  return folder


SMALL = {f'w{i}': np.full(3, i, np.float32) for i in range(7)}


@pytest.mark.parametrize('parts', [1, 2, 5])
@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
def test_a_folder_and_its_index(name, parts, tmp_path):
  folder = write_folder(tmp_path / 'f', SMALL, {}, name, parts)
  found = read_state_dict(folder)
  assert found.keys() == SMALL.keys()
  assert_equal(dict(sorted(found.items())), SMALL)
  file = name if parts == 1 else f'{name}.index.json'
  assert hub.resolve(str(folder)) == folder / file
  assert read_state_dict(folder / file).keys() == SMALL.keys()


def test_parts_written_by_torch_save(tmp_path):
  for number, key in enumerate('ab'):
    write_zip(tmp_path / f'p{number}.bin', {f'module.{key}': tensor()})
  index = {'weight_map': {'module.a': 'p0.bin', 'module.b': 'p1.bin'}}
  (tmp_path / 'pytorch_model.bin.index.json').write_text(json.dumps(index))
  assert list(read_state_dict(tmp_path)) == ['a', 'b']


@pytest.mark.parametrize('file', ['best.pth', 'last.ckpt', 'net.pt', 'm.bin'])
def test_a_folder_with_one_file(file, tmp_path):
  write_zip(tmp_path / file, {'a': tensor()})
  (tmp_path / 'log.txt').touch()
  assert_equal(read_state_dict(tmp_path), A)


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    (['a.pth', 'b.pth'], 'folder with 2 that may be meant: a.pth, b.pth'),
    (['tf_model.h5'], 'tf_model.h5: weights of TensorFlow'),
    (['flax_model.msgpack'], 'weights of Flax'),
    (['adapter_model.safetensors'], r'an adapter \(LoRA\)'),
    (['.metadata', '__0_0.distcp'], 'consolidate it'),
    (['model.onnx', 'x.pth'], 'a model in ONNX'),
    (['notes.txt'], 'has none of model.safetensors'),
  ],
)
def test_folders_that_are_no_weights(files, message, tmp_path):
  for file in files:
    (tmp_path / file).touch()
  for act in (read_state_dict, lambda path: hub.resolve(str(path))):
    with pytest.raises(WeightsError, match=message) as raised:
      act(tmp_path)
    assert str(raised.value).startswith(str(tmp_path))


def test_a_runs_folder_is_no_weights(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(WeightsError, match='a run of this package'):
    hub.resolve(str(tmp_path))


@pytest.mark.parametrize(
  ('index', 'message'),
  [
    ('{', 'no index of weights'),
    ('[' * 100_000, 'no index of weights'),
    ('[]', 'no index of weights'),
    ('{"weight_map": {}}', 'an index without tensors'),
    ('{"weight_map": {"a": 3}}', 'a file in another folder: 3'),
    ('{"weight_map": {"a": "../x"}}', 'a file in another folder'),
    ('{"weight_map": {"a": "/etc/passwd"}}', 'a file in another folder'),
    ('{"weight_map": {"a": "gone.bin"}}', '1 of its 1 files are not there: g'),
    ('{"weight_map": {"b": "x.bin"}}', 'x.bin lacks 1 of the tensors .*: b'),
    ('{"weight_map": {"a": "page.bin"}}', 'page.bin: an HTML'),
  ],
)
def test_indices_that_are_wrong(index, message, tmp_path):
  write_zip(tmp_path / 'x.bin', {'a': tensor()})
  (tmp_path / 'page.bin').write_text('<html>')
  path = tmp_path / 'model.safetensors.index.json'
  path.write_text(index)
  with pytest.raises(WeightsError, match=message) as raised:
    read_state_dict(path)
  assert str(raised.value).startswith(str(path))


# --- float8 and what no array holds ---


def one_tensor(path, dtype, shape, data):
  entry = {'dtype': dtype, 'shape': shape, 'data_offsets': [0, len(data)]}
  header = json.dumps({'w': entry, '__metadata__': {'a': 'b'}}).encode()
  path.write_bytes(struct.pack('<Q', len(header)) + header + data)
  return path


@pytest.mark.parametrize(
  ('dtype', 'kind'),
  [
    ('F8_E4M3', ml_dtypes.float8_e4m3fn),
    ('F8_E5M2', ml_dtypes.float8_e5m2),
    ('F8_E4M3FNUZ', ml_dtypes.float8_e4m3fnuz),
    ('F8_E5M2FNUZ', ml_dtypes.float8_e5m2fnuz),
    ('F8_E8M0', ml_dtypes.float8_e8m0fnu),
  ],
)
def test_float8(dtype, kind, tmp_path):
  values = np.array([[1, 2], [4, 0.5]]).astype(kind)
  path = one_tensor(tmp_path / 'x', dtype, [2, 2], values.tobytes())
  assert_equal(read_state_dict(path), {'w': values})
  path = one_tensor(tmp_path / 'x', 'F8_E4M3', [2], b'\x7f\x38')
  with pytest.raises(WeightsError, match='w has 1 values of 2 that are NaN'):
    read_state_dict(path)


@pytest.mark.parametrize('name', ['bn1.running_var', 'a.b.norm.running_var'])
@pytest.mark.parametrize('value', [-1e-6, -3.0])
def test_variances_below_0_are_refused(name, value, tmp_path):
  """They would make every answer NaN."""
  good = {name: np.array([0, 1], np.float32), 'w': np.array([-1], np.float32)}
  path = tmp_path / 'x.safetensors'
  save_file(good, path)
  assert_equal(read_state_dict(path), good)
  save_file(good | {name: np.array([1, value], np.float32)}, path)
  with pytest.raises(WeightsError, match=f'{name} has variances below 0'):
    read_state_dict(path)


def test_float8_of_torch_save(tmp_path):
  values = np.array([1, -2, 0.5, 8]).astype(ml_dtypes.float8_e4m3fn)
  kind = b'ctorch\nfloat8_e4m3fn\n'
  opcodes = b'ctorch._utils\n_rebuild_tensor_v3\n('
  opcodes += storage(kind='UntypedStorage') + push(0) + push((4,)) + push((1,))
  opcodes += b'\x89}' + kind + b'tR'
  path = write_zip(tmp_path / 'x', {'a': opcodes}, {'0': values})
  assert_equal(read_state_dict(path), {'a': values})


def test_a_network_in_float8_is_read(resnet, tmp_path):
  model, state_dict = resnet
  small = {
    key: value.astype(ml_dtypes.float8_e4m3fn) if value.ndim == 4 else value
    for key, value in state_dict.items()
  }
  arrays, data, start = {}, b'', 0
  for key, value in small.items():
    raw = value.tobytes()
    dtype = 'F8_E4M3' if value.dtype.itemsize == 1 else 'F32'
    offsets = [start, start + len(raw)]
    arrays[key] = {
      'dtype': dtype,
      'shape': value.shape,
      'data_offsets': offsets,
    }
    data, start = data + raw, offsets[1]
  header = json.dumps(arrays).encode()
  path = tmp_path / 'x.safetensors'
  path.write_bytes(struct.pack('<Q', len(header)) + header + data)
  stem = flatten(load(model, path).params)[f'{model.spec.stem}.kernel']
  expected = small['conv1.weight'].astype(np.float32).transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(stem, expected)


@pytest.mark.parametrize(
  ('dtype', 'shape', 'data', 'message'),
  [
    ('F4', [2, 2], b'\x38' * 2, 'w has the dtype F4; accepted: F64'),
    ('F6_E2M3', [2, 4], b'\x38' * 6, 'w has the dtype F6_E2M3'),
    ('C64', [2], b'\x38' * 16, 'w has the dtype C64'),
    ('F32', [1] * 65, b'\x38' * 4, 'w has 65 dimensions; accepted: at most 64'),
    ('F32', [1] * 200, b'\x38' * 4, 'w has 200 dimensions'),
    ('F9', [2], b'\x38' * 2, 'safetensors cannot read it'),
    ('F32', [3], b'\x38' * 4, 'safetensors cannot read it'),
    ('F32', [2**62, 2**62], b'', 'safetensors cannot read it'),
  ],
)
def test_what_no_array_holds_is_one_message(
  dtype, shape, data, message, tmp_path
):
  path = one_tensor(tmp_path / 'x', dtype, shape, data)
  with pytest.raises(WeightsError, match=message) as raised:
    read_state_dict(path)
  assert '\n' not in str(raised.value)


def test_as_many_dimensions_as_an_array_has(tmp_path):
  path = one_tensor(tmp_path / 'x', 'F32', [1] * 64, b'\x00' * 4)
  assert read_state_dict(path)['w'].ndim == 64
