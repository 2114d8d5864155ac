"""What `--quantize int8` can be told; nothing heavy is loaded here."""

import dataclasses

# Of onnxruntime.quantization.CalibrationMethod, by their names in lower case.
METHODS = ('minmax', 'entropy', 'percentile')


@dataclasses.dataclass(frozen=True)
class Int8:
  """How an ONNX file is quantised to int8.

  Attributes:
    calibration_images: at most so many training images set the ranges of
      activations.
    calibration_method: one of METHODS.
    symmetric: activations int8 around 0; else uint8 with a zero point, which
      takes ReLU and ReLU6 into the convolution before them.
    max_accuracy_drop: refused where validation accuracy falls by more, as a
      share of 1.
    max_float_layers: so many layers may stay in float to hold that bound.
  """

  calibration_images: int = 256
  calibration_method: str = 'minmax'
  symmetric: bool = False
  max_accuracy_drop: float = 0.01
  max_float_layers: int = 8

  def check(self) -> None:
    """Raises ValueError at a value that is not accepted."""
    if self.calibration_images < 1:
      raise ValueError(
        f'--calibration-images {self.calibration_images}: a calibration set '
        'with no images; accepted: 1 or more'
      )
    if self.calibration_method not in METHODS:
      raise ValueError(
        f'--calibration-method {self.calibration_method}; accepted: '
        f'{", ".join(METHODS)}'
      )
    # Written so that NaN is refused.
    if not 0 <= self.max_accuracy_drop <= 1:
      raise ValueError(
        f'--max-accuracy-drop {self.max_accuracy_drop}; accepted: 0 to 1, '
        '0.01 is one point'
      )
    if self.max_float_layers < 0:
      raise ValueError(
        f'--max-float-layers {self.max_float_layers}; accepted: 0 or more'
      )


# What --dtype takes beside float32, and the formats of such files.
DTYPES = {'float16': ('safetensors', 'onnx'), 'bfloat16': ('safetensors',)}

# Name of a scheme -> its options as they are by default.
SCHEMES = {'int8': Int8}


def check_dtype(
  dtype: str | None, format: str, quantize: 'str | Int8 | None'
) -> None:
  """Raises ValueError at a dtype that a file of the format cannot have."""
  if dtype in (None, 'float32'):
    return
  accepted = '; '.join(
    f'{name} for {" and ".join(formats)}' for name, formats in DTYPES.items()
  )
  if format not in DTYPES.get(dtype, ()):
    raise ValueError(
      f'--dtype {dtype} with --format {format}; accepted: float32 for all; '
      f'{accepted}'
    )
  if quantize is not None:
    raise ValueError(
      f'--dtype {dtype} with --quantize: a file has one of the two; leave out '
      'the other'
    )


def quantization(quantize: 'str | Int8 | None') -> Int8 | None:
  """The options of a scheme that is named, or given with its options.

  Raises:
    ValueError: an unknown scheme, or an option that is not accepted.
  """
  if quantize is None:
    return None
  if isinstance(quantize, str):
    if quantize not in SCHEMES:
      raise ValueError(f'--quantize {quantize}; accepted: {", ".join(SCHEMES)}')
    quantize = SCHEMES[quantize]()
  quantize.check()
  return quantize
