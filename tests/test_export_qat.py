"""Students that round as ONNX files: the same numbers, from integers."""

import collections
import dataclasses
import json

import jax
import numpy as np
import pytest

from tests import tiny
from tlkd_jax import export, models
from tlkd_jax.export import formats, onnx_graph
from tlkd_jax.export.student import Student
from tlkd_jax.models import quantized
from tlkd_jax.models.weights import folding
from tlkd_jax.training import checkpoints, descriptions

CLASSES = tuple('abcde')
# Of random kernels, where images would be lost in the biases or nothing but
# large numbers would come out with that of He et al., which is for ReLU.
GAINS = {'tiny': 1.0, 'mobileone_s0': 0.4}


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch):
  monkeypatch.setitem(models.MODELS, 'tiny', tiny.SPECS['tiny'])


def random_variables(model, seed=0, gain=1.0):
  """(params, model_state) in which no norm is the identity."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    if name == 'kernel':
      fan_in = np.prod(leaf.shape[:-1])
      values = rng.normal(size=leaf.shape) * gain / fan_in**0.5
      return values.astype(np.float32)
    offset = 1.0 if name in ('scale', 'var') else 0.0
    return (offset + 0.2 * rng.uniform(size=leaf.shape)).astype(np.float32)

  shapes = model.params_shape, model.model_state_shape
  return jax.tree_util.tree_map_with_path(draw, shapes)


def make_student(name: str, size: int) -> Student:
  """The int8 form of a variant, with bounds of noise."""
  model = models.create_model(name, num_classes=len(CLASSES))
  variables = random_variables(model, gain=GAINS.get(name, 1.4))
  model, params, state = folding.to_int8(model, *variables)
  images = np.random.default_rng(3).normal(size=(16, size, size, 3))
  with quantized.calibrating():
    _, state = jax.jit(model.apply)(params, state, images.astype(np.float32))
  description = descriptions.Description(
    model=model.name,
    num_classes=len(CLASSES),
    class_names=CLASSES,
    image_size=size,
    crop=0.9,
    interpolation='bilinear',
    dataset='digits',
    arm='kd',
    compute_dtype='float32',
    step=3,
  )
  return Student(model, params, jax.device_get(state), description, True)


RELU6 = ('Clip', ['x', 'low', 'high'])


def test_the_file_beside_it_says_what_it_is():
  student = make_student('tiny', 16)
  assert student.rounds
  config = formats.configuration(student, 'onnx')
  assert (config['quantized'], config['folded_norms']) == ('int8', True)
  assert config['pretrained_cfg']['classifier'] == 'classifier'
  plain = models.create_model('tiny', num_classes=5)
  plain = Student(plain, *random_variables(plain), student.description)
  assert not plain.rounds
  assert 'quantized' not in formats.configuration(plain, 'onnx')


class TestGraph:
  """On graphs as jax2onnx makes them, computed by onnx's reference."""

  @pytest.fixture
  def onnx(self):
    return pytest.importorskip('onnx')

  def graph(self, onnx, nodes, constants):
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    shape = ['batch', 3, 4, 5]
    graph = helper.make_graph(
      [
        helper.make_node(op, inputs, [output], **attributes)
        for op, inputs, output, attributes in nodes
      ],
      'graph',
      [helper.make_tensor_value_info('x', kind, shape)],
      [helper.make_tensor_value_info('y', kind, [None] * 4)],
      [
        onnx.numpy_helper.from_array(np.asarray(value), name)
        for name, value in constants.items()
      ],
    )
    return helper.make_model(
      graph, opset_imports=[helper.make_opsetid('', 21)], ir_version=10
    )

  def run(self, onnx, model, shape):
    onnx.checker.check_model(model)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    from onnx import reference

    return reference.ReferenceEvaluator(model).run(None, {'x': x})[0]

  def layer(self, number, before, kernel, *, last=False):
    """NHWC in, a convolution, its bias, ReLU6 and rounding, NHWC out."""
    name = f'{number}_'
    output = 'y' if last else f'{name}out'
    grid = [f'{name}scale', f'{name}zero']
    return [
      ('Transpose', [before], f'{name}in', {'perm': [0, 3, 1, 2]}),
      ('Transpose', [kernel], f'{name}oihw', {'perm': [3, 2, 0, 1]}),
      ('Conv', [f'{name}in', f'{name}oihw'], f'{name}conv', {}),
      ('Transpose', [f'{name}conv'], f'{name}nhwc', {'perm': [0, 2, 3, 1]}),
      ('Add', [f'{name}nhwc', 'bias'], f'{name}sum', {}),
      ('Clip', [f'{name}sum', 'low', 'high'], f'{name}clip', {}),
      ('QuantizeLinear', [f'{name}clip', *grid], f'{name}q', {}),
      ('DequantizeLinear', [f'{name}q', *grid], output, {}),
    ]

  def test_layers_become_integers_with_nothing_between(self, onnx):
    rng = np.random.default_rng(1)
    constants = {
      'kernel': rng.normal(size=(1, 1, 3, 3)).astype(np.float32),
      'bias': rng.normal(size=(1, 1, 1, 3)).astype(np.float32),
      'low': np.float32(0),
      'high': np.float32(6),
      **{f'{n}_scale': np.float32(6 / 255) for n in (1, 2)},
      **{f'{n}_zero': np.uint8(0) for n in (1, 2)},
      'x_scale': np.float32(0.02),
      'x_zero': np.uint8(120),
    }
    nodes = [
      ('Transpose', ['x'], 'nhwc', {'perm': [0, 2, 3, 1]}),
      ('QuantizeLinear', ['nhwc', 'x_scale', 'x_zero'], 'q', {}),
      ('DequantizeLinear', ['q', 'x_scale', 'x_zero'], 'dq', {}),
      *self.layer(1, 'dq', 'kernel'),
      *self.layer(2, '1_out', 'kernel'),
      ('Add', ['1_out', '2_out'], 'y', {}),
    ]
    before = self.graph(onnx, nodes, constants)
    after = self.graph(onnx, nodes, constants)
    onnx_graph.to_int8(after.graph)
    count = collections.Counter(node.op_type for node in after.graph.node)
    assert count == {
      'QuantizeLinear': 3,
      # Of three tensors, two weights, two biases.
      'DequantizeLinear': 7,
      'Conv': 2,
      'Add': 1,
      # To the layout of the output.
      'Transpose': 1,
    }
    kinds = {
      onnx.numpy_helper.to_array(i).dtype.name
      for i in after.graph.initializer
      if i.name.endswith('_int')
    }
    assert kinds == {'int8', 'int32'}
    expected = self.run(onnx, before, (2, 3, 4, 5))
    found = self.run(onnx, after, (2, 3, 4, 5))
    # Weights are rounded now: half of 1/127 of the largest, each.
    assert 0 < np.abs(found - expected).max() < 0.15

  @pytest.mark.parametrize(
    ('rectifier', 'scale', 'zero', 'gone'),
    [
      (RELU6, 6 / 255, 0, True),
      (RELU6, 4 / 255, 0, True),
      (RELU6, 6.5 / 255, 0, False),
      (RELU6, 6 / 255, 3, False),
      (('Relu', ['x']), 6.5 / 255, 0, True),
      (('Relu', ['x']), 6.5 / 255, 1, False),
      (('Max', ['x', 'low']), 6.5 / 255, 0, True),
      (('Max', ['low', 'x']), 6.5 / 255, 0, True),
      (('Max', ['x', 'low']), 6.5 / 255, 1, False),
      (('Max', ['x', 'high']), 6.5 / 255, 0, False),
    ],
  )
  def test_a_relu_goes_where_the_rounding_has_its_bounds(
    self, rectifier, scale, zero, gone, onnx
  ):
    constants = {
      'low': np.float32(0),
      'high': np.float32(6),
      'scale': np.float32(scale),
      'zero': np.uint8(zero),
    }
    nodes = [
      (*rectifier, 'clip', {}),
      ('QuantizeLinear', ['clip', 'scale', 'zero'], 'q', {}),
      ('DequantizeLinear', ['q', 'scale', 'zero'], 'y', {}),
    ]
    before, after = (self.graph(onnx, nodes, constants) for _ in range(2))
    onnx_graph.to_int8(after.graph)
    assert (len(after.graph.node) == 2) == gone
    np.testing.assert_array_equal(
      self.run(onnx, before, (2, 3, 4, 5)), self.run(onnx, after, (2, 3, 4, 5))
    )

  def test_transpositions_are_made_where_they_are_needed(self, onnx):
    """One that a reader by axis needs stays; a constant is turned."""
    turn = {'perm': [0, 2, 3, 1]}
    constants = {
      'gain': np.arange(3, dtype=np.float32),
      'axes': np.asarray([1, 2]),
    }
    nodes = [
      ('Transpose', ['x'], 'a', turn),
      ('Mul', ['a', 'gain'], 'b', {}),
      ('Relu', ['b'], 'c', {}),
      ('ReduceSum', ['c', 'axes'], 'd', {'keepdims': 1}),
      ('Mul', ['c', 'd'], 'e', {}),
      ('Transpose', ['e'], 'f', {'perm': [0, 3, 1, 2]}),
      ('Neg', ['f'], 'y', {}),
    ]
    before, after = (self.graph(onnx, nodes, constants) for _ in range(2))
    onnx_graph.to_int8(after.graph)
    np.testing.assert_allclose(
      self.run(onnx, before, (2, 3, 4, 5)),
      self.run(onnx, after, (2, 3, 4, 5)),
      rtol=1e-6,
    )

  def test_a_tensor_is_transposed_before_it_is_rounded(self, onnx):
    """Such as what a pool gives, which two layers read in their own layout."""
    rng = np.random.default_rng(1)
    constants = {
      'w': rng.normal(size=(2, 5, 1, 1)).astype(np.float32),
      'scale': np.float32(0.02),
      'zero': np.uint8(128),
    }
    turn = {'perm': [0, 3, 1, 2]}
    nodes = [
      ('Neg', ['x'], 'a', {}),
      ('QuantizeLinear', ['a', 'scale', 'zero'], 'q', {}),
      ('DequantizeLinear', ['q', 'scale', 'zero'], 'r', {}),
      ('Transpose', ['r'], 'left', turn),
      ('Conv', ['left', 'w'], 'one', {}),
      ('Transpose', ['r'], 'right', turn),
      ('Conv', ['right', 'w'], 'two', {}),
      ('Add', ['one', 'two'], 'y', {}),
    ]
    before, after = (self.graph(onnx, nodes, constants) for _ in range(2))
    onnx_graph.to_int8(after.graph)
    order = [n.op_type for n in after.graph.node if 'w' not in n.name]
    assert order.count('Transpose') == 1 and order.count('QuantizeLinear') == 1
    assert order.index('Transpose') < order.index('QuantizeLinear')
    expected, found = (self.run(onnx, m, (2, 3, 4, 5)) for m in (before, after))
    assert 0 < np.abs(found - expected).max() < 0.1

  def test_a_rounding_stays_behind_its_layer(self, onnx):
    """Where what it gives is transposed, to its own layout and to another."""
    constants = {
      'kernel': np.ones((1, 1, 3, 3), np.float32),
      'bias': np.ones((1, 1, 1, 3), np.float32),
      'low': np.float32(0),
      'high': np.float32(6),
      **{f'{n}_scale': np.float32(6 / 255) for n in ('x', 1)},
      **{f'{n}_zero': np.uint8(0) for n in ('x', 1)},
    }
    nodes = [
      ('Transpose', ['x'], 'nhwc', {'perm': [0, 2, 3, 1]}),
      ('QuantizeLinear', ['nhwc', 'x_scale', 'x_zero'], 'q', {}),
      ('DequantizeLinear', ['q', 'x_scale', 'x_zero'], 'dq', {}),
      *self.layer(1, 'dq', 'kernel'),
      ('Transpose', ['1_out'], 'y', {'perm': [1, 2, 0, 3]}),
    ]
    before, after = (self.graph(onnx, nodes, constants) for _ in range(2))
    onnx_graph.to_int8(after.graph)
    (place,) = (
      n for n, node in enumerate(after.graph.node) if node.op_type == 'Conv'
    )
    behind = [node.op_type for node in after.graph.node][place + 1 :]
    assert behind == ['QuantizeLinear', 'DequantizeLinear', 'Transpose']
    expected, found = (self.run(onnx, m, (2, 3, 4, 5)) for m in (before, after))
    np.testing.assert_allclose(found, expected, atol=0.05)

  def test_a_layer_that_reads_floats_is_an_error(self, onnx):
    constants = {'w': np.ones((2, 3, 1, 1), np.float32)}
    model = self.graph(onnx, [('Conv', ['x', 'w'], 'y', {})], constants)
    with pytest.raises(ValueError, match='the input of Conv y is not rounded'):
      onnx_graph.to_int8(model.graph)


