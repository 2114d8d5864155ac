"""From the bytes of an image file to a square uint8 array, on the host.

The recipe is the one pretrained weights were published with: Pillow decodes,
the short side is resized with Pillow's antialiased filters, the centre is
cropped. Everything random happens later, on the device (`augment.py`).
"""

import contextlib
import functools
import io
import re
from collections.abc import Generator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

INTERPOLATIONS = {
  'nearest': Image.Resampling.NEAREST,
  'box': Image.Resampling.BOX,
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'lanczos': Image.Resampling.LANCZOS,
}

# What Pillow may use, by content and not by extension (JPEG covers MPO). A
# closed list, since some of its other readers start external programs. TGA
# has no mark of its own and so comes last.
_FORMATS = (
  *('JPEG', 'PNG', 'WEBP', 'AVIF', 'JPEG2000', 'BMP', 'DIB', 'GIF', 'TIFF'),
  *('PPM', 'PCX', 'SGI', 'ICO', 'QOI', 'PSD', 'DDS', 'TGA'),
)

# How names of such files end, in lower case.
SUFFIXES = (
  *('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.png', '.apng', '.webp'),
  *('.avif', '.jp2', '.j2k', '.jpf', '.jpx', '.j2c', '.bmp', '.dib', '.gif'),
  *('.tif', '.tiff', '.ppm', '.pgm', '.pbm', '.pnm', '.pfm', '.tga', '.pcx'),
  *('.sgi', '.ico', '.qoi', '.psd', '.dds'),
)

# The usual ones, for messages.
ENDINGS = '.jpg, .jpeg, .png, .webp, .avif, .bmp, .gif, .tif and others'

# Read if the optional package pillow_heif is there.
HEIF_SUFFIXES = ('.heic', '.heif', '.hif')

# Beginnings of such files.
_MARKS = re.compile(
  rb'\xff\xd8\xff|\x89PNG\r\n|RIFF....WEBP|GIF8|II\*\0|MM\0\*|P[1-7fF]\s'
  rb'|BM....\0\0\0\0|\0\0\0\x0cjP  |\xff\x4f\xff\x51|qoif|8BPS|DDS '
  rb'|....ftypavi[fs]|....ftyp(?:hei[cxms]|hev[cx]|mif1)',
  re.DOTALL,
)
_HEIF_MARK = re.compile(rb'....ftyp(?!avi[fs])', re.DOTALL)

# Beyond these an image is damage or an attack: Pillow would need gigabytes.
# The first is the longest side of a JPEG, the second Pillow's own bound.
_MAX_SIDE = 65535
_MAX_PIXELS = 178956970

# Deflate packs no more than 1032 bytes into one.
_MOST_PER_BYTE = 1032

_UNREADABLE = b'tlkd_jax could not read this file: '

# A float image goes from 0 to 1, up to what resampling adds.
_FLOAT_SLACK = 1e-3

# A strip longer than this is cut before it is resized, or its long side could
# grow to gigabytes.
MAX_ASPECT = 16

# Counts the changes of what is made of the same bytes.
RULES = 3


class BadImageError(ValueError):
  """The bytes are not an image, or not a whole one."""


@functools.cache
def has_heif() -> bool:
  """Whether pillow_heif is there; Pillow reads HEIC from then on."""
  try:
    import pillow_heif
  except ImportError:
    return False
  pillow_heif.register_heif_opener()
  return True


@functools.cache
def suffixes() -> frozenset[str]:
  """Endings of the names of files that can be read here."""
  return frozenset(SUFFIXES + HEIF_SUFFIXES * has_heif())


def is_image(head: bytes) -> bool:
  """Whether a file that begins with these 32 bytes is an image to be read."""
  return _MARKS.match(head) is not None


def unreadable(reason: str) -> bytes:
  """Stands for the bytes of a file that could not be read."""
  return _UNREADABLE + reason.encode()


def is_unreadable(data: bytes) -> bool:
  """Whether `unreadable` made these bytes."""
  return data.startswith(_UNREADABLE)


