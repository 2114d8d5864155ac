"""int8 ONNX files by onnxruntime's static quantisation, held to an accuracy.

The float model, with norms folded and biases in its convolutions, is run on
training images of the run; the ranges that its tensors took become the scales
of pairs of QuantizeLinear and DequantizeLinear (QDQ) around its layers. A
runtime computes what lies between such pairs in int8.

Which tensors get a pair says `quantized_nodes`: what goes into a layer (Conv,
Gemm or MatMul with a constant kernel) and out of a Conv, one scale for the
tensor; the kernel, one scale for each output channel, symmetric; and what
operators of THROUGH pass on between layers. A bias is int32, its scale that of
the input times that of the kernel. Everything else stays in float, such as the
logits.
"""

import contextlib
import dataclasses
import io
import pathlib
import tempfile
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from absl import logging

from tlkd_jax.data import Dataset
from tlkd_jax.export import graphs, onnx, run_data
from tlkd_jax.export.options import Int8
from tlkd_jax.export.student import Student, checked
from tlkd_jax.runtime import bars
from tlkd_jax.runtime.atomic import replacing

# Operators that onnxruntime computes in int8 and that have no weights.
THROUGH = (
  *('Add', 'AveragePool', 'Clip', 'Concat', 'Flatten', 'GlobalAveragePool'),
  *('MaxPool', 'Relu', 'Reshape', 'Transpose'),
)

# So many of the calibration images tell which layer harms most.
_JUDGES = 64


@dataclasses.dataclass(frozen=True)
class Calibrated:
  """A float model with what quantises it.

  Attributes:
    model: the file of the float model, from graphs.simplified.
    images: float32 [N, H, W, 3], normalised training images.
    options: how.
    ranges: the file with the ranges of tensors; the first call makes it.
  """

  model: pathlib.Path
  images: np.ndarray
  options: Int8
  ranges: pathlib.Path


def write(
  student: Student,
  out: pathlib.Path,
  options: Int8,
  dataset: Dataset,
  opset: int,
) -> tuple[str, dict[str, Any]]:
  """Writes an int8 model that holds the accuracy of the float one.

  Args:
    student: to write, its norms folded where there are any.
    out: the file.
    options: how it is quantised, and what it may cost.
    dataset: of its run; training images calibrate, validation images judge.
    opset: version of the operators.

  Returns:
    (what to tell the user, what FILE.json says of it).

  Raises:
    RuntimeError: an operator that cannot be quantised, or an accuracy that
      falls by more than the bound; the file is not there.
  """
  validation = dataset.splits['validation']
  with replacing(out) as unfinished, tempfile.TemporaryDirectory() as made:
    folder = pathlib.Path(made)
    source = folder / 'float.onnx'
    content = onnx.convert_student(student, opset)
    source.write_bytes(graphs.simplified(content, student.params, out))
    run = onnx.load(source, out)
    same = checked(student, run, out, 'the float graph of it')
    images = run_data.calibration_images(
      student, dataset, options.calibration_images
    )
    calibrated = Calibrated(source, images, options, folder / 'ranges.json')

    def predict(path: pathlib.Path) -> np.ndarray:
      return run_data.predictions(student, validation, onnx.load(path, out))

    expected = predict(source)

    def judge(kept: Sequence[str]) -> run_data.Accuracy:
      quantize(calibrated, unfinished, kept, out)
      return run_data.compare(expected, predict(unfinished), validation.labels)

    kept, accuracy = hold_accuracy(
      judge,
      lambda: by_harm(calibrated, folder / 'trial.onnx', out),
      options,
      out,
    )
    content = onnx.described(unfinished.read_bytes(), student)
    unfinished.write_bytes(content)
    sizes = source.stat().st_size, len(content)
  record = _record(options, len(images), accuracy, kept, sizes)
  return f'{same}\n{_said(out, record, accuracy)}', record


