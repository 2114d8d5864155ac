"""int8 ONNX files: options, whose images calibrate, graphs, held accuracy."""

import dataclasses
import json
import pathlib
import shutil
import types

import jax
import numpy as np
import pytest

from benchmarks import int8
from tlkd_jax import export, models
from tlkd_jax.data import Dataset, Split
from tlkd_jax.export import __main__ as command
from tlkd_jax.export import formats, graphs, onnx, quantization, run_data
from tlkd_jax.export import student as students
from tlkd_jax.export.options import Int8
from tlkd_jax.models.weights import folding
from tlkd_jax.runtime.errors import UserError
from tlkd_jax.training import checkpoints, descriptions

pytestmark = pytest.mark.usefixtures('tiny_models')

OUT = pathlib.Path('a.onnx')


def make_student(name: str = 'tiny', image_size: int = 16):
  """A student with drawn weights in which no norm is the identity."""
  model = models.create_model(name, num_classes=5)
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    drawn = rng.normal(size=leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5
    if path[-1].key in ('scale', 'var'):
      drawn = 1 + np.abs(drawn)
    return drawn.astype(np.float32)

  shapes = model.params_shape, model.model_state_shape
  variables = jax.tree_util.tree_map_with_path(draw, shapes)
  description = descriptions.Description(
    model=name,
    num_classes=5,
    class_names=tuple('abcde'),
    image_size=image_size,
    crop=1.0,
    interpolation='bilinear',
    dataset='digits',
    arm='tl',
    compute_dtype='float32',
    step=1,
  )
  return students.Student(model, *variables, description)


class TestOptions:
  @pytest.mark.parametrize(
    ('options', 'message'),
    [
      ({'calibration_images': 0}, 'images 0: a calibration set with no images'),
      ({'calibration_images': -3}, 'images -3: a calibration set with no im'),
      ({'calibration_method': 'mse'}, 'mse; accepted: minmax, entropy, perc'),
      ({'calibration_method': 'MinMax'}, 'MinMax; accepted: minmax'),
      ({'max_accuracy_drop': -0.01}, 'drop -0.01; accepted: 0 to 1, 0.01 is'),
      ({'max_accuracy_drop': 1.5}, 'drop 1.5; accepted: 0 to 1'),
      ({'max_accuracy_drop': float('nan')}, 'drop nan; accepted: 0 to 1'),
      ({'max_float_layers': -1}, 'layers -1; accepted: 0 or more'),
    ],
  )
  def test_refused(self, options, message, tmp_path):
    out = tmp_path / 'a.onnx'
    with pytest.raises(UserError, match=message):
      export.export_run(tmp_path, 'onnx', out, quantize=Int8(**options))

  @pytest.mark.parametrize('scheme', ['int4', 'INT8', '', 'uint8'])
  def test_an_unknown_scheme(self, scheme, tmp_path):
    with pytest.raises(UserError, match=f'--quantize {scheme}; accepted: int8'):
      export.export_run(tmp_path, 'onnx', tmp_path / 'a.onnx', quantize=scheme)

  @pytest.mark.parametrize('format', ['safetensors', 'stablehlo'])
  def test_of_another_format(self, format, tmp_path):
    with pytest.raises(UserError, match=f'int8: a {format} file is not quanti'):
      export.export_run(
        tmp_path, format, tmp_path / f'a.{format}', quantize='int8'
      )

  @pytest.mark.parametrize(
    ('arguments', 'named'),
    [
      (['--symmetric'], '--symmetric'),
      (['--calibration-images=5'], '--calibration-images'),
      (['--calibration-method', 'entropy'], '--calibration-method'),
      (['--max-accuracy-drop=0.01'], '--max-accuracy-drop'),
      (['--max-float-layers=0'], '--max-float-layers'),
      (
        ['--symmetric', '--calibration-images=5'],
        '--calibration-images, --symmetric',
      ),
    ],
  )
  def test_without_quantize(self, arguments, named, tmp_path, capsys):
    given = [f'--checkpoint={tmp_path}', '--format=onnx', '--out=a.onnx']
    with pytest.raises(SystemExit) as stop:
      command.main([*given, *arguments])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said == f'error: {named}: accepted with --quantize int8\n'

  def test_they_reach_the_quantiser(self, tmp_path, monkeypatch):
    asked = []

    def export_run(*arguments, **keywords):
      asked.append(keywords['quantize'])
      return ''

    monkeypatch.setattr(command, 'export_run', export_run)
    given = [f'--checkpoint={tmp_path}', '--format=onnx', '--out=a.onnx']
    command.main([*given, '--quantize=int8'])
    command.main(
      [
        *(*given, '--quantize=int8', '--symmetric', '--calibration-images=9'),
        *('--calibration-method=percentile', '--max-accuracy-drop=0.5'),
        '--max-float-layers=2',
      ]
    )
    command.main(given)
    assert asked == [Int8(), Int8(9, 'percentile', True, 0.5, 2), None]


class Untouchable:
  """A split of which nothing may be asked."""

  def __getattribute__(self, name):
    raise AssertionError(f'{name} of a split that is not train')

  def __len__(self):
    raise AssertionError('the length of a split that is not train')


def make_dataset(count: int = 40, side: int = 20) -> Dataset:
  """Train images whose pixels are their own number; no other is touched."""
  images = np.broadcast_to(
    np.arange(count, dtype=np.uint8)[:, None, None, None],
    (count, side, side, 3),
  )
  rows = np.arange(count)
  names = [str(row) for row in rows]
  train = Split(images, (rows % 5).astype(np.int32), rows, names)
  splits = {'train': train, 'validation': Untouchable(), 'test': Untouchable()}
  return Dataset('mine', list('abcde'), splits, 16, True, {}, [])


class TestCalibrationImages:
  @pytest.mark.parametrize(
    ('count', 'expected'), [(1, 1), (17, 17), (40, 40), (256, 40)]
  )
  def test_they_are_of_train_alone(self, count, expected):
    student = make_student()
    images = run_data.calibration_images(student, make_dataset(), count)
    assert images.shape == (expected, 16, 16, 3)
    assert images.dtype == np.float32
    # tiny normalises by (x - 127) / 128.
    numbers = np.rint(images * 128 + 127)
    assert (np.ptp(numbers, axis=(1, 2, 3)) == 0).all()
    found = numbers[:, 0, 0, 0].astype(int)
    assert len(set(found)) == expected and set(found) <= set(range(40))
    again = run_data.calibration_images(student, make_dataset(), count)
    np.testing.assert_array_equal(images, again)

  def test_fewer_of_many_are_of_all_of_train(self):
    images = run_data.calibration_images(make_student(), make_dataset(200), 50)
    numbers = np.rint(images[:, 0, 0, 0] * 128 + 127)
    assert numbers.min() < 40 and numbers.max() > 160

  def test_no_training_images(self):
    with pytest.raises(ValueError, match='mine has no training images: a cali'):
      run_data.calibration_images(make_student(), make_dataset(0), 8)


@pytest.fixture
def finished(compare_run, tmp_path):
  """A copy of a finished TL+KD run on digits that may be changed."""
  shutil.copytree(compare_run / 'kd', tmp_path / 'kd')
  return tmp_path / 'kd'


def change_config(run: pathlib.Path, **changes):
  path = run / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  shutil.rmtree(run / '.sums', ignore_errors=True)


class TestDataOfARun:
  def test_they_are_the_runs(self, finished):
    dataset = run_data.load(finished)
    summary = json.loads((finished / 'summary.json').read_text())
    assert len(dataset.splits['train']) == summary['num_train']
    student = students.load_student(finished)
    logits = run_data.predictions(
      student, dataset.splits['validation'], jax.jit(student.logits)
    )
    right = logits.argmax(-1) == dataset.splits['validation'].labels
    expected = summary['student']['validation']['top1']
    assert right.mean() == pytest.approx(expected)

  @pytest.mark.parametrize(
    'dataset', ['folder:moved/away', 'folder:gone.zip', 'csv:gone.csv']
  )
  def test_they_have_moved(self, dataset, finished, monkeypatch):
    change_config(finished, dataset=dataset)
    free = dataclasses.replace(formats.FORMATS['onnx'], needs=())
    monkeypatch.setitem(formats.FORMATS, 'onnx', free)
    out = finished.parent / 'a.onnx'
    with pytest.raises(
      UserError, match=f'was trained on {dataset}, whose images are needed'
    ):
      export.export_run(finished, 'onnx', out, quantize='int8')
    assert not out.exists()

  @pytest.mark.parametrize(
    ('with_record', 'message'),
    [
      (True, 'classes: the same in another order'),
      (False, 'digits has the classes 9, 8, .* accepted: the same in the same'),
    ],
  )
  def test_their_classes_have_another_order(
    self, with_record, message, finished, monkeypatch
  ):
    names = checkpoints.read_description(finished).class_names
    loaded = types.SimpleNamespace(class_names=list(names)[::-1], files={})
    monkeypatch.setattr(run_data.decoding, 'load_seen', lambda *_: loaded)
    if not with_record:
      (finished / 'data.json.gz').unlink()
    with pytest.raises(ValueError, match=message):
      run_data.load(finished)


def test_more_weights_than_a_file_holds():
  student = make_student()
  wide = np.broadcast_to(np.float32(0), (600_000_000,))
  onnx.check_size(student)
  big = dataclasses.replace(student, params={'a': wide})
  with pytest.raises(ValueError, match='tiny has 2.40 GB of weights, and an'):
    formats.check_size('onnx', big)
  formats.check_size('safetensors', big)


@pytest.mark.parametrize(
  ('name', 'expected'), [('tiny', True), ('tiny_vit', False)]
)
def test_norms_are_folded_where_there_are_any(name, expected):
  student = make_student(name)
  assert folding.folds(student.model) is expected
  folded = students.folded(student)
  assert folded.folded is expected
  assert (folded is student) is not expected
  assert students.folded(folded) is folded
  assert bool(jax.tree.leaves(folded.model_state)) is False


def accuracy(int8: float, count: int = 100) -> run_data.Accuracy:
  return run_data.Accuracy(0.9, int8, 0.95, count)


class TestHeldAccuracy:
  @pytest.mark.parametrize(
    ('drops', 'most', 'layers', 'expected'),
    [
      ([0.0], 0.01, 8, []),
      ([-0.02], 0.01, 8, []),
      # The bound itself is held.
      ([0.01], 0.01, 8, []),
      ([0.0], 0.0, 0, []),
      ([0.02, 0.01], 0.01, 8, ['a']),
      ([0.3, 0.2, 0.0], 0.01, 2, ['a', 'b']),
      ([0.3, 0.2, 0.1, 0.005], 0.01, 8, ['a', 'b', 'c']),
    ],
  )
  def test_layers_stay_in_float_until_it_holds(
    self, drops, most, layers, expected
  ):
    asked, waiting = [], iter(drops)

    def judge(kept):
      asked.append(list(kept))
      return accuracy(0.9 - next(waiting))

    options = Int8(max_accuracy_drop=most, max_float_layers=layers)
    kept, found = quantization.hold_accuracy(
      judge, lambda: ['a', 'b', 'c'], options, OUT
    )
    assert kept == expected == asked[-1]
    assert found.drop == pytest.approx(drops[-1])
    assert next(waiting, None) is None

  @pytest.mark.parametrize(
    ('layers', 'message'),
    [
      (0, r'from 0.9000 in float to 0.5000 in int8, by more than --max'),
      (1, r'to 0.5000 in int8 \(0.6000 with 1 layers in float: a\), by'),
      (2, r'\(0.7000 with 2 layers in float: a, b\), by'),
      (9, r'\(0.7000 with 2 layers in float: a, b\), by'),
    ],
  )
  def test_refused_with_both_numbers(self, layers, message):
    options = Int8(max_float_layers=layers)
    with pytest.raises(RuntimeError, match=message):
      quantization.hold_accuracy(
        lambda kept: accuracy(0.5 + 0.1 * len(kept)),
        lambda: ['a', 'b'],
        options,
        OUT,
      )

  def test_the_worst_are_not_looked_for_without_need(self):
    def worst():
      raise AssertionError

    judge = {'judge': lambda kept: accuracy(0.9), 'worst': worst}
    kept, _ = quantization.hold_accuracy(**judge, options=Int8(), out=OUT)
    assert kept == []

  def test_compared(self):
    expected = np.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    logits = np.asarray([[3.0, 0.0], [0.0, 3.0], [0.0, 1.0], [5.0, 1.0]])
    found = run_data.compare(expected, logits, np.asarray([0, 0, 1, 0]))
    assert found == run_data.Accuracy(0.75, 0.75, 0.5, 4)
    assert found.drop == 0


# --- Graphs, with the optional package onnx ---


@pytest.fixture
def helper():
  onnx_package = pytest.importorskip('onnx', exc_type=ImportError)
  return onnx_package.helper


def make_graph(helper, nodes, shapes, constants, output):
  """A checked model; `shapes` are of its inputs."""
  import onnx as package

  kind = package.TensorProto.FLOAT
  graph = helper.make_graph(
    [
      helper.make_node(op, list(ins), [out], name=f'n{n}', **attributes)
      for n, (op, ins, out, attributes) in enumerate(nodes)
    ],
    'made',
    [
      helper.make_tensor_value_info(name, kind, shape)
      for name, shape in shapes.items()
    ],
    [helper.make_tensor_value_info(output, kind, None)],
    [
      package.numpy_helper.from_array(value, name)
      for name, value in constants.items()
    ],
  )
  model = helper.make_model(
    graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10
  )
  model = package.shape_inference.infer_shapes(model)
  package.checker.check_model(model)
  return model


def evaluated(model, inputs):
  reference = pytest.importorskip('onnx.reference')
  return reference.ReferenceEvaluator(model).run(None, inputs)[0]


def operators(model):
  return [node.op_type for node in model.graph.node]


def drawn(*shape):
  values = np.random.default_rng(len(shape)).normal(size=shape)
  return values.astype(np.float32)


GEMM_BIAS = [
  # (kernel is transposed, beta, C, what is added, operators left)
  (0, 1.0, np.float32(0), drawn(3), ['Gemm']),
  (1, 1.0, np.float32(0), drawn(3), ['Gemm']),
  (0, 1.0, np.float32(0), drawn(1, 3), ['Gemm']),
  (0, 1.0, np.zeros(1, np.float32), np.float32(2), ['Gemm']),
  (0, 0.5, np.float32(3), drawn(3), ['Gemm']),
  # Of another shape: it makes a matrix of a row, or is no vector of columns.
  (0, 1.0, np.float32(0), drawn(2, 3), ['Gemm', 'Add']),
  (0, 1.0, np.float32(0), drawn(2, 1), ['Gemm', 'Add']),
]


@pytest.mark.parametrize(
  ('transposed', 'beta', 'c', 'added', 'expected'), GEMM_BIAS
)
def test_a_bias_joins_its_gemm(transposed, beta, c, added, expected, helper):
  kernel = drawn(3, 4) if transposed else drawn(4, 3)
  attributes = {'transB': transposed, 'beta': beta}
  nodes = [
    ('Gemm', ('x', 'w', 'c'), 'y', attributes),
    ('Add', ('y', 'b'), 'z', {}),
  ]
  constants = {'w': kernel, 'c': np.asarray(c), 'b': np.asarray(added)}
  model = make_graph(helper, nodes, {'x': [2, 4]}, constants, 'z')
  before = evaluated(model, {'x': drawn(2, 4)})
  graphs.merge_gemm_bias(model)
  graphs.remove_unused(model)
  assert operators(model) == expected
  after = evaluated(model, {'x': drawn(2, 4)})
  np.testing.assert_allclose(after, before, atol=1e-6)
  # What the quantiser takes: a bias for each column.
  sizes = {t.name: list(t.dims) for t in model.graph.initializer}
  assert sizes[model.graph.node[0].input[2]] == [3]
  assert ('b' in sizes) is ('Add' in expected)


def test_a_gemm_that_two_read_keeps_its_addition(helper):
  nodes = [
    ('Gemm', ('x', 'w', 'c'), 'y', {}),
    ('Add', ('y', 'b'), 'z', {}),
    ('Mul', ('y', 'z'), 'a', {}),
  ]
  constants = {'w': drawn(4, 3), 'c': np.float32(0)[None], 'b': drawn(3)}
  model = make_graph(helper, nodes, {'x': [2, 4]}, constants, 'a')
  before = evaluated(model, {'x': drawn(2, 4)})
  graphs.merge_gemm_bias(model)
  assert operators(model) == ['Gemm', 'Add', 'Mul']
  np.testing.assert_allclose(evaluated(model, {'x': drawn(2, 4)}), before)


MEANS = [
  # (reduction, axes, keepdims, division, its constant, is a pooling)
  ('ReduceSum', [1, 2], 0, 'Div', 30.0, True),
  ('ReduceSum', [1, 2], 1, 'Div', 30.0, True),
  ('ReduceSum', [-3, -2], 0, 'Div', 30.0, True),
  ('ReduceSum', [2, 1], 0, 'Mul', 1 / 30, True),
  ('ReduceMean', [1, 2], 0, None, None, True),
  ('ReduceMean', [1, 2], 1, 'Div', 30.0, True),
  ('ReduceSum', [1, 2], 0, 'Div', 31.0, False),
  ('ReduceSum', [1, 2], 0, 'Mul', 30.0, False),
  ('ReduceSum', [1, 2], 0, None, None, False),
  ('ReduceSum', [2, 3], 0, 'Div', 30.0, False),
  ('ReduceMean', [1], 0, None, None, False),
  ('ReduceMean', [1, 2, 3], 0, None, None, False),
]


@pytest.mark.parametrize(
  ('reduction', 'axes', 'keepdims', 'division', 'by', 'pools'), MEANS
)
def test_a_mean_of_pixels_is_a_pooling(
  reduction, axes, keepdims, division, by, pools, helper
):
  nodes = [(reduction, ('x', 'axes'), 'y', {'keepdims': keepdims})]
  constants = {'axes': np.asarray(axes, np.int64)}
  if division:
    nodes.append((division, ('y', 'by'), 'z', {}))
    constants['by'] = np.float32(by)[None]
  output = 'z' if division else 'y'
  model = make_graph(helper, nodes, {'x': ['n', 5, 6, 4]}, constants, output)
  x = drawn(2, 5, 6, 4)
  before = evaluated(model, {'x': x})
  graphs.pool_means(model)
  assert ('GlobalAveragePool' in operators(model)) is pools
  after = evaluated(model, {'x': x})
  assert after.shape == before.shape
  np.testing.assert_allclose(after, before, atol=1e-5)


def residual(helper):
  """Two convolutions that are added, a mean, a Gemm, and a softmax."""
  nodes = [
    ('Conv', ('x', 'w1', 'b1'), 'c1', {}),
    ('Clip', ('c1', 'low', 'high'), 'a1', {}),
    ('Conv', ('a1', 'w2', 'b1'), 'c2', {}),
    ('Add', ('a1', 'c2'), 's', {}),
    ('Add', ('s', 'k'), 't', {}),
    ('Add', ('t', 'c2'), 'u', {}),
    ('GlobalAveragePool', ('s',), 'g', {}),
    ('Flatten', ('g',), 'f', {}),
    ('Gemm', ('f', 'w3', 'b1'), 'h', {}),
    ('Softmax', ('h',), 'p', {}),
    ('MatMul', ('p', 'h2'), 'm', {}),
  ]
  constants = {
    **{'w1': drawn(4, 3, 1, 1), 'w2': drawn(4, 4, 1, 1), 'w3': drawn(4, 4)},
    **{'b1': drawn(4), 'k': np.float32(3)[None]},
    **{'low': np.float32(0), 'high': np.float32(6)},
  }
  constants = {name: np.asarray(value) for name, value in constants.items()}
  shapes = {'x': ['n', 3, 5, 5], 'h2': [4, 2]}
  return make_graph(helper, nodes, shapes, constants, 'm')


@pytest.mark.parametrize(
  ('kept', 'expected'),
  [
    ([], ['n0', 'n1', 'n2', 'n3', 'n6', 'n7', 'n8']),
    # What an unquantised layer gives, nothing passes on in int8.
    (['n2'], ['n0', 'n1', 'n8']),
    (['n0'], ['n2', 'n8']),
    (['n0', 'n2', 'n8'], []),
  ],
)
def test_which_nodes_are_quantised(kept, expected, helper):
  model = residual(helper)
  found = quantization.quantized_nodes(model, kept)
  assert [node.name for node in found] == expected


def test_layers_are_named_by_their_kernels(helper):
  model = residual(helper)
  params = {
    'stem': {'kernel': drawn(4, 3, 1, 1).transpose(2, 3, 1, 0)},
    'head': {'kernel': drawn(4, 4), 'bias': drawn(4)},
    'other': {'kernel': drawn(1, 1, 3, 4) + 1},
  }
  assert [node.name for node in graphs.layers(model)] == ['n0', 'n2', 'n8']
  model.graph.node[1].name = model.graph.node[3].name = ''
  graphs.name_layers(model, params)
  names = [node.name for node in model.graph.node]
  assert [names[0], names[2], names[8]] == ['stem', 'n2', 'head']
  assert len(set(names)) == len(names) and '' not in names


def test_shares_of_operators_in_a_profile():
  def event(name, op, dur, cat='Node'):
    return {'cat': cat, 'name': name, 'dur': dur, 'args': {'op_name': op}}

  events = [
    event('a_kernel_time', 'QLinearConv', 60),
    event('b_kernel_time', 'QLinearConv', 20),
    event('b_fence_before', 'QLinearConv', 500),
    event('c_kernel_time', 'QuantizeLinear', 20),
    event('model_run', 'none', 900, 'Session'),
  ]
  found = int8.shares_of(events)
  assert found == {'QLinearConv': 0.8, 'QuantizeLinear': 0.2}
  assert int8.shares_of([]) == {}
