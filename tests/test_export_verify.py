"""Exported files against their run, and what is none of its files."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests import exports, tiny
from tlkd_jax import export
from tlkd_jax.data import sources
from tlkd_jax.evaluation import evaluate
from tlkd_jax.evaluation.predictions import softmax
from tlkd_jax.export import __main__ as command
from tlkd_jax.export import formats, hub, preprocessing, reading
from tlkd_jax.runtime.errors import UserError


@pytest.fixture(scope='module', autouse=True)
def models():
  with tiny.registered():
    yield


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """A folder with two runs of the same images and a file of the first."""
  root = tmp_path_factory.mktemp('runs')
  data = exports.write_images(root / 'photos')
  exports.write_run(root / 'kd', data, root / 'cache')
  exports.write_run(root / 'other', data, root / 'cache', seed=3)
  export.export_run(root / 'kd', 'safetensors', root / 'a.safetensors')
  return root


@pytest.fixture
def file(root, tmp_path):
  """A file of the run kd, and the JSON beside it, to be changed."""
  for name in ('a.safetensors', 'a.safetensors.json'):
    shutil.copy(root / name, tmp_path / name)
  return tmp_path / 'a.safetensors'


def change(file, **changes):
  beside = file.with_name(f'{file.name}.json')
  about = json.loads(beside.read_text()) | changes
  kept = {key: value for key, value in about.items() if value is not None}
  beside.write_text(json.dumps(kept))


def test_a_file_gives_what_its_run_has_stored(root, file):
  (found,) = export.verify_export(file, root / 'kd')
  test = evaluate.load(root / 'kd' / 'predictions' / 'test.npz')
  accuracy = (test.logits.argmax(1) == test.labels).mean()
  assert found.accuracy == found.reference_accuracy == accuracy
  assert found.count == 15 and found.agreement == 1.0
  assert found.largest_difference < 1e-6
  low, high = found.milliseconds_range
  assert 0 < low <= found.milliseconds <= high
  said = str(found)
  assert '15 test images of the run, beside its stored predictions' in said
  assert 'same class 15 of 15 (100.00%)' in said
  assert 'batches of 1, JAX on cpu' in said


def test_each_image_is_compared_with_its_own_prediction(root, file, tmp_path):
  """In whatever order, and however few, the run has stored them."""
  shutil.copytree(root / 'kd', tmp_path / 'kd')
  stored = tmp_path / 'kd' / 'predictions' / 'test.npz'
  test = evaluate.load(stored)
  rows = np.asarray([7, 2, 11])
  fields = dataclasses.asdict(test)
  few = {name: value[rows] for name, value in fields.items()}
  logits = few['logits'].copy()
  logits[1, 3] += 0.5
  few['logits'] = logits
  evaluate.save(stored, evaluate.Predictions(**few))
  (found,) = export.verify_export(file, tmp_path / 'kd')
  before, after = softmax(test.logits[2]), softmax(logits[1])
  assert found.count == 3
  assert found.largest_difference == pytest.approx(
    np.abs(before - after).max(), abs=1e-6
  )
  source = sources.open_sources(
    f'folder:{root / "photos"}', cache_dir=root / 'cache'
  ).splits['test']
  assert found.at == source.names[int(few['indices'][1])]


def test_other_data_are_compared_with_the_network_now(root, file, tmp_path):
  """Of fewer classes, in another order of folders."""
  classes = (exports.CLASSES[3], exports.CLASSES[1])
  exports.write_images(tmp_path / 'more', classes, {'train': 2}, seed=5)
  (found,) = export.verify_export(
    file, root / 'kd', f'folder:{tmp_path / "more"}'
  )
  assert found.count == 4 and found.reference == 'what its network says now'
  assert found.agreement == 1.0 and found.largest_difference < 1e-6
  assert found.accuracy == found.reference_accuracy
  student = exports.student_of()
  hits = []
  for name in classes:
    for path in (tmp_path / 'more' / 'train' / name).iterdir():
      square = preprocessing.square(
        student.description, np.asarray(Image.open(path))
      )
      best = student.logits_of(square[None])[0].argmax()
      hits.append(exports.CLASSES[best] == name)
  assert found.accuracy == np.mean(hits)


def test_its_own_data_by_their_name_are_its_test_images(root, file):
  (found,) = export.verify_export(
    file, root / 'kd', f'folder:{root}/../{root.name}/photos'
  )
  assert found.reference == 'its stored predictions' and found.count == 15


def test_a_run_without_predictions_says_them_now(root, file, tmp_path):
  shutil.copytree(root / 'kd', tmp_path / 'kd')
  shutil.rmtree(tmp_path / 'kd' / 'predictions')
  (found,) = export.verify_export(file, tmp_path / 'kd')
  assert found.reference == 'what its network says now'
  assert found.count == 15 and found.agreement == 1.0


def test_a_folder_for_a_hub(root, tmp_path, monkeypatch):
  needy = dataclasses.replace(formats.FORMATS['onnx'], needs=('no_such',))
  monkeypatch.setitem(formats.FORMATS, 'onnx', needy)
  out = tmp_path / 'folder'
  export.export_run(root / 'kd', 'hub', out)
  (found,) = export.verify_export(out, root / 'kd')
  assert found.file == str(out / hub.WEIGHTS) and found.agreement == 1.0
  with pytest.raises(UserError, match='is of another run'):
    export.verify_export(out, root / 'other')


REVERSED = list(reversed(exports.CLASSES))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'label_names': REVERSED}, 'its classes in another order than the run'),
    ({'label_names': ['a', 'b']}, 'has other classes than the run: a, b there'),
    (
      {'pretrained_cfg': {'input_size': [3, 32, 32]}},
      'takes images of 32 px, and the run has 16 px',
    ),
    ({'weights_digest': '0' * 32}, 'is of another run'),
  ],
)
def test_what_a_file_says_of_itself(changes, message, root, file):
  change(file, **changes)
  with pytest.raises(UserError, match=message):
    export.verify_export(file, root / 'kd')


@pytest.mark.parametrize('said', [True, False])
def test_a_file_of_another_run(said, root, file):
  if not said:
    file.with_name(f'{file.name}.json').unlink()
  with pytest.raises(UserError, match='is of another run'):
    export.verify_export(file, root / 'other')


def test_a_file_without_a_word_beside_it(root, file):
  file.with_name(f'{file.name}.json').unlink()
  (found,) = export.verify_export(file, root / 'kd')
  assert found.agreement == 1.0


def test_half_precision_is_of_its_run(root, file):
  change(file, sha256=None)
  tensors = load_file(file)
  save_file({k: v.astype(np.float16) for k, v in tensors.items()}, file)
  (found,) = export.verify_export(file, root / 'kd')
  assert 1e-6 < found.largest_difference < 1e-2


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('a.onnx', None, 'a.onnx: no such file or folder'),
    ('a.pth', b'', 'accepted are .safetensors, .onnx, .stablehlo and folders'),
    ('a.safetensors', b'no weights', 'a.safetensors'),
    ('a.stablehlo', b'no program', 'is no program of jax.export'),
  ],
)
def test_no_files_of_an_export(
  name, content, message, root, tmp_path, monkeypatch
):
  for format in ('onnx', 'stablehlo'):
    free = dataclasses.replace(formats.FORMATS[format], needs=())
    monkeypatch.setitem(formats.FORMATS, format, free)
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=message):
    export.verify_export(tmp_path / name, root / 'kd')


@pytest.mark.parametrize('name', ['a.safetensors', 'renamed.safetensors'])
def test_a_wrong_byte_is_named(name, root, file):
  """Wherever it is: a safetensors file has no checksum of its own."""
  for suffix in ('', '.json'):
    file.with_name(f'{file.name}{suffix}').rename(
      file.with_name(f'{name}{suffix}')
    )
  file = file.with_name(name)
  whole = file.read_bytes()
  for spot in (3, 60, len(whole) // 2, len(whole) - 1):
    changed = bytearray(whole)
    changed[spot] ^= 1
    for content in (changed, whole[:spot]):
      file.write_bytes(content)
      with pytest.raises(UserError, match=f'{name} is damaged: its bytes'):
        export.verify_export(file, root / 'kd')


@pytest.mark.parametrize('text', ['{', '[]', '[' * 100_000])
def test_a_damaged_word_beside_it(text, root, file):
  file.with_name(f'{file.name}.json').write_text(text)
  with pytest.raises(UserError, match='a.safetensors.json is damaged'):
    export.verify_export(file, root / 'kd')


def test_weights_of_another_network(root, file):
  change(file, sha256=None)
  tensors = load_file(file)
  tensors['more.weight'] = np.zeros(3, np.float32)
  save_file(tensors, file)
  with pytest.raises(UserError, match='holds no weights of tiny, the model of'):
    export.verify_export(file, root / 'kd')


def test_an_empty_folder(root, tmp_path):
  with pytest.raises(UserError, match='holds neither model.safetensors nor'):
    export.verify_export(tmp_path, root / 'kd')


def test_what_runs_a_file_must_be_there(root, tmp_path, monkeypatch):
  needy = dataclasses.replace(formats.FORMATS['onnx'], needs=('no_such',))
  monkeypatch.setitem(formats.FORMATS, 'onnx', needy)
  (tmp_path / 'a.onnx').touch()
  with pytest.raises(UserError, match='to run it no_such must be installed'):
    export.verify_export(tmp_path / 'a.onnx', root / 'kd')


def test_data_of_other_classes(root, file, tmp_path):
  exports.write_images(tmp_path / 'more', ('cat', 'dog'), {'train': 1})
  with pytest.raises(UserError, match="does not know: 'cat'"):
    export.verify_export(file, root / 'kd', f'folder:{tmp_path / "more"}')


def test_data_that_are_not_there(root, file, tmp_path):
  with pytest.raises(UserError, match='nothing'):
    export.verify_export(file, root / 'kd', f'folder:{tmp_path / "nothing"}')


def test_predictions_of_other_images(root, file, tmp_path):
  shutil.copytree(root / 'kd', tmp_path / 'kd')
  stored = tmp_path / 'kd' / 'predictions' / 'test.npz'
  test = evaluate.load(stored)
  for wrong in (
    dataclasses.replace(test, indices=test.indices + 1000),
    dataclasses.replace(test, labels=(test.labels + 1) % 5),
  ):
    evaluate.save(stored, wrong)
    with pytest.raises(UserError, match='is of other images than the test im'):
      export.verify_export(file, tmp_path / 'kd')


def test_an_image_that_cannot_be_read(root, file, tmp_path):
  exports.write_images(tmp_path / 'more', exports.CLASSES[:2], {'train': 2})
  bad = tmp_path / 'more' / 'train' / exports.CLASSES[0] / '0.png'
  bad.write_bytes(bad.read_bytes()[:60])
  with pytest.raises(UserError, match=r'0\.png: '):
    export.verify_export(file, root / 'kd', f'folder:{tmp_path / "more"}')


def test_the_command(root, file, capsys):
  command.main([f'--checkpoint={root / "kd"}', f'--verify={file}'])
  assert 'same class 15 of 15' in capsys.readouterr().out
  with pytest.raises(SystemExit) as stop:
    command.main([f'--checkpoint={root / "other"}', f'--verify={file}'])
  assert stop.value.code == 2
  assert capsys.readouterr().err.count('\n') == 1


def test_shapes_tell_classes_and_size(root):
  student = exports.student_of()
  path = root / 'a.onnx'
  reading._check_count(path, student, ('batch', 5))
  with pytest.raises(ValueError, match='6 there, 5 in the run'):
    reading._check_count(path, student, ('batch', 6))
  with pytest.raises(ValueError, match='takes images of 8 px'):
    reading.check(path, student, size=8)


# --- With the other libraries ---


@pytest.mark.slow
def test_every_format_is_of_its_run(root, tmp_path):
  for name in ('jax2onnx', 'onnxruntime', 'flatbuffers'):
    pytest.importorskip(name, exc_type=ImportError)
  for format in ('onnx', 'stablehlo'):
    for fold_norm in (False, True):
      out = tmp_path / f'{fold_norm}.{format}'
      export.export_run(root / 'kd', format, out, fold_norm=fold_norm)
      (found,) = export.verify_export(out, root / 'kd')
      assert found.agreement == 1.0 and found.largest_difference < 1e-5
      out.with_name(f'{out.name}.json').unlink()
      if format == 'onnx':
        with pytest.raises(UserError, match='is of another run'):
          export.verify_export(out, root / 'other')
  out = tmp_path / 'hub'
  export.export_run(root / 'kd', 'hub', out, with_preprocessing=True)
  one, other = export.verify_export(out, root / 'kd')
  assert one.agreement == other.agreement == 1.0
  assert other.file.endswith('model.onnx') and 'onnxruntime' in other.runner
  assert other.largest_difference < 1e-3


@pytest.mark.slow
def test_an_onnx_file_of_something_else(root, tmp_path):
  onnx = pytest.importorskip('onnx', exc_type=ImportError)
  pytest.importorskip('onnxruntime')
  pytest.importorskip('jax2onnx', exc_type=ImportError)
  helper, path = onnx.helper, tmp_path / 'a.onnx'
  for shape, kind, message in (
    (['n', 5], 1, 'accepted: float'),
    (['n', 3, 8, 8], 1, 'takes images of 8 px'),
    (['n', 3, 16, 16], 11, r'takes tensor\(double\)'),
  ):
    taken = helper.make_tensor_value_info('x', kind, shape)
    given = helper.make_tensor_value_info('y', kind, None)
    node = helper.make_node('Identity', ['x'], ['y'])
    graph = helper.make_graph([node], 'g', [taken], [given])
    opset = [helper.make_opsetid('', 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=message):
      export.verify_export(path, root / 'kd')
  path.write_bytes(b'no model')
  with pytest.raises(UserError, match='onnxruntime cannot read it'):
    export.verify_export(path, root / 'kd')