def hold_accuracy(
  judge: Callable[[Sequence[str]], run_data.Accuracy],
  worst: Callable[[], Sequence[str]],
  options: Int8,
  out: pathlib.Path,
) -> tuple[list[str], run_data.Accuracy]:
  """Leaves layers in float, the worst first, until the bound holds.

  Args:
    judge: names of layers that stay in float -> the accuracy then.
    worst: names of all layers, those that harm most first; asked if need be.
    options: the bounds.
    out: the file, for the message.

  Returns:
    (the layers left in float, the accuracy).

  Raises:
    RuntimeError: the bound does not hold with so many as may stay.
  """
  kept: list[str] = []
  found = judge(kept)
  first = found
  # Two accuracies over the same images differ by a multiple of 1 / count.
  most = options.max_accuracy_drop + 1e-9
  if found.drop > most and options.max_float_layers:
    for name in worst()[: options.max_float_layers]:
      kept.append(name)
      found = judge(kept)
      logging.info(
        'with %s in float: validation accuracy %.4f', name, found.top1
      )
      if found.drop <= most:
        break
  if found.drop > most:
    raise RuntimeError(
      f'{out} is not written: validation accuracy falls from '
      f'{first.float_top1:.4f} in float to {first.top1:.4f} in int8'
      + (
        f' ({found.top1:.4f} with {len(kept)} layers in float: '
        f'{", ".join(kept)})'
        if kept
        else ''
      )
      + f', by more than --max-accuracy-drop {options.max_accuracy_drop:g}; '
      'another --calibration-method, more --calibration-images or more '
      '--max-float-layers may hold it'
    )
  return kept, found


def quantize(
  calibrated: Calibrated,
  target: pathlib.Path,
  kept: Collection[str] = (),
  out: pathlib.Path | None = None,
) -> None:
  """Writes the int8 model.

  Args:
    calibrated: what is quantised.
    target: the file to write.
    kept: names of layers that stay in float.
    out: what the user calls the file, for messages; None is target.

  Raises:
    RuntimeError: an operator that onnxruntime cannot quantise.
  """
  import onnx as onnx_package
  from onnxruntime import quantization as ort

  options, out = calibrated.options, out or target
  model = onnx_package.load(calibrated.model)
  nodes = quantized_nodes(model, kept)
  names = [node.name for node in nodes]
  if not any(node.op_type in graphs.WEIGHTED for node in nodes):
    raise RuntimeError(
      f'{out} is not written: no layer is left to quantise; the quantiser '
      f'handles {", ".join(graphs.WEIGHTED)} with constant kernels, and the '
      f'model has {", ".join(sorted({n.op_type for n in model.graph.node}))}'
    )
  kind = ort.QuantType.QInt8 if options.symmetric else ort.QuantType.QUInt8
  methods = {method.name.lower(): method for method in ort.CalibrationMethod}
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      ort.quantize_static(
        str(calibrated.model),
        str(target),
        _Reader(calibrated.images),
        quant_format=ort.QuantFormat.QDQ,
        op_types_to_quantize=[*graphs.WEIGHTED, *THROUGH],
        nodes_to_quantize=names,
        per_channel=True,
        activation_type=kind,
        weight_type=ort.QuantType.QInt8,
        calibrate_method=methods[options.calibration_method],
        calibration_cache_path=calibrated.ranges,
        extra_options={
          'ActivationSymmetric': options.symmetric,
          'CalibTensorRangeSymmetric': options.symmetric,
          # Batch by batch: histograms would hold every activation at once.
          'CalibStridedMinMax': 1,
          'MatMulConstBOnly': True,
          # Logits are not rounded to 256 values, nor a residual stream.
          'OpTypesToExcludeOutputQuantization': ['Gemm', 'MatMul'],
        },
      )
  except Exception as error:  # It raises all kinds, of its own kernels too.
    raise RuntimeError(
      f'{out} is not written: onnxruntime cannot quantise this model: '
      f'{type(error).__name__}: {error}'
    ) from error
  _check_quantised(target, nodes, out)


def quantized_nodes(model: Any, kept: Collection[str] = ()) -> list[Any]:
  """The nodes that compute in int8.

  Those are the layers, but for some, and what passes their outputs on: an
  operator of THROUGH whose tensors all come from such nodes. An addition of a
  constant, or of what was never int8 (the residual stream of a transformer),
  stays in float.

  Args:
    model: onnx.ModelProto, from graphs.simplified.
    kept: names of layers that stay in float.
  """
  constants = {tensor.name for tensor in model.graph.initializer}
  layers = {node.name for node in graphs.layers(model)} - set(kept)
  made: set[str] = set()
  found = []
  for node in model.graph.node:
    tensors = [name for name in node.input if name and name not in constants]
    passes = node.op_type in THROUGH and made.issuperset(tensors)
    if node.op_type in ('Add', 'Concat'):
      passes = passes and len(tensors) == len(node.input)
    if node.name in layers or passes:
      found.append(node)
      made.update(node.output)
  return found


