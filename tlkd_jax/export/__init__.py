"""Takes a fine-tuned student out of the package; see docs/export.md."""

import os

from tlkd_jax.export import options as _options
from tlkd_jax.export.options import Int8
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
  quantize: str | Int8 | None = None,
  dtype: str | None = None,
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
    quantize: 'int8', or `Int8` with other options than its own, for an onnx
      file that is calibrated on the run's training images and judged on its
      validation images. Norms are folded.
    dtype: of the weights: 'float32' or None, 'float16' (safetensors, onnx) or
      'bfloat16' (safetensors); validation accuracy is measured.

  Returns:
    What was written and how it compares with the student, for the user.

  Raises:
    UserError: an unknown format, a wrong suffix, folded norms that fit none,
      an opset, a dtype or a way to quantise that is not accepted, no student
      there, or not the data to calibrate with, more weights than an onnx file
      holds, a converter that is not installed, or a device that JAX was told
      to use and does not find.
    RuntimeError: the written model does not give the student's logits, or a
      quantised one not its accuracy; the file is not there.
  """
  # Here and not above: whoever imports the package need not wait for JAX.
  from tlkd_jax.export import formats, run_data, student
  from tlkd_jax.runtime import devices

  devices.available()
  with as_user_errors():
    out = expanded(out)
    _options.check_dtype(dtype, format, quantize)
    int8 = _options.quantization(quantize)
    formats.check(format, out, opset, int8)
    loaded = student.load_student(
      expanded(checkpoint),
      fold_norm=fold_norm,
      named=formats.FORMATS[format].takes is None,
      whole=format == 'onnx',
    )
    formats.check_size(format, loaded)
    half = None if dtype == 'float32' else dtype
    if int8 is None and half is None:
      dataset = None
    else:
      dataset = run_data.load(expanded(checkpoint))
  if int8 is not None and dataset is not None:
    return formats.write_quantized(loaded, out, int8, dataset, opset)
  if half is not None and dataset is not None:
    return formats.write_half(loaded, format, out, half, dataset, opset)
  return formats.write(loaded, format, out, opset)
