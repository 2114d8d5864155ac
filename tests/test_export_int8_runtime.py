"""int8 ONNX files made and run by onnxruntime, which is optional.

pytest -m slow tests/test_export_int8_runtime.py
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.test_export_int8 import drawn, make_dataset, make_student
from tlkd_jax import export
from tlkd_jax.data import Split
from tlkd_jax.export import formats, onnx, quantization, run_data
from tlkd_jax.export import student as students
from tlkd_jax.export.options import METHODS, Int8

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('tiny_models')]

package = pytest.importorskip('onnx', exc_type=ImportError)
onnxruntime = pytest.importorskip('onnxruntime', exc_type=ImportError)
pytest.importorskip('jax2onnx', exc_type=ImportError)


def config_of(out):
  return json.loads(out.with_name(f'{out.name}.json').read_text())


def operators_at_run_time(out, folder):
  """Of the graph as onnxruntime has optimised it."""
  options = onnxruntime.SessionOptions()
  options.optimized_model_filepath = str(folder / 'optimized.onnx')
  options.log_severity_level = 3
  onnxruntime.InferenceSession(
    str(out), options, providers=['CPUExecutionProvider']
  )
  nodes = package.load(folder / 'optimized.onnx').graph.node
  return [node.op_type for node in nodes]


def layers_in_float(out):
  """Names of the layers of a file whose kernels are float32."""
  model = package.load(out)
  known = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
  return [
    node.name
    for node in model.graph.node
    if node.op_type in ('Conv', 'Gemm', 'MatMul')
    and known.get(node.input[1]) == package.TensorProto.FLOAT
  ]


def test_a_trained_run(compare_run, tmp_path):
  run, out = compare_run / 'kd', tmp_path / 'a.onnx'
  message = export.export_run(run, 'onnx', out, quantize='int8')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a.onnx', 'a.onnx.json']
  config = config_of(out)
  assert config['folded_norms'] is True
  found = config['quantization']
  summary = json.loads((run / 'summary.json').read_text())
  assert found['calibration_images'] == summary['num_train']
  assert found['calibration_split'] == 'train'
  judged = found['validation']
  assert judged['float_top1'] == pytest.approx(
    summary['student']['validation']['top1']
  )
  assert judged['float_top1'] - judged['int8_top1'] <= 0.01
  assert judged['images'] == 40 and judged['agreement'] >= 0.9
  assert found['layers_in_float'] == layers_in_float(out) == []
  assert found['int8_bytes'] == out.stat().st_size
  assert f'{judged["int8_top1"]:.4f} in int8, the same class for' in message
  assert 'layers left in float: none' in message
  model = package.load(out)
  package.checker.check_model(model, full_check=True)
  assert {entry.domain for entry in model.opset_import} == {''}
  # Any batch, and what the record says is what the file gives.
  student = students.load_student(run)
  validation = run_data.load(run).splits['validation']
  images = student.normalised(validation.images)
  logits = onnx.load(out)(images)
  one = onnx.load(out)(images[:1])
  np.testing.assert_allclose(one[0], logits[0], rtol=1e-5, atol=1e-5)
  top1 = (logits.argmax(-1) == validation.labels).mean()
  assert judged['int8_top1'] == pytest.approx(top1)
  used = operators_at_run_time(out, tmp_path)
  count = sum(node.op_type == 'Conv' for node in model.graph.node)
  assert used.count('QLinearConv') == count > 3
  assert not {'Conv', 'FusedConv', 'Clip', 'Gemm'} & set(used)


@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('method', METHODS)
def test_ways_to_quantise(method, symmetric, compare_run, tmp_path):
  out = tmp_path / 'a.onnx'
  options = Int8(20, method, symmetric, max_accuracy_drop=1.0)
  export.export_run(compare_run / 'kd', 'onnx', out, quantize=options)
  found = config_of(out)['quantization']
  assert found['calibration_images'] == 20
  assert found['calibration_method'] == method
  assert found['validation']['agreement'] > 0.7
  kinds = {
    tensor.data_type
    for tensor in package.load(out).graph.initializer
    if tensor.name.endswith('zero_point') and not tensor.dims
  }
  unsigned = package.TensorProto.UINT8
  assert (unsigned in kinds) is not symmetric


def drops(monkeypatch, count):
  """The first so many comparisons tell of an accuracy that falls."""
  compare, calls = run_data.compare, []

  def falling(*arguments):
    calls.append(arguments)
    if len(calls) <= count:
      return run_data.Accuracy(0.9, 0.4, 0.5, 40)
    return compare(*arguments)

  monkeypatch.setattr(run_data, 'compare', falling)


def test_the_worst_layers_stay_in_float_and_are_listed(
  compare_run, tmp_path, monkeypatch
):
  drops(monkeypatch, 2)
  out = tmp_path / 'a.onnx'
  message = export.export_run(compare_run / 'kd', 'onnx', out, quantize='int8')
  kept = config_of(out)['quantization']['layers_in_float']
  assert len(kept) == 2 and sorted(layers_in_float(out)) == sorted(kept)
  assert f'layers left in float: {", ".join(kept)}' in message
  # By the paths of the student's parameters.
  names = students.load_student(compare_run / 'kd').params
  assert {name.split('.')[0] for name in kept} <= set(names)


def test_refused(compare_run, tmp_path, monkeypatch):
  drops(monkeypatch, 100)
  out = tmp_path / 'a.onnx'
  options = Int8(max_float_layers=1)
  with pytest.raises(RuntimeError, match='from 0.9000 in float to 0.4000 in i'):
    export.export_run(compare_run / 'kd', 'onnx', out, quantize=options)
  assert not list(tmp_path.iterdir())


def labelled_dataset(side=16, count=40):
  """Noise; validation is some of it."""
  dataset = dataclasses.replace(make_dataset(count), image_size=side)
  rng = np.random.default_rng(0)
  for split in ('train', 'validation'):
    images = rng.integers(0, 256, (count, side, side, 3)).astype(np.uint8)
    dataset.splits[split] = Split(
      images,
      np.arange(count, dtype=np.int32) % 5,
      np.arange(count),
      [str(n) for n in range(count)],
    )
  return dataset


@pytest.mark.parametrize('opset', [18, 21, 26])
def test_a_transformer_has_no_norms_to_fold(opset, tmp_path):
  out = tmp_path / 'a.onnx'
  student = make_student('tiny_vit')
  options = Int8(max_accuracy_drop=1.0)
  formats.write_quantized(student, out, options, labelled_dataset(), opset)
  config = config_of(out)
  assert config['folded_norms'] is False
  assert config['quantization']['layers_in_float'] == layers_in_float(out) == []
  assert config['quantization']['validation']['agreement'] > 0.7
  model = package.load(out)
  package.checker.check_model(model)
  assert model.opset_import[0].version == opset


@pytest.mark.parametrize('int8', [False, True])
def test_operators_that_are_too_old_for_a_transformer(int8, tmp_path):
  out, student = tmp_path / 'a.onnx', make_student('tiny_vit')
  with pytest.raises(RuntimeError, match='LayerNorm needs 18 or later'):
    if int8:
      formats.write_quantized(student, out, Int8(), labelled_dataset(), 17)
    else:
      formats.write(student, 'onnx', out, 17)
  assert not list(tmp_path.iterdir())


# --- Hand-made graphs ---


def calibrated(folder, nodes, constants):
  """A model of `images` [n, 3, 5, 5] with noise to calibrate it."""
  kind = package.TensorProto.FLOAT
  make = package.helper
  graph = make.make_graph(
    [
      make.make_node(op, list(ins), [out], name=out, **attributes)
      for op, ins, out, attributes in nodes
    ],
    'made',
    [make.make_tensor_value_info('images', kind, ['n', 3, 5, 5])],
    [make.make_tensor_value_info('logits', kind, None)],
    [
      package.numpy_helper.from_array(np.asarray(value, np.float32), name)
      for name, value in constants.items()
    ],
  )
  model = make.make_model(
    graph, opset_imports=[make.make_opsetid('', 18)], ir_version=10
  )
  path = folder / 'float.onnx'
  package.save(package.shape_inference.infer_shapes(model), path)
  images = np.random.default_rng(1).normal(size=(24, 5, 5, 3))
  return quantization.Calibrated(
    path, images.astype(np.float32), Int8(), folder / 'ranges.json'
  )


def test_the_layer_that_harms_most_is_first(tmp_path):
  # One channel in a thousandfold range, which the layer after it ignores:
  # with one scale for all channels nothing is left of the others.
  narrow = drawn(4, 4, 1, 1)
  narrow[:, 0] = 0
  nodes = [
    ('Conv', ('images', 'w1'), 'first', {}),
    ('Mul', ('first', 'wide'), 'widened', {}),
    ('Conv', ('widened', 'w2'), 'second', {}),
    ('GlobalAveragePool', ('second',), 'pooled', {}),
    ('Flatten', ('pooled',), 'flat', {}),
    ('Gemm', ('flat', 'w3', 'b3'), 'logits', {}),
  ]
  constants = {'w1': drawn(4, 3, 1, 1), 'w2': narrow, 'w3': drawn(4, 5)}
  constants |= {
    'wide': np.reshape([1000, 1, 1, 1], (1, 4, 1, 1)),
    'b3': drawn(5),
  }
  made = calibrated(tmp_path, nodes, constants)
  order = quantization.by_harm(made, tmp_path / 'trial.onnx', tmp_path / 'a')
  # One of three must stay in int8.
  assert order[0] == 'second' and len(order) == 2


def test_a_model_without_a_layer(tmp_path):
  nodes = [('Softmax', ('images',), 'logits', {'axis': 1})]
  made = calibrated(tmp_path, nodes, {})
  with pytest.raises(RuntimeError, match='no layer is left .* has Softmax'):
    quantization.quantize(made, tmp_path / 'a.onnx')


@pytest.fixture
def one_layer(tmp_path):
  nodes = [('Conv', ('images', 'w'), 'logits', {})]
  return calibrated(tmp_path, nodes, {'w': drawn(4, 3, 1, 1)})


@pytest.mark.parametrize(
  'error', [NotImplementedError('Conv of 7 dims'), AssertionError('Conv of 7')]
)
def test_an_operator_that_the_quantiser_fails_at(
  error, one_layer, tmp_path, monkeypatch
):
  def quantize_static(*arguments, **keywords):
    raise error

  monkeypatch.setattr(
    onnxruntime.quantization, 'quantize_static', quantize_static
  )
  with pytest.raises(RuntimeError, match='cannot quantise this model: .*7'):
    quantization.quantize(one_layer, tmp_path / 'a.onnx')


def test_an_operator_that_the_quantiser_leaves_out(
  one_layer, tmp_path, monkeypatch
):
  def quantize_static(source, target, *arguments, **keywords):
    package.save(package.load(source), target)

  monkeypatch.setattr(
    onnxruntime.quantization, 'quantize_static', quantize_static
  )
  with pytest.raises(RuntimeError, match='the operator Conv of logits'):
    quantization.quantize(one_layer, tmp_path / 'a.onnx')


@pytest.mark.parametrize('name', ['mobilenetv2_050', 'resnet18'])
def test_every_convolution_is_fused_at_run_time(name, tmp_path):
  student = make_student(name, 32)
  out = tmp_path / 'a.onnx'
  options = Int8(32, max_accuracy_drop=1.0)
  formats.write_quantized(student, out, options, labelled_dataset(32))
  used = operators_at_run_time(out, tmp_path)
  assert used.count('QLinearConv') > 7
  assert not {'Conv', 'FusedConv'} & set(used), used
  assert config_of(out)['quantization']['layers_in_float'] == []
  assert jax.tree.leaves(student.params)