def by_harm(
  calibrated: Calibrated, trial: pathlib.Path, out: pathlib.Path
) -> list[str]:
  """Names of layers, first whose quantisation changes the logits most.

  All but one are quantised: the change that goes away with a layer in float is
  that layer's. Judged on training images, so that validation is not fitted.
  The last is left out, as something must be int8.

  Args:
    calibrated: what is quantised.
    trial: a file to write.
    out: the file, for messages.
  """
  import onnx as onnx_package

  model = onnx_package.load(calibrated.model)
  names = [node.name for node in graphs.layers(model)]
  if len(names) < 2:
    return []
  images = calibrated.images[:_JUDGES]
  expected = _in_batches(onnx.load(calibrated.model, out), images)
  left = {}
  for name in bars.track(names, len(names), 'layers'):
    quantize(calibrated, trial, [name], out)
    logits = _in_batches(onnx.load(trial, out), images)
    left[name] = float(np.mean(np.square(logits - expected)))
  return sorted(names, key=left.__getitem__)[:-1]


class _Reader:
  """onnxruntime.quantization.CalibrationDataReader, which asks for no more."""

  def __init__(self, images: np.ndarray):
    self._images = images
    self.set_range(0, len(self))

  def __len__(self) -> int:
    return -(-len(self._images) // run_data.BATCH)

  def set_range(self, start_index: int, end_index: int) -> None:
    self._waiting = iter(range(start_index, end_index))

  def get_next(self) -> dict[str, np.ndarray] | None:
    for number in self._waiting:
      start = number * run_data.BATCH
      images = self._images[start : start + run_data.BATCH]
      nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
      return {onnx.INPUT: nchw}
    return None


def _check_quantised(
  target: pathlib.Path, nodes: Sequence[Any], out: pathlib.Path
) -> None:
  """Raises RuntimeError where a layer was left out without a word."""
  import onnx as onnx_package

  model = onnx_package.load(target)
  restored = {
    name
    for node in model.graph.node
    if node.op_type == 'DequantizeLinear'
    for name in node.output
  }
  kernels = {
    node.name: node.input[1]
    for node in model.graph.node
    if node.op_type in graphs.WEIGHTED
  }
  for node in nodes:
    if node.op_type not in graphs.WEIGHTED:
      continue
    if kernels.get(node.name) not in restored:
      raise RuntimeError(
        f'{out} is not written: onnxruntime cannot quantise the operator '
        f'{node.op_type} of {node.name}'
      )


def _in_batches(run: Callable, images: np.ndarray) -> np.ndarray:
  starts = range(0, len(images), run_data.BATCH)
  return np.concatenate([run(images[n : n + run_data.BATCH]) for n in starts])


def _record(
  options: Int8,
  calibration_images: int,
  accuracy: run_data.Accuracy,
  kept: list[str],
  sizes: tuple[int, int],
) -> dict[str, Any]:
  return {
    'scheme': 'int8',
    'format': 'QDQ',
    'weights': 'int8, symmetric, a scale for each output channel',
    'activations': 'int8, symmetric'
    if options.symmetric
    else 'uint8, with a zero point',
    'calibration_method': options.calibration_method,
    'calibration_images': calibration_images,
    'calibration_split': 'train',
    'max_accuracy_drop': options.max_accuracy_drop,
    'validation': accuracy.record('int8'),
    'layers_in_float': kept,
    'float_bytes': sizes[0],
    'int8_bytes': sizes[1],
  }


def _said(
  out: pathlib.Path, record: dict[str, Any], accuracy: run_data.Accuracy
) -> str:
  """For the user; int8 is held to accuracy, not to logits."""
  kept = ', '.join(record['layers_in_float']) or 'none'
  return '\n'.join(
    (
      f'{out}: int8, {record["calibration_method"]} over '
      f'{record["calibration_images"]} training images; activations '
      f'{record["activations"]}',
      f'{accuracy.said(out, "int8")} (held to a fall of at most '
      f'{record["max_accuracy_drop"]:g}; logits are not compared)',
      f'{out}: layers left in float: {kept}',
      f'{out}: {record["float_bytes"] / 1e6:.2f} MB in float, '
      f'{record["int8_bytes"] / 1e6:.2f} MB in int8',
    )
  )
