"""ONNX files that take whole images, and the examples that run them."""

import dataclasses
import functools
import http.server
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from tests import exports, tiny
from tlkd_jax import export
from tlkd_jax.evaluation.predictions import softmax
from tlkd_jax.export import formats, onnx, preprocessing
from tlkd_jax.export import student as students
from tlkd_jax.runtime.errors import UserError

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / 'docs' / 'examples'
# Height and width: portrait, landscape, tiny, as it is, a strip on either side
# of the longest aspect, larger.
SIZES = (
  *((40, 24), (24, 41), (5, 7), (3, 3), (17, 17), (16, 16), (1, 40)),
  *((300, 11), (9, 144), (9, 145), (480, 641), (601, 400), (600, 200)),
)


@pytest.fixture(scope='module', autouse=True)
def models():
  with tiny.registered():
    yield


@pytest.mark.parametrize(
  ('interpolation', 'opset', 'message'),
  [
    ('lanczos', None, 'resizes images by lanczos, .*accepted: bilinear, bicub'),
    ('box', None, 'resizes images by box'),
    ('nearest', 23, 'resizes images by nearest'),
    ('bicubic', 17, '--opset 17: .*accepted: 18 or more'),
    ('bilinear', 13, '--opset 13: .*accepted: 18 or more'),
  ],
)
def test_what_no_graph_can_do(interpolation, opset, message):
  with pytest.raises(ValueError, match=message):
    preprocessing.check(interpolation, opset)


@pytest.mark.parametrize('opset', [None, 18, 26])
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_what_a_graph_can_do(interpolation, opset):
  preprocessing.check(interpolation, opset)


@pytest.mark.parametrize('format', ['safetensors', 'stablehlo'])
def test_other_formats_take_normalised_images(format, tmp_path, monkeypatch):
  free = dataclasses.replace(formats.FORMATS[format], needs=())
  monkeypatch.setitem(formats.FORMATS, format, free)
  with pytest.raises(UserError, match='accepted with --format onnx and hub'):
    out = tmp_path / f'a.{format}'
    export.export_run(tmp_path, format, out, with_preprocessing=True)


def test_a_file_that_prepares_images_otherwise_is_not_written():
  expected = np.full((3, 5), 0.2)
  found = expected.copy()
  found[1, 2] += 4e-3
  out = pathlib.Path('a.onnx')
  said = students.checked_probabilities(found, expected, out)
  assert 'at most 4.00e-03 (3 images' in said
  for wrong in (6e-3, np.nan):
    found[1, 2] = 0.2 + wrong
    with pytest.raises(RuntimeError, match='a.onnx is not written'):
      students.checked_probabilities(found, expected, out)


def test_the_images_of_the_check_are_of_many_shapes():
  images = [preprocessing._sample(k) for k in range(len(preprocessing._SIZES))]
  shapes = [image.shape[:2] for image in images]
  assert {np.sign(h - w) for h, w in shapes} == {-1, 1}
  assert min(map(min, shapes)) < 8 and max(map(max, shapes)) > 400
  assert any(max(s) > 16 * min(s) for s in shapes)
  # Tall, and shrinking for a network of 224 pixels too.
  assert any(h > 2.2 * w and w > 256 for h, w in shapes)
  assert all(image.dtype == np.uint8 for image in images)


def test_examples_are_short_and_in_python_need_nothing_else():
  for name in ('classify.py', 'classify.html'):
    assert len((EXAMPLES / name).read_text().splitlines()) <= 55
  text = (EXAMPLES / 'classify.py').read_text()
  imported = set(re.findall(r'^(?:import|from) (\w+)', text, re.M))
  assert imported == {'sys', 'numpy', 'onnxruntime', 'PIL'}


# --- With the other libraries ---


@functools.cache
def converted() -> bytes:
  """The tiny student as ONNX, without preprocessing."""
  student = exports.student_of()
  content = onnx.convert(student.logits, student.image_size)
  return onnx.described(content, student)


def written(path: pathlib.Path, interpolation: str) -> students.Student:
  pytest.importorskip('jax2onnx', exc_type=ImportError)
  pytest.importorskip('onnxruntime')
  student = exports.student_of()
  description = dataclasses.replace(
    student.description, interpolation=interpolation
  )
  student = dataclasses.replace(student, description=description)
  spec = student.model.spec
  content = preprocessing.add(converted(), description, spec.mean, spec.std)
  path.write_bytes(content)
  return student


@pytest.mark.slow
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_probabilities_are_those_of_the_package(interpolation, tmp_path):
  student = written(tmp_path / 'a.onnx', interpolation)
  run = preprocessing.load(tmp_path / 'a.onnx')
  rng = np.random.default_rng(0)
  worst = 0.0
  for height, width in SIZES:
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    square = preprocessing.square(student.description, image)
    expected = softmax(student.logits_of(square[None]))[0]
    worst = max(worst, float(np.abs(run(image) - expected).max()))
  print(f'{interpolation}: largest difference {worst:.1e}')
  assert worst < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_pixels_are_pillows_but_for_single_levels(interpolation, tmp_path):
  library = pytest.importorskip('onnx', exc_type=ImportError)
  onnxruntime = pytest.importorskip('onnxruntime')
  student = written(tmp_path / 'a.onnx', interpolation)
  model = library.load(tmp_path / 'a.onnx')
  pixels = library.helper.make_tensor_value_info('prepare_pixels', 1, None)
  model.graph.output.append(pixels)
  session = onnxruntime.InferenceSession(model.SerializeToString())
  rng = np.random.default_rng(1)
  differing = total = 0
  for height, width in SIZES:
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    (found,) = session.run(['prepare_pixels'], {'image': image})
    expected = preprocessing.square(student.description, image)
    difference = np.abs(found[0].transpose(1, 2, 0) - expected)
    assert difference.max() <= 1, (height, width)
    differing, total = differing + np.sum(difference > 0), total + expected.size
  assert differing < 5e-3 * total


