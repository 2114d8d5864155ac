"""StableHLO by jax.export: a program for CPU, CUDA and TPU, weights inside."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from tlkd_jax.export.student import Student, checked
from tlkd_jax.models.layers.convolutions import lax_convolutions
from tlkd_jax.runtime.atomic import replacing

_PLATFORMS = ('cpu', 'cuda', 'tpu')


def convert(student: Student) -> jax_export.Exported:
  """The student as a program.

  Its `call` takes float32 [B, H, W, 3] with any B, on CPU, CUDA and TPU.
  """
  (batch,) = jax_export.symbolic_shape('batch')
  size = student.image_size
  images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
  with lax_convolutions():
    function = jax.jit(student.logits)
    return jax_export.export(function, platforms=_PLATFORMS)(images)


def write(student: Student, out: pathlib.Path) -> str:
  """Writes the program and runs it; returns what to tell the user.

  Raises:
    RuntimeError: it does not give the student's logits.
  """
  with replacing(out) as unfinished:
    unfinished.write_bytes(convert(student).serialize())
    exported = jax_export.deserialize(bytearray(unfinished.read_bytes()))
    return checked(student, exported.call, out, 'the deserialised function')


def takes(image_size: int) -> dict[str, Any]:
  """What the program takes, for the JSON beside it."""
  return {
    'dtype': 'float32',
    'layout': 'NHWC',
    'shape': ['batch', image_size, image_size, 3],
    'values': '(pixel / 255 - mean) / std',
    'platforms': list(_PLATFORMS),
  }
