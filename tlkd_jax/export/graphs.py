"""A converted ONNX graph in the form that is quantised or rounded.

jax2onnx writes convolutions between two transpositions, biases as additions
and a mean over pixels as a sum and a division. onnxruntime's own optimiser
cancels the transpositions and takes biases into convolutions, where nothing
stands in its way; `simplified` removes first what does.
"""

import pathlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from tlkd_jax.export import sessions
from tlkd_jax.models.functional import Tree
from tlkd_jax.runtime.trees import flatten

# Operators with weights: their second input is constant.
WEIGHTED = ('Conv', 'Gemm', 'MatMul')

# onnx.ModelProto and onnx.NodeProto; the package is optional.
Model = Any
Node = Any


def simplified(content: bytes, params: Tree, out: pathlib.Path) -> bytes:
  """Rewrites and optimises a float model; its layers get speaking names.

  Args:
    content: from onnx.convert.
    params: of the student that was converted.
    out: what the file is called in messages.

  Returns:
    A model of the same function, to rounding, with operators of ONNX alone.

  Raises:
    RuntimeError: onnxruntime does not take the model.
  """
  import onnx
  from onnxruntime import quantization

  model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content))
  merge_gemm_bias(model)
  pool_means(model)
  remove_unused(model)
  model = _optimized(model, out)
  name_layers(model, params)
  # Or its quantiser would advise to do what was done here.
  quantization.quant_utils.add_pre_process_metadata(model)
  return model.SerializeToString()


def layers(model: Model) -> list[Node]:
  """The nodes with weights, in their order."""
  known = {tensor.name for tensor in model.graph.initializer}
  return [
    node
    for node in model.graph.node
    if node.op_type in WEIGHTED and node.input[1] in known
  ]


def merge_gemm_bias(model: Model) -> None:
  """Gemm(x, w, 0) + bias becomes Gemm(x, w, bias), in place.

  onnxruntime's quantiser takes no bias that is a single number.
  """
  constants, readers = _constants(model), _readers(model)
  outputs = {value.name for value in model.graph.output}
  for node in list(model.graph.node):
    if node.op_type != 'Gemm' or len(node.input) != 3:
      continue
    kernel, old = constants.get(node.input[1]), constants.get(node.input[2])
    if kernel is None or old is None or old.size != 1:
      continue
    width = kernel.shape[0 if _attribute(node, 'transB', 0) else 1]
    beta = _attribute(node, 'beta', 1.0)
    bias = np.full(width, beta * old.item(), np.float32)
    after = readers.get(node.output[0], [])
    add = after[0] if len(after) == 1 else None
    added = _added(add, node.output[0], constants, width)
    if add is not None and added is not None and node.output[0] not in outputs:
      bias = bias + added
      node.output[0] = add.output[0]
      model.graph.node.remove(add)
    name = f'{node.name}_bias'
    _append_constant(model, name, bias.astype(np.float32))
    node.input[2] = name
    _set_attribute(node, 'beta', 1.0)


def _added(
  add: Node | None, name: str, constants: dict, width: int
) -> np.ndarray | None:
  """What is added to a tensor, as float[width]; None of anything else."""
  if add is None or add.op_type != 'Add':
    return None
  other = [entry for entry in add.input if entry != name]
  value = constants.get(other[0]) if len(other) == 1 else None
  if value is None or not (value.size == 1 or value.shape[-1] == value.size):
    return None
  return value.reshape(-1) if value.size in (1, width) else None


def pool_means(model: Model) -> None:
  """A mean over rows and columns of NHWC becomes GlobalAveragePool, in place.

  That is of NCHW: the transposition before it meets the one after the last
  convolution. Taken are ReduceSum and a division by H x W, and ReduceMean;
  shapes must have been inferred.
  """
  constants, readers, shapes = (
    _constants(model),
    _readers(model),
    _shapes(model),
  )
  for node in list(model.graph.node):
    if node.op_type not in ('ReduceSum', 'ReduceMean'):
      continue
    shape = shapes.get(node.input[0], ())
    if len(shape) != 4 or _axes(node, constants) != [1, 2]:
      continue
    last = node
    if node.op_type == 'ReduceSum':
      after = readers.get(node.output[0], [])
      if len(after) != 1 or not _divides(after[0], node, constants, shape):
        continue
      last = after[0]
    _replace_mean(model, node, last)


def _divides(node: Node, total: Node, constants: dict, shape: tuple) -> bool:
  """Whether a node divides a sum by the number of its pixels."""
  value = constants.get(node.input[1]) if len(node.input) == 2 else None
  if node.input[0] != total.output[0] or value is None or value.size != 1:
    return False
  if not all(isinstance(side, int) and side > 0 for side in shape[1:3]):
    return False
  pixels = shape[1] * shape[2]
  factor = {'Div': value.item(), 'Mul': 1 / value.item()}
  return np.isclose(factor.get(node.op_type, 0.0), pixels, rtol=1e-6, atol=0)


