"""From the bytes of an image file to a square uint8 array, on the host.

The recipe is the one pretrained weights were published with: Pillow decodes,
the short side is resized with Pillow's antialiased filters, the centre is
cropped. Everything random happens later, on the device (`augment.py`).
"""

import io

import numpy as np
from PIL import Image, ImageOps

INTERPOLATIONS = {
  'nearest': Image.Resampling.NEAREST,
  'box': Image.Resampling.BOX,
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'lanczos': Image.Resampling.LANCZOS,
}

# What Pillow may use, by content and not by extension (JPEG covers MPO). A
# closed list, since some of its other readers start external programs.
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'DIB', 'GIF', 'TIFF', 'PPM')

# How names of such files end, in lower case.
SUFFIXES = (
  *('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp'),
  *('.bmp', '.gif', '.tif', '.tiff', '.ppm'),
)

# A strip longer than this is cut before it is resized, or its long side could
# grow to gigabytes.
_MAX_ASPECT = 16


class BadImageError(ValueError):
  """The bytes are not an image, or not a whole one."""


def decode_image(data: bytes) -> Image.Image:
  """Decodes one image file to RGB, upright.

  Greyscale, palette and CMYK become RGB; transparent pixels are laid over
  white; 16 bits become the upper 8; the EXIF orientation is applied; of an
  animation the first frame is taken. Colour profiles are ignored.

  Args:
    data: the bytes of a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM file.

  Returns:
    A loaded Pillow image of mode RGB.

  Raises:
    BadImageError: for anything that cannot be decoded whole.
  """
  try:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
      return as_rgb(image)
  except MemoryError:
    raise
  except Exception as error:
    size = f'{len(data)} bytes'
    raise BadImageError(f'{error or type(error).__name__} ({size})') from error


def as_rgb(image: Image.Image) -> Image.Image:
  """What `decode_image` makes of a file that is open already.

  Raises:
    BadImageError: the rest of the file cannot be decoded.
  """
  try:
    image.load()
    return _to_rgb(_upright(image))
  except MemoryError:
    raise
  # Decoders raise OSError, SyntaxError, struct.error, zlib.error and more on
  # damaged files; every one of them means the same to the caller.
  except Exception as error:
    raise BadImageError(str(error) or type(error).__name__) from error


def _upright(image: Image.Image) -> Image.Image:
  try:
    return ImageOps.exif_transpose(image)
  except Exception:  # damaged EXIF data does not make the pixels bad
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith('I'):
    # Pillow's own conversion would clip 16 bits at 255 instead of scaling.
    wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    return Image.fromarray((wide >> 8).astype(np.uint8)).convert('RGB')
  has_alpha = image.mode in ('RGBA', 'LA', 'PA', 'La', 'RGBa')
  if has_alpha or 'transparency' in image.info:
    # La and RGBa are premultiplied and convert only to their straight form.
    straight = {'La': 'LA', 'RGBa': 'RGBA'}.get(image.mode)
    image = image.convert(straight) if straight else image
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert('RGB')
  return image.convert('RGB')


def resize_size(image_size: int, crop_fraction: float) -> int:
  """Length of the short side from which `image_size` is cropped."""
  # 240 / (240 / 272) may come out just below 272.
  return int(image_size / crop_fraction + 1e-6)


def resize_short_side(
  image: Image.Image, size: int, interpolation: str = 'bicubic'
) -> Image.Image:
  """Resizes so that the short side is `size` pixels, keeping the aspect.

  The long side is floor(size * long / short), as in torchvision. Pillow's
  filters are antialiased.
  """
  width, height = image.size
  short, long = min(width, height), max(width, height)
  if long > _MAX_ASPECT * short:
    limit = _MAX_ASPECT * short
    image = _crop(image, min(width, limit), min(height, limit))
    width, height = image.size
    long = limit
  other = size * long // short
  target = (size, other) if width <= height else (other, size)
  return image.resize(target, INTERPOLATIONS[interpolation])


def centre_crop(image: Image.Image, size: int) -> Image.Image:
  """Crops the central size x size pixels; corners round half to even."""
  return _crop(image, size, size)


def _crop(image: Image.Image, width: int, height: int) -> Image.Image:
  left = round((image.width - width) / 2)
  top = round((image.height - height) / 2)
  return image.crop((left, top, left + width, top + height))


def load_square(
  data: bytes, *, short_side: int, size: int, interpolation: str = 'bicubic'
) -> np.ndarray:
  """Decode, short side to `short_side`, centre crop to `size`.

  Args:
    data: the bytes of an image file.
    short_side: pixels of the short side before the crop, at least `size`.
    size: side of the result.
    interpolation: a key of `INTERPOLATIONS`.

  Returns:
    uint8[size, size, 3], RGB.

  Raises:
    BadImageError: as `decode_image`.
  """
  return to_square(
    decode_image(data),
    short_side=short_side,
    size=size,
    interpolation=interpolation,
  )


def to_square(
  image: Image.Image, *, short_side: int, size: int, interpolation: str
) -> np.ndarray:
  """The same for an image of mode RGB."""
  image = resize_short_side(image, short_side, interpolation)
  return np.asarray(centre_crop(image, size))