@pytest.mark.slow
def test_what_the_file_says(tmp_path):
  onnxruntime = pytest.importorskip('onnxruntime')
  written(tmp_path / 'a.onnx', 'bicubic')
  session = onnxruntime.InferenceSession(str(tmp_path / 'a.onnx'))
  (taken,) = session.get_inputs()
  assert (taken.name, taken.type) == ('image', 'tensor(uint8)')
  assert taken.shape == ['height', 'width', 3]
  one, names = session.get_outputs()
  assert (one.name, one.shape) == ('probabilities', [5])
  assert (names.name, names.type) == ('names', 'tensor(string)')
  image = np.zeros((20, 30, 3), np.uint8)
  probabilities, said = session.run(None, {'image': image})
  assert probabilities.sum() == pytest.approx(1)
  assert said.tolist() == list(exports.CLASSES)
  metadata = session.get_modelmeta().custom_metadata_map
  assert json.loads(metadata['names']) == list(exports.CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize('opset', [18, 23, 26])
def test_every_operator_set_from_18_on(opset, tmp_path):
  pytest.importorskip('jax2onnx', exc_type=ImportError)
  pytest.importorskip('onnxruntime')
  student = exports.student_of()
  said = onnx.write(student, tmp_path / 'a.onnx', opset, True)
  assert 'with its own preprocessing' in said
  with pytest.raises(RuntimeError, match='is not written'):
    other = dataclasses.replace(student, params=exports.student_of(2).params)
    preprocessing.checked(other, tmp_path / 'a.onnx', tmp_path / 'b.onnx')


@pytest.mark.slow
def test_the_example_in_python(tmp_path):
  student = written(tmp_path / 'a.onnx', 'bicubic')
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (30, 44, 4), dtype=np.uint8)
  image = Image.fromarray(pixels, 'RGBA')
  image.save(tmp_path / 'a.png')
  command = [sys.executable, EXAMPLES / 'classify.py', 'a.onnx', 'a.png']
  done = subprocess.run(
    command, cwd=tmp_path, capture_output=True, text=True, check=True
  )
  best, probability = answer(student, tmp_path / 'a.png')
  assert done.stdout.startswith(f'a.png: {best} {probability:.3f}, ')


def answer(student, path) -> tuple[str, float]:
  """The most probable class of an image by the package."""
  from tlkd_jax.data import transforms

  image = np.asarray(transforms.decode_image(path.read_bytes()))
  square = preprocessing.square(student.description, image)
  probabilities = softmax(student.logits_of(square[None]))[0]
  best = int(probabilities.argmax())
  return student.description.class_names[best], float(probabilities[best])


@pytest.fixture
def browser() -> str:
  found = shutil.which('chromium') or shutil.which('google-chrome')
  if found is None:
    pytest.skip('no chromium is installed')
  return found


@pytest.fixture
def runtime() -> pathlib.Path:
  place = pathlib.Path(os.environ.get('ONNXRUNTIME_WEB', 'not told'))
  if not (place / 'ort.wasm.min.mjs').is_file():
    pytest.skip(
      '`npm pack onnxruntime-web`, unpack it, and name its folder dist in '
      'ONNXRUNTIME_WEB'
    )
  return place


@pytest.mark.slow
def test_the_example_in_a_browser(browser, runtime, tmp_path):
  student = written(tmp_path / 'student.onnx', 'bicubic')
  shutil.copytree(runtime, tmp_path / 'ort')
  page = (EXAMPLES / 'classify.html').read_text()
  page, count = re.subn(r'(?m)^const ORT = .*$', "const ORT = './ort/'", page)
  assert count == 1
  (tmp_path / 'classify.html').write_text(page)
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (30, 44, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'a.png')
  files = functools.partial(_Quiet, directory=str(tmp_path))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), files) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{server.server_port}/classify.html?image=a.png'
    options = ['--headless=new', '--no-sandbox', '--disable-gpu']
    options += [f'--user-data-dir={tmp_path / "profile"}']
    options += ['--virtual-time-budget=120000', '--dump-dom', address]
    done = subprocess.run(
      [browser, *options], capture_output=True, text=True, timeout=500
    )
    server.shutdown()
  said = re.search(r'<pre id="said">(.*?)\n', done.stdout)
  assert said is not None, done.stdout
  best, probability = answer(student, tmp_path / 'a.png')
  shown = best.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
  assert said[1] == f'{probability:.3f}  {shown}'


class _Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *_):
    pass
