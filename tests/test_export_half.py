"""Files in float16 and bfloat16: which there are, and how far they may be."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlkd_jax import export
from tlkd_jax.export import __main__ as command
from tlkd_jax.export import half, weights
from tlkd_jax.export import student as students
from tlkd_jax.models.weights import torch_files
from tlkd_jax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures('tiny_models')

OUT = pathlib.Path('a.safetensors')


@pytest.mark.parametrize(
  ('format', 'dtype', 'quantize', 'message'),
  [
    (
      'onnx',
      'bfloat16',
      None,
      'bfloat16 with --format onnx; accepted: float',
    ),
    ('stablehlo', 'float16', None, 'float16 with --format stablehlo; accepted'),
    ('stablehlo', 'bfloat16', None, 'float16 for safetensors and onnx; bfloat'),
    ('safetensors', 'float64', None, '--dtype float64 with --format safetens'),
    ('safetensors', 'fp16', None, '--dtype fp16 with --format safetensors; ac'),
    ('onnx', '', None, '--dtype  with --format onnx; accepted'),
    ('onnx', 'float16', 'int8', 'float16 with --quantize: a file has one of'),
  ],
)
def test_refused(format, dtype, quantize, message, tmp_path):
  out = tmp_path / f'a.{format}'
  with pytest.raises(UserError, match=message):
    export.export_run(tmp_path, format, out, dtype=dtype, quantize=quantize)


def test_the_option_reaches_the_writer(tmp_path, monkeypatch):
  asked = []

  def export_run(*arguments, **keywords):
    asked.append(keywords['dtype'])
    return ''

  monkeypatch.setattr(command, 'export_run', export_run)
  given = [f'--checkpoint={tmp_path}', '--format=safetensors', '--out=a']
  for more in ([], ['--dtype=bfloat16'], ['--dtype', 'float32']):
    command.main([*given, *more])
  assert asked == [None, 'bfloat16', 'float32']


@pytest.mark.parametrize(
  ('dtype', 'digits'), [('float16', 11), ('bfloat16', 8)]
)
def test_the_bound_is_half_a_unit_in_the_last_place(dtype, digits):
  assert half.bound(dtype) == 2.0**-digits
  values = np.random.default_rng(0).normal(size=10000).astype(np.float32)
  worst = half.check_rounding(OUT, {'a': values}, dtype)
  assert 0.5 * half.bound(dtype) < worst <= half.bound(dtype)


@pytest.mark.parametrize(
  ('values', 'dtype', 'fits'),
  [
    ([65504.0, -65504.0], 'float16', True),
    ([1e5], 'float16', False),
    ([-7e4], 'float16', False),
    ([1e5], 'bfloat16', True),
    ([3.3e38], 'bfloat16', True),
    ([3.4e38], 'bfloat16', False),
    # Below the smallest normal number: off by more of itself, and harmless.
    ([1e-6, 1e-9, 0.0], 'float16', True),
    ([float('nan')], 'float16', False),
  ],
)
def test_what_a_dtype_cannot_hold_is_refused(values, dtype, fits):
  entries = {'layer.weight': np.asarray(values, np.float32)}
  if fits:
    assert half.check_rounding(OUT, entries, dtype) <= half.bound(dtype)
    return
  with pytest.raises(RuntimeError, match='loat16 cannot hold the values of'):
    half.check_rounding(OUT, entries, dtype)


def test_whole_numbers_stay_whole():
  counts = np.asarray([100_001], np.int64)
  assert half.round_to(counts, 'float16') is counts
  half.check_rounding(OUT, {'num_batches_tracked': counts}, 'float16')


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_a_file_of_a_run(dtype, compare_run, tmp_path):
  sizes, out = [], tmp_path / 'a.safetensors'
  for name in ('float32', dtype):
    message = export.export_run(
      compare_run / 'kd', 'safetensors', out, dtype=name
    )
    sizes.append(out.stat().st_size)
  assert sizes[1] < 0.7 * sizes[0]
  student = students.load_student(compare_run / 'kd')
  entries = weights.state_dict(student)
  back = torch_files.read_state_dict(out)
  assert back.keys() == entries.keys()
  for name, array in entries.items():
    expected = array
    if array.dtype == np.float32:
      expected = array.astype(jnp.dtype(dtype))
    assert back[name].dtype == expected.dtype
    np.testing.assert_array_equal(back[name], expected)
  config = json.loads((tmp_path / 'a.safetensors.json').read_text())
  assert config['dtype'] == dtype
  found = config['rounding']
  assert 0 < found['weights'] <= found['bound'] == half.bound(dtype)
  judged = found['validation']
  summary = json.loads((compare_run / 'kd' / 'summary.json').read_text())
  top1 = summary['student']['validation']['top1']
  assert judged['float_top1'] == pytest.approx(top1)
  assert judged['images'] == 40 and judged['agreement'] > 0.9
  assert f'{judged[f"{dtype}_top1"]:.4f} in {dtype}' in message


def test_the_rounded_student_has_the_files_weights(compare_run):
  student = students.load_student(compare_run / 'kd')
  rounded = half.rounded(student, 'bfloat16')
  own, theirs = (
    jax.tree.leaves((s.params, s.model_state)) for s in (student, rounded)
  )
  assert all(leaf.dtype == np.float32 for leaf in theirs)
  changed = [not np.array_equal(a, b) for a, b in zip(own, theirs, strict=True)]
  assert any(changed)
  for a, b in zip(own, theirs, strict=True):
    np.testing.assert_allclose(b, a, rtol=2.0**-8)


@pytest.mark.slow
def test_an_onnx_file_in_float16(compare_run, tmp_path):
  pytest.importorskip('jax2onnx', exc_type=ImportError)
  onnxruntime = pytest.importorskip('onnxruntime')
  onnx = pytest.importorskip('onnx')
  run, out = compare_run / 'kd', tmp_path / 'a.onnx'
  for fold_norm in (False, True):
    message = export.export_run(
      run, 'onnx', out, dtype='float16', fold_norm=fold_norm
    )
    assert 'float16 between float32 images and logits' in message
    model = onnx.load(out)
    onnx.checker.check_model(model)
    kinds = {t.data_type for t in model.graph.initializer if len(t.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16}
    session = onnxruntime.InferenceSession(
      str(out), providers=['CPUExecutionProvider']
    )
    assert session.get_inputs()[0].type == 'tensor(float)'
    assert session.get_inputs()[0].shape[0] == 'batch'
    assert session.get_outputs()[0].type == 'tensor(float)'
  config = json.loads((tmp_path / 'a.onnx.json').read_text())
  assert config['dtype'] == 'float16'
  assert config['rounding']['validation']['agreement'] > 0.9