def decode_image(data: bytes) -> Image.Image:
  """Decodes one image file to RGB, upright.

  Greyscale, palette and CMYK become RGB; transparent pixels are laid over
  white; 16 bits become the upper 8; floats from 0 to 1 become 0 to 255; the
  EXIF orientation is applied; of an animation the first frame is taken. Colour
  profiles are ignored.

  Args:
    data: the bytes of a file of one of the formats above.

  Returns:
    A loaded Pillow image of mode RGB.

  Raises:
    BadImageError: for anything that cannot be decoded whole, sides of more
      than 65,535 pixels, 32-bit whole numbers (their range is not known), and
      floats that leave the range from 0 to 1.
  """
  with _opened(data) as image:
    _check_plausible(image, len(data))
    return as_rgb(image)


@contextlib.contextmanager
def _opened(data: bytes) -> Generator[Image.Image]:
  """The image of a file; all that fails meanwhile is a BadImageError."""
  if is_unreadable(data):
    raise BadImageError(data.removeprefix(_UNREADABLE).decode())
  formats = _FORMATS
  if _HEIF_MARK.match(data) and has_heif():
    formats = ('HEIF',)
  try:
    with Image.open(io.BytesIO(data), formats=formats) as image:
      yield image
  except MemoryError:
    raise
  except Exception as error:
    reason = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
      # Its own message has the address of the stream.
      reason = 'cannot identify image file'
    raise BadImageError(f'{reason} ({len(data)} bytes)') from error


def _check_plausible(image: Image.Image, num_bytes: int) -> None:
  width, height = image.size
  if max(width, height) > _MAX_SIDE or width * height > _MAX_PIXELS:
    raise BadImageError(
      f'{width} x {height} pixels; at most {_MAX_SIDE} a side and '
      f'{_MAX_PIXELS / 1e6:.0f} million together'
    )
  # Pillow takes a stream that ends early for a whole image, filled with black.
  least = width * height // 8
  if image.format == 'PNG' and least > _MOST_PER_BYTE * num_bytes:
    raise BadImageError(f'{width} x {height} pixels cannot be in this file')


def as_rgb(image: Image.Image) -> Image.Image:
  """What `decode_image` makes of a file that is open already.

  Raises:
    BadImageError: the rest of the file cannot be decoded.
  """
  scaled = image.format == 'PPM'  # Pillow scales its numbers to 16 bits
  try:
    image.load()
    if image.mode == 'I' and not scaled:
      raise BadImageError(
        '32-bit whole numbers, whose range is not known; save it with 8 or 16 '
        'bits'
      )
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
  if image.mode == 'F':
    return _from_floats(np.asarray(image)).convert('RGB')
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


def _from_floats(pixels: np.ndarray) -> Image.Image:
  low, high = pixels.min(), pixels.max()
  # Not finite is outside too.
  if not (-_FLOAT_SLACK <= low and high <= 1 + _FLOAT_SLACK):
    raise BadImageError(
      f'float pixels from {low:.4g} to {high:.4g}; accepted: from 0 to 1, or 8 '
      'or 16 bits'
    )
  scaled = np.rint(np.clip(pixels, 0, 1) * 255)
  return Image.fromarray(scaled.astype(np.uint8))


def short_side_of(data: bytes) -> int | None:
  """Pixels of an image file's short side, by its header; None if it has none.

  Args:
    data: the bytes of the file.
  """
  try:
    with _opened(data) as image:
      return min(image.size)
  except BadImageError:
    return None


def resize_size(image_size: int, crop_fraction: float) -> int:
  """Length of the short side from which `image_size` is cropped."""
  # 240 / (240 / 272) may come out just below 272.
  return int(image_size / crop_fraction + 1e-6)


def resize_short_side(
  image: Image.Image, size: int, interpolation: str = 'bicubic'
) -> Image.Image:
  """Resizes so that the short side is `size` pixels, keeping the aspect.

  The long side is floor(size * long / short), as in torchvision. Pillow's
  filters are antialiased. The width is resized first, then the height, with
  whole levels between.
  """
  width, height = image.size
  short, long = min(width, height), max(width, height)
  if long > MAX_ASPECT * short:
    limit = MAX_ASPECT * short
    image = _crop(image, min(width, limit), min(height, limit))
    width, height = image.size
    long = limit
  other = size * long // short
  target = (size, other) if width <= height else (other, size)
  kernel = INTERPOLATIONS[interpolation]
  # In one call, Pillow since 13 begins with the height of tall images that
  # shrink; before it, and in runtimes of exported files, the width is first.
  image = image.resize((target[0], height), kernel)
  return image.resize(target, kernel)


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
