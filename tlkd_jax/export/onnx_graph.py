"""The graph of a student that rounds, put into the form that runtimes look for.

A runtime computes DequantizeLinear -> layer -> QuantizeLinear from integers,
with nothing between them. Nothing here changes what the graph computes but
`_whole_weights`, which rounds weights and biases.
"""

import math

import numpy as np

from tlkd_jax.models.layers import fake_quant

# Of one tensor, value by value; the others of their inputs are constants, or
# tensors of the same layout.
_ELEMENTWISE = frozenset(
  {
    *('QuantizeLinear', 'DequantizeLinear', 'Clip', 'Relu', 'Sigmoid', 'Max'),
    *('Min', 'Add', 'Sub', 'Mul', 'Div', 'HardSigmoid', 'HardSwish', 'Tanh'),
    *('Erf', 'Neg', 'Exp', 'Abs', 'Identity'),
  }
)
_LAYERS = ('Conv', 'Gemm', 'MatMul')
# A bound of a ReLU6 and of its rounding may differ in the last digit.
_CLOSE = 1e-5


def to_int8(graph) -> None:
  """Puts a graph in order and makes its weights whole numbers, in place.

  Args:
    graph: an onnx.GraphProto whose tensors are rounded by QuantizeLinear and
      DequantizeLinear, with float weights.

  Raises:
    ValueError: a layer's input is not rounded, or its weight is no constant.
  """
  from onnx import numpy_helper

  constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
  outputs = {output.name for output in graph.output}
  nodes = _without_transpositions(list(graph.node), constants, outputs)
  nodes = _with_biases(nodes, constants)
  nodes = _without_rectifiers(nodes, constants)
  nodes = _whole_weights(nodes, constants)
  used = {name for node in nodes for name in node.input}
  kept = [
    numpy_helper.from_array(np.asarray(value), name)
    for name, value in constants.items()
    if name in used
  ]
  for field, values in (
    (graph.node, nodes),
    (graph.initializer, kept),
    # Of tensors that are gone, or have another layout.
    (graph.value_info, []),
  ):
    del field[:]
    field.extend(values)


def _without_transpositions(nodes, constants, outputs) -> list:
  """Each transposition moved behind what works value by value.

  There it meets its inverse, or a node that needs it. A tensor that is another
  one transposed is only noted, and made where it is needed as it is.
  """
  from onnx import helper

  found, moved, same, turned, rounded = [], {}, {}, {}, {}

  def before_rounding(source, order):
    """The name of a rounded tensor transposed, and rounded after that."""
    if (source, order) not in turned:
      there, back = rounded[source]
      names = [f'{source}_{"".join(map(str, order))}{end}' for end in 'tqd']
      turned[source, order] = names[-1]
      perm = list(order)
      again = [
        helper.make_node(node.op_type, [name, *node.input[1:]], [made])
        for node, name, made in zip(
          (there, back), names[:2], names[1:], strict=True
        )
      ]
      turning = [there.input[0]], names[:1]
      found.append(helper.make_node('Transpose', *turning, perm=perm))
      found.extend(again)
      rounded[names[-1]] = tuple(again)
    return turned[source, order]

  def plain(name):
    """The name of a tensor in its own layout."""
    name = same.get(name, name)
    if name in moved:
      source, order = moved.pop(name)
      found.append(
        helper.make_node('Transpose', [source], [name], perm=list(order))
      )
    return name

  for node in nodes:
    inputs = [same.get(name, name) for name in node.input]
    orders = {moved[name][1] for name in inputs if name in moved}
    tensors = [name for name in inputs if name and name not in constants]
    if node.op_type == 'Transpose':
      order = tuple(node.attribute[0].ints)
      if inputs[0] in constants:
        constants[node.output[0]] = constants[inputs[0]].transpose(order)
        continue
      source = inputs[0]
      if source in moved:
        source, before = moved[source]
        order = tuple(before[axis] for axis in order)
      if order == tuple(range(len(order))):
        same[node.output[0]] = source
      elif source in rounded:
        same[node.output[0]] = before_rounding(source, order)
      else:
        moved[node.output[0]] = source, order
      continue
    together = len(orders) == 1 and all(name in moved for name in tensors)
    if node.op_type in _ELEMENTWISE and together:
      (order,) = orders
      output = f'{node.output[0]}_moved'
      moved[node.output[0]] = output, order
      inputs = [
        moved[name][0] if name in moved else _turned(name, order, constants)
        for name in inputs
      ]
      node.output[0] = output
    else:
      inputs = [plain(name) for name in inputs]
      if node.op_type == 'DequantizeLinear':
        makers = (n for n in reversed(found) if inputs[0] in n.output)
        rounded[node.output[0]] = next(makers), node
    del node.input[:]
    node.input.extend(inputs)
    found.append(node)
  for name in outputs:
    if plain(name) != name:
      found.append(helper.make_node('Identity', [plain(name)], [name]))
  return _needed(found, outputs)


def _needed(nodes, outputs) -> list:
  """Without those that nothing reads."""
  used, found = set(outputs), []
  for node in reversed(nodes):
    if used & set(node.output):
      used |= set(node.input)
      found.append(node)
  return found[::-1]


def _turned(name: str, order: tuple[int, ...], constants) -> str:
  """The name of a constant as it is before a transposition."""
  value = constants.get(name)
  if value is None or value.ndim == 0 or value.size == 1:
    return name
  rank = len(order)
  wide = value.reshape((1,) * (rank - value.ndim) + value.shape)
  turned = f'{name}_{"".join(map(str, order))}'
  constants[turned] = wide.transpose(np.argsort(order))
  return turned


