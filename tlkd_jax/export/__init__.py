"""Takes a fine-tuned student out of the package; see docs/export.md."""

import os
from typing import TYPE_CHECKING

from tlkd_jax.export import options as _options
from tlkd_jax.export.options import Int8
from tlkd_jax.runtime.errors import as_user_errors
from tlkd_jax.runtime.paths import expanded

if TYPE_CHECKING:
  from tlkd_jax.export import verification

# Named here, where nothing heavy is loaded: `--help` says them.
FORMAT_NAMES = ('safetensors', 'onnx', 'stablehlo', 'hub')
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
  with_preprocessing: bool = False,
  push: str | None = None,
) -> str:
  """Writes a run's student to `out` and its configuration to `out`.json.

  Args:
    checkpoint: workdir of a TL or TL+KD run.
    format: 'safetensors' (timm's key names where timm has the network, else
      those of the variant's own library), 'onnx' (images NCHW), 'stablehlo'
      (jax.export, images NHWC) or 'hub' (a folder for the Hugging Face Hub).
    out: the file, whose suffix must be the format's name; of 'hub' the folder.
    fold_norm: fuse what was trained in branches, and fold every BatchNorm into
      the convolution before it; in a safetensors file the former alone.
    opset: version of the operators of an onnx file, 13 to 26; None is 23.
    quantize: 'int8', or `Int8` with other options than its own, for an onnx
      file that is calibrated on the run's training images and judged on its
      validation images. Norms are folded.
    dtype: of the weights: 'float32' or None, 'float16' (safetensors, onnx) or
      'bfloat16' (safetensors); validation accuracy is measured.
    with_preprocessing: an onnx file takes a uint8 image of any size and gives
      probabilities and names of classes.
    push: of 'hub', ORGANISATION/NAME to which the folder is uploaded.

  Returns:
    What was written and how it compares with the student, for the user.

  Raises:
    UserError: an unknown format, a wrong suffix, folded norms that fit none,
      an opset, a dtype or a way to quantise that is not accepted, no student
      there, or not the data to calibrate with, more weights than an onnx file
      holds, a converter that is not installed, preprocessing that no graph can
      do, a folder of others, no token for an upload, or a device that JAX was
      told to use and does not find.
    RunError: the folder is written and was not uploaded.
    RuntimeError: the written model does not give the student's logits, or a
      quantised one not its accuracy; the file is not there.
  """
  # Here and not above: whoever imports the package need not wait for JAX.
  from tlkd_jax.export import (
    formats,
    hub,
    preprocessing,
    pushing,
    run_data,
    student,
  )
  from tlkd_jax.runtime import devices

  devices.available()
  with as_user_errors():
    out = expanded(out)
    _options.check_dtype(dtype, format, quantize)
    int8 = _options.quantization(quantize)
    half = None if dtype == 'float32' else dtype
    is_hub = format == 'hub'
    if is_hub:
      hub.check(out, fold_norm, opset)
    else:
      formats.check(format, out, opset, int8)
    _check_together(format, with_preprocessing, push, int8 or half)
    if push is not None:
      pushing.check(push)
    loaded = student.load_student(
      expanded(checkpoint),
      fold_norm=fold_norm,
      named=is_hub or formats.FORMATS[format].takes is None,
      whole=format == 'onnx',
    )
    if loaded.rounds and (int8 or half or with_preprocessing):
      raise ValueError(
        f'{checkpoint} holds {loaded.model.name}, whose file is of int8 as it '
        'is: leave --quantize, --dtype and --with-preprocessing out'
      )
    formats.check_size(format, loaded)
    if with_preprocessing:
      preprocessing.check(loaded.description.interpolation, opset)
    run = hub.read_run(loaded, expanded(checkpoint)) if is_hub else None
    dataset = run_data.load(expanded(checkpoint)) if int8 or half else None
  if int8 is not None and dataset is not None:
    return formats.write_quantized(loaded, out, int8, dataset, opset)
  if half is not None and dataset is not None:
    return formats.write_half(loaded, format, out, half, dataset, opset)
  if run is None:
    return formats.write(loaded, format, out, opset, with_preprocessing)
  said = hub.write(loaded, run, out, opset, with_preprocessing, push)
  if push is None:
    return said
  return f'{said}\n{pushing.push(out, push, hub.FILES)}'


def _check_together(
  format: str, with_preprocessing: bool, push: str | None, rounded: object
) -> None:
  """Raises ValueError where options do not go together."""
  if with_preprocessing and format not in ('onnx', 'hub'):
    raise ValueError(
      f'--with-preprocessing: a {format} file takes normalised images; '
      'accepted with --format onnx and hub'
    )
  if rounded and (with_preprocessing or format == 'hub'):
    raise ValueError(
      '--quantize and --dtype write a file that takes normalised images; '
      'accepted without --with-preprocessing, and with a format of a file'
    )
  if push is not None and format != 'hub':
    raise ValueError('--push uploads a folder; accepted with --format hub')


def verify_export(
  file: str | os.PathLike,
  checkpoint: str | os.PathLike,
  data: str | None = None,
) -> 'list[verification.Verified]':
  """Runs an exported file against the run that it is of.

  Args:
    file: what `export_run` wrote, a file or a folder for a hub.
    checkpoint: workdir of the run.
    data: labelled data, as in the settings; None are the run's own test images,
      and its stored predictions are what is compared with.

  Returns:
    For each file that was run: accuracy, agreement, largest difference of
    probabilities, milliseconds; each says itself as text.

  Raises:
    UserError: no such file, run or data; a file of another run, of other
      classes or another order of them, or of another size of images; data with
      a class that the run does not know.
  """
  from tlkd_jax.export import verification
  from tlkd_jax.runtime import devices

  devices.available()
  with as_user_errors():
    return verification.verify(expanded(file), expanded(checkpoint), data)
