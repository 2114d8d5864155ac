"""ONNX files of students that learned to round: int8 weights, QDQ nodes.

The graph is jax2onnx's of the folded student, in which each rounding of a
tensor is a QuantizeLinear and a DequantizeLinear with the trained bounds. Its
form and its weights are made ready for runtimes in onnx_graph.py.
"""

import pathlib

import jax
import numpy as np

from tlkd_jax.export import DEFAULT_OPSET, onnx, onnx_graph
from tlkd_jax.export.student import Student, sample_images
from tlkd_jax.models import quantized
from tlkd_jax.models.layers.convolutions import lax_convolutions
from tlkd_jax.runtime.atomic import replacing

# A sum that falls on the border of two whole numbers is rounded to either by
# two orders of addition, and layers behind carry it on: largest difference of
# logits that noise may show, as a share of the largest logit.
TOLERANCE = 0.1
_COMPARED = 16


def convert(student: Student, opset: int = DEFAULT_OPSET) -> bytes:
  """A student that rounds as a serialised ONNX model; see onnx.convert.

  Raises:
    ValueError: the converter gave a graph in which a layer is not where its
      int8 form is looked for.
  """
  import onnx as onnx_package

  _register()
  with lax_convolutions(), quantized.marking():
    content = onnx.convert(student.logits, student.image_size, opset)
  model = onnx_package.load_from_string(content)
  onnx_graph.to_int8(model.graph)
  onnx_package.checker.check_model(model)
  return model.SerializeToString()


def _register() -> None:
  """Tells jax2onnx what a rounding is."""
  from jax2onnx.plugins import plugin_system

  if quantized.rounded_p.name in plugin_system.PLUGIN_REGISTRY:
    return

  @plugin_system.register_primitive(jaxpr_primitive=quantized.rounded_p.name)
  class Rounded(plugin_system.PrimitiveLeafPlugin):
    def lower(self, ctx, eqn):
      (source,), (target,) = eqn.invars, eqn.outvars
      x = ctx.get_value_for_var(source, name_hint=ctx.fresh_name('rounded'))
      expected = ctx.get_value_for_var(target)
      scale, zero_point = (
        ctx.bind_const_for_var(object(), value)
        for value in (
          np.asarray(eqn.params['scale'], np.float32),
          np.asarray(eqn.params['zero_point'], np.uint8),
        )
      )
      build, name = ctx.builder, ctx.fresh_name
      q = build.QuantizeLinear(
        x, scale, zero_point, _outputs=[name('quantized')]
      )
      q.type, q.shape = type(x.type)(zero_point.dtype), x.shape
      y = build.DequantizeLinear(
        q, scale, zero_point, _outputs=[expected.name or name('rounded')]
      )
      y.type, y.shape = x.type, x.shape
      ctx.bind_value_for_var(target, y)


def write(
  student: Student, out: pathlib.Path, opset: int = DEFAULT_OPSET
) -> str:
  """Writes the model and runs it; returns what to tell the user.

  Args:
    student: to write, one that rounds.
    out: the file.
    opset: as of `convert`.

  Raises:
    RuntimeError: it does not give the student's predictions; the file is not
      there.
  """
  with replacing(out) as unfinished:
    content = onnx.described(convert(student, opset), student)
    unfinished.write_bytes(content)
    images = sample_images(student, _COMPARED)
    # Not `student.logits`, whose weights XLA would round as it compiles.
    variables = student.params, student.model_state
    outputs, _ = jax.jit(student.model.apply)(*variables, images)
    expected = np.asarray(outputs['logits'])
    found = onnx.load(unfinished)(images)
    difference = float(np.abs(found - expected).max())
    largest = float(np.abs(expected).max())
    same = int((found.argmax(-1) == expected.argmax(-1)).sum())
    said = (
      f'from the student by {difference:.2e} in logits of up to {largest:.3g}, '
      f'with the same class for {same} of {_COMPARED} images'
    )
    if not difference <= TOLERANCE * max(largest, 1.0):
      raise RuntimeError(
        f'{out} is not written: onnxruntime differs {said}; on a processor '
        "without int8 instructions, set its 'session.x64quantprecision' to 1"
      )
  return f'{out}: int8; onnxruntime differs {said}'