def _readers(nodes) -> dict[str, list]:
  found: dict[str, list] = {}
  for node in nodes:
    for name in node.input:
      found.setdefault(name, []).append(node)
  return found


def _with_biases(nodes, constants) -> list:
  """What is added to each channel of a layer is its bias."""
  readers = _readers(nodes)
  gone = set()
  for node in nodes:
    after = readers.get(node.output[0], [])
    if node.op_type not in ('Conv', 'Gemm') or len(after) != 1:
      continue
    (add,) = after
    if add.op_type != 'Add' or _has_bias(node):
      continue
    others = [name for name in add.input if name != node.output[0]]
    if len(others) != 1 or others[0] not in constants:
      continue
    value, channels = constants[others[0]], _channels(node, constants)
    axis = 1 if node.op_type == 'Conv' else -1
    if value.size != channels or value.ndim and value.shape[axis] != channels:
      continue
    del node.input[2:]
    constants[f'{node.output[0]}_bias'] = value.reshape(-1)
    node.input.append(f'{node.output[0]}_bias')
    for attribute in node.attribute:
      if attribute.name == 'beta':
        attribute.f = 1.0
    node.output[0] = add.output[0]
    gone.add(id(add))
  return [node for node in nodes if id(node) not in gone]


def _has_bias(node) -> bool:
  beta = [a.f for a in node.attribute if a.name == 'beta']
  return len(node.input) > 2 and beta != [0.0]


def _axis(node) -> int:
  """Of the output channels in a layer's weight."""
  if node.op_type == 'Conv':
    return 0
  turned = [a.i for a in node.attribute if a.name == 'transB']
  return 0 if turned == [1] else -1


def _channels(node, constants) -> int:
  return constants[node.input[1]].shape[_axis(node)]


def _without_rectifiers(nodes, constants) -> list:
  """Without those whose bounds the rounding behind them has anyhow."""
  readers = _readers(nodes)
  renamed, found = {}, []
  for node in nodes:
    after = readers.get(node.output[0], [])
    bounds = _bounds(node, constants)
    if bounds and len(after) == 1 and after[0].op_type == 'QuantizeLinear':
      source, low, high = bounds
      scale, zero = (float(constants[name]) for name in after[0].input[1:3])
      least = (fake_quant.LOWEST - zero) * scale
      most = (fake_quant.HIGHEST - zero) * scale
      if least >= low - _CLOSE * scale and most <= high * (1 + _CLOSE):
        renamed[node.output[0]] = source
        continue
    found.append(node)
  for node in found:
    for place, name in enumerate(node.input):
      node.input[place] = renamed.get(name, name)
  return found


def _bounds(node, constants) -> tuple[str, float, float] | None:
  """(what a rectifier is of, its least, its greatest value); None of others."""
  numbers = [
    constants[name].item()
    for name in node.input
    if name in constants and constants[name].size == 1
  ]
  (first, *others) = node.input
  if node.op_type == 'Relu':
    return first, 0.0, math.inf
  if node.op_type == 'Clip' and len(numbers) == 2:
    return first, numbers[0], numbers[1]
  if node.op_type == 'Max' and len(numbers) == 1 and len(others) == 1:
    source = others[0] if first in constants else first
    return source, numbers[0], math.inf
  return None


def _whole_weights(nodes, constants) -> list:
  """Weights as int8 and biases as int32, with the nodes that read them."""
  from onnx import helper

  makers = {name: node for node in nodes for name in node.output}
  found = []
  for node in nodes:
    if node.op_type in _LAYERS:
      before = makers.get(node.input[0])
      weight = constants.get(node.input[1])
      if before is None or before.op_type != 'DequantizeLinear':
        raise ValueError(
          f'the input of {node.op_type} {node.output[0]} is not rounded'
        )
      if weight is None:
        raise ValueError(
          f'the weight of {node.op_type} {node.output[0]} is no constant'
        )
      axis = _axis(node) % weight.ndim
      bias = constants[node.input[2]] if _has_bias(node) else None
      whole = _rounded(weight, bias, constants[before.input[1]], axis)
      for place, part in enumerate(('weight', 'bias')[: len(whole)], 1):
        name = f'{node.output[0]}_{part}'
        values, scale = whole[place - 1]
        constants[f'{name}_int'] = values
        constants[f'{name}_scale'] = scale
        constants[f'{name}_zero'] = np.zeros(scale.shape, values.dtype)
        along = axis if part == 'weight' else 0
        inputs = [f'{name}_int', f'{name}_scale', f'{name}_zero']
        found.append(
          helper.make_node(
            'DequantizeLinear', inputs, [f'{name}_float'], axis=along
          )
        )
        node.input[place] = f'{name}_float'
    found.append(node)
  return found


def _rounded(weight, bias, input_scale, axis: int) -> list:
  """[(int8 weight, its scales)], with (int32 bias, its scales) behind.

  As fake_quant.weights has them.
  """
  kernel = np.moveaxis(weight, axis, -1)
  scale = np.asarray(fake_quant.weight_scale(kernel, bias, input_scale))
  largest = fake_quant.LARGEST
  values = np.clip(np.round(kernel / scale), -largest, largest)
  found = [(np.moveaxis(values, -1, axis).astype(np.int8), scale)]
  if bias is not None:
    own = scale * input_scale
    found.append((np.round(bias / own).astype(np.int32), own))
  return found
