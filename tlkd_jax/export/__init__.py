"""Takes a fine-tuned student out of the package; see docs/export.md."""

import os

from tlkd_jax.runtime.errors import as_user_errors
from tlkd_jax.runtime.paths import expanded

# Named here, where nothing heavy is loaded: `--help` says them.
FORMAT_NAMES = ('safetensors', 'onnx', 'stablehlo')
# Of the operator sets that an onnx file may have, those in which students of
# all families were converted, checked and run.
OPSETS = range(13, 27)
DEFAULT_OPSET = 23


def export_run(
  checkpoint: str | os.PathLike,
  format: str,
  out: str | os.PathLike,
  *,
  fold_norm: bool = False,
  opset: int | None = None,
) -> str:
  """Writes a run's student to `out` and its configuration to `out`.json.

  Args:
    checkpoint: workdir of a TL or TL+KD run.
    format: 'safetensors' (timm's key names where timm has the network, else
      those of the variant's own library), 'onnx' (images NCHW) or 'stablehlo'
      (jax.export, images NHWC).
    out: the file; its suffix must be the format's name.
    fold_norm: fuse what was trained in branches, and fold every BatchNorm into
      the convolution before it; in a safetensors file the former alone.
    opset: version of the operators of an onnx file, 13 to 26; None is 23.

  Returns:
    What was written and how it compares with the student, for the user.

  Raises:
    UserError: an unknown format, a wrong suffix, folded norms that fit none,
      an opset that is not accepted, no student there, a converter that is not
      installed, or a device that JAX was told to use and does not find.
    RuntimeError: the written model does not give the student's logits; the
      file is not there.
  """
  # Here and not above: whoever imports the package need not wait for JAX.
  from tlkd_jax.export import formats, student
  from tlkd_jax.runtime import devices

  devices.available()
  with as_user_errors():
    out = expanded(out)
    formats.check(format, out, opset)
    loaded = student.load_student(
      expanded(checkpoint),
      fold_norm=fold_norm,
      named=formats.FORMATS[format].takes is None,
      whole=format == 'onnx',
    )
  return formats.write(loaded, format, out, opset)