def _replace_mean(model: Model, first: Node, last: Node) -> None:
  from onnx import helper

  name, out = first.name, last.output[0]
  keep = bool(_attribute(first, 'keepdims', 1))
  make = helper.make_node
  nodes = [
    make(
      'Transpose',
      [first.input[0]],
      [f'{name}_nchw'],
      f'{name}_to_nchw',
      perm=[0, 3, 1, 2],
    ),
    make(
      'GlobalAveragePool', [f'{name}_nchw'], [f'{name}_pooled'], f'{name}_pool'
    ),
    make(
      'Transpose',
      [f'{name}_pooled'],
      [out],
      f'{name}_to_nhwc',
      perm=[0, 2, 3, 1],
    )
    if keep
    else make('Flatten', [f'{name}_pooled'], [out], f'{name}_flat', axis=1),
  ]
  place = list(model.graph.node).index(first)
  for node in [first] if last is first else [first, last]:
    model.graph.node.remove(node)
  for node in reversed(nodes):
    model.graph.node.insert(place, node)


def remove_unused(model: Model) -> None:
  """Removes constants, and notes on tensors, that no node has, in place."""
  used = {name for node in model.graph.node for name in node.input}
  made = {name for node in model.graph.node for name in node.output}
  for tensor in list(model.graph.initializer):
    if tensor.name not in used:
      model.graph.initializer.remove(tensor)
  for value in list(model.graph.value_info):
    if value.name not in made:
      model.graph.value_info.remove(value)


def _optimized(model: Model, out: pathlib.Path) -> Model:
  """By what onnxruntime optimises in terms of ONNX's own operators."""
  import onnx
  import onnxruntime

  options = onnxruntime.SessionOptions()
  level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
  options.graph_optimization_level = level
  options.log_severity_level = 3
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'optimized.onnx'
    options.optimized_model_filepath = str(path)
    sessions.session(model.SerializeToString(), out=out, options=options)
    optimized = onnx.load(path)
  domains = {node.domain for node in optimized.graph.node} | {''}
  for entry in list(optimized.opset_import):
    if entry.domain not in domains:
      optimized.opset_import.remove(entry)
  optimized.ir_version = min(optimized.ir_version, model.ir_version)
  return onnx.shape_inference.infer_shapes(optimized)


def name_layers(model: Model, params: Tree) -> None:
  """Names each layer by the path of its kernel among the parameters, in place.

  A kernel that several layers share, or that was changed on the way, tells
  none: such a node keeps its name, or gets one where it is not its own.
  """
  paths: dict[tuple, str] = {}
  for path, value in flatten(params).items():
    for key in _forms(np.asarray(value)):
      paths[key] = path.removesuffix('.kernel')
  constants = _constants(model)
  found = [
    (node, paths.get(_key(constants[node.input[1]]))) for node in layers(model)
  ]
  counts = Counter(path for _, path in found)
  for node, path in found:
    if path is not None and counts[path] == 1:
      node.name = path
  names = Counter(node.name for node in model.graph.node)
  for number, node in enumerate(model.graph.node):
    if not node.name or names[node.name] > 1:
      node.name = f'{node.op_type}_{number}'


def _forms(kernel: np.ndarray) -> Iterator[tuple]:
  """Keys of the ways in which ONNX may hold a kernel HWIO or [in, out]."""
  if kernel.ndim == 4:
    yield _key(kernel.transpose(3, 2, 0, 1))
  elif kernel.ndim == 2:
    yield _key(kernel)
    yield _key(kernel.T)


def _key(array: np.ndarray) -> tuple:
  return array.shape, np.ascontiguousarray(array).tobytes()


def _constants(model: Model) -> dict[str, np.ndarray]:
  from onnx import numpy_helper

  return {
    tensor.name: numpy_helper.to_array(tensor)
    for tensor in model.graph.initializer
  }


def _append_constant(model: Model, name: str, value: np.ndarray) -> None:
  from onnx import numpy_helper

  model.graph.initializer.append(numpy_helper.from_array(value, name))


def _readers(model: Model) -> dict[str, list[Node]]:
  """Tensor -> the nodes that take it."""
  found: dict[str, list[Node]] = {}
  for node in model.graph.node:
    for name in set(node.input):
      found.setdefault(name, []).append(node)
  return found


def _shapes(model: Model) -> dict[str, tuple]:
  """Tensor -> its lengths, a name or '' where one is free."""
  values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
  return {
    value.name: tuple(
      dim.dim_value if dim.HasField('dim_value') else dim.dim_param
      for dim in value.type.tensor_type.shape.dim
    )
    for value in values
  }


def _axes(node: Node, constants: dict[str, np.ndarray]) -> list[int]:
  """Over which a node reduces: an input since opset 13 or 18."""
  if len(node.input) > 1:
    axes = constants.get(node.input[1], np.zeros(0)).tolist()
  else:
    axes = list(_attribute(node, 'axes', []))
  return sorted(axis % 4 for axis in axes)


def _attribute(node: Node, name: str, default: Any) -> Any:
  from onnx import helper

  for entry in node.attribute:
    if entry.name == name:
      return helper.get_attribute_value(entry)
  return default


def _set_attribute(node: Node, name: str, value: Any) -> None:
  from onnx import helper

  for entry in list(node.attribute):
    if entry.name == name:
      node.attribute.remove(entry)
  node.attribute.append(helper.make_attribute(name, value))
