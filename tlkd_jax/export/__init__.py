"""Takes a fine-tuned student out of the package; see docs/export.md."""

import os

from tlkd_jax.runtime.errors import as_user_errors
from tlkd_jax.runtime.paths import expanded

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
    with_preprocessing: an onnx file takes a uint8 image of any size and gives
      probabilities and names of classes.
    push: of 'hub', ORGANISATION/NAME to which the folder is uploaded.

  Returns:
    What was written and how it compares with the student, for the user.

  Raises:
    UserError: an unknown format, a wrong suffix, folded norms that fit none,
      an opset that is not accepted, no student there, a converter that is not
      installed, preprocessing that no graph can do, a folder of others, no
      token for an upload, or a device that JAX was told to use and does not
      find.
    RunError: the folder is written and was not uploaded.
    RuntimeError: the written model does not give the student's logits; the
      file is not there.
  """
  # Here and not above: whoever imports the package need not wait for JAX.
  from tlkd_jax.export import formats, hub, preprocessing, pushing, student
  from tlkd_jax.runtime import devices

  devices.available()
  with as_user_errors():
    out = expanded(out)
    is_hub = format == 'hub'
    if is_hub:
      hub.check(out, fold_norm, opset)
    else:
      formats.check(format, out, opset)
    if with_preprocessing and format not in ('onnx', 'hub'):
      raise ValueError(
        f'--with-preprocessing: a {format} file takes normalised images; '
        'accepted with --format onnx and hub'
      )
    if push is not None:
      if not is_hub:
        raise ValueError('--push uploads a folder; accepted with --format hub')
      pushing.check(push)
    loaded = student.load_student(
      expanded(checkpoint),
      fold_norm=fold_norm,
      named=is_hub or formats.FORMATS[format].takes is None,
    )
    if with_preprocessing:
      preprocessing.check(loaded.description.interpolation, opset)
    if is_hub:
      run = hub.check_run(loaded, expanded(checkpoint))
  if not is_hub:
    return formats.write(loaded, format, out, opset, with_preprocessing)
  said = hub.write(loaded, run, out, opset, with_preprocessing, push)
  return said if push is None else f'{said}\n{pushing.push(out, push)}'