# Of the layers with weights, those that onnxruntime computes from integers: all
# but none.
INTEGERS = ('QLinearConv', 'QGemm')
FLOATS = {'Conv', 'Gemm', 'MatMul', 'FusedConv', 'FusedMatMul'}


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'layers', 'sums'),
  [
    ('tiny', 5, 1),
    # Depthwise convolutions.
    ('mobilenetv2_050', 53, 10),
    # What a pool gives is read three times.
    ('resnet18', 21, 8),
    # Gates and hard swish.
    ('mobilenet_v3_small', 54, 0),
    ('mobilenetv4_conv_small', 47, 0),
    # Fused branches.
    ('mobileone_s0', 44, 0),
  ],
)
def test_onnxruntime_gives_the_students_predictions(
  name, layers, sums, tmp_path
):
  """With its optimisations, from integers, and without, in floats."""
  pytest.importorskip('jax2onnx', exc_type=ImportError)
  onnxruntime = pytest.importorskip('onnxruntime')
  onnx = pytest.importorskip('onnx')
  student = make_student(name, 32)
  saved = checkpoints.Checkpoints(tmp_path / 'run')
  model = {'params': student.params, 'model_state': student.model_state}
  saved.save_best(model, student.description)
  saved.close()
  out = tmp_path / 'student.onnx'
  said = export.export_run(tmp_path / 'run', 'onnx', out)
  assert 'int8; onnxruntime differs from the student by' in said
  config = json.loads((tmp_path / 'student.onnx.json').read_text())
  assert config['quantized'] == 'int8'
  images = np.random.default_rng(7).normal(size=(64, 32, 32, 3))
  images = images.astype(np.float32)
  outputs, _ = jax.jit(student.model.apply)(
    student.params, student.model_state, images
  )
  expected = np.asarray(outputs['logits'])
  assert np.ptp(expected, 0).max() > 0.02 * np.abs(expected).max()
  for level in ('DISABLE_ALL', 'ENABLE_EXTENDED'):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = vars(onnxruntime.GraphOptimizationLevel)[
      f'ORT_{level}'
    ]
    options.optimized_model_filepath = str(tmp_path / 'optimized.onnx')
    session = onnxruntime.InferenceSession(
      out.read_bytes(), options, providers=['CPUExecutionProvider']
    )
    (found,) = session.run(None, {'images': images.transpose(0, 3, 1, 2)})
    difference = np.abs(found - expected)
    assert difference.mean() < 0.01 * np.abs(expected).max()
    assert np.mean(found.argmax(-1) == expected.argmax(-1)) >= 0.95
    optimized = onnx.load(tmp_path / 'optimized.onnx').graph
    count = collections.Counter(node.op_type for node in optimized.node)
    if level == 'ENABLE_EXTENDED':
      assert sum(count[op] for op in INTEGERS) == layers
      assert not FLOATS & set(count)
      assert count['QLinearAdd'] >= sums


@pytest.mark.slow
def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
  pytest.importorskip('jax2onnx', exc_type=ImportError)
  pytest.importorskip('onnxruntime')
  student = make_student('tiny', 16)
  head = student.params['head']
  wrong = student.params | {'head': head | {'bias': head['bias'] + 1.0}}
  other = dataclasses.replace(student, params=wrong)
  content = formats.qdq.convert(other)
  monkeypatch.setattr(formats.qdq, 'convert', lambda *_: content)
  with pytest.raises(RuntimeError, match='is not written: onnxruntime differs'):
    formats.qdq.write(student, tmp_path / 'a.onnx')
  assert not any(tmp_path.iterdir())
