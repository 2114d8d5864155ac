import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from pictures import encode
from PIL import Image

from tlkd_jax.data import transforms


def _decode(data):
  return np.asarray(transforms.decode_image(data)).astype(int)


@pytest.fixture
def colours():
  """16 x 24 pixels: red, green, blue and grey quarters."""
  pixels = np.zeros((16, 24, 3), np.uint8)
  pixels[:8, :12] = (200, 20, 30)
  pixels[:8, 12:] = (10, 180, 40)
  pixels[8:, :12] = (20, 40, 220)
  pixels[8:, 12:] = (90, 90, 90)
  return pixels


def _assert_near(actual, expected, tolerance):
  assert actual.shape == expected.shape
  # Away from the edges between quarters, where lossy formats ring.
  for rows in (slice(1, 5), slice(11, 15)):
    for columns in (slice(1, 9), slice(15, 23)):
      difference = np.abs(actual[rows, columns] - expected[rows, columns])
      assert difference.max() <= tolerance


@pytest.mark.parametrize(
  'file_format, options, tolerance',
  [
    ('PNG', {}, 0),
    ('BMP', {}, 0),
    ('WEBP', {'lossless': True}, 0),
    ('WEBP', {'quality': 95}, 12),
    ('JPEG', {'quality': 95, 'subsampling': 0}, 6),
    ('GIF', {}, 0),
    ('TIFF', {}, 0),
    ('AVIF', {'quality': 95}, 14),
    ('JPEG2000', {}, 0),
    ('TGA', {}, 0),
    ('PPM', {}, 0),
    ('PCX', {}, 0),
    ('SGI', {}, 0),
    ('QOI', {}, 0),
    ('DDS', {}, 0),
  ],
)
def test_formats(colours, file_format, options, tolerance):
  data = encode(Image.fromarray(colours), file_format, **options)
  _assert_near(_decode(data), colours.astype(int), tolerance)


@pytest.mark.parametrize('file_format', ['PNG', 'JPEG', 'BMP', 'WEBP'])
def test_greyscale_becomes_three_equal_channels(file_format):
  grey = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (16, 1))
  options = {'lossless': True} if file_format == 'WEBP' else {}
  decoded = _decode(encode(Image.fromarray(grey), file_format, **options))
  assert decoded.shape == (16, 24, 3)
  np.testing.assert_array_equal(decoded[..., 0], decoded[..., 1])
  assert np.abs(decoded[..., 0] - grey.astype(int)).max() <= 2


def test_one_bit_greyscale():
  bits = np.zeros((4, 6), bool)
  bits[:, 3:] = True
  decoded = _decode(encode(Image.fromarray(bits), 'PNG'))
  np.testing.assert_array_equal(decoded[..., 1], bits * 255)


def test_palette(colours):
  image = Image.fromarray(colours).quantize(8)
  assert image.mode == 'P'
  _assert_near(_decode(encode(image, 'PNG')), colours.astype(int), 3)


def test_transparent_palette_entry_is_white(colours):
  image = Image.fromarray(colours).quantize(8)
  red = image.getpixel((2, 2))
  decoded = _decode(encode(image, 'PNG', transparency=red))
  np.testing.assert_array_equal(decoded[2, 2], [255, 255, 255])
  assert np.abs(decoded[2, 20] - [10, 180, 40]).max() <= 3


def test_alpha_is_laid_over_white(colours):
  rgba = np.dstack([colours, np.full((16, 24), 255, np.uint8)])
  rgba[:8, :12, 3] = 0
  rgba[8:, 12:, 3] = 128
  decoded = _decode(encode(Image.fromarray(rgba), 'PNG'))
  np.testing.assert_array_equal(decoded[2, 2], [255, 255, 255])
  np.testing.assert_array_equal(decoded[2, 20], [10, 180, 40])
  # 90 * 128 / 255 + 255 * 127 / 255
  assert np.abs(decoded[12, 20] - 172).max() <= 1


def test_grey_with_alpha():
  pixels = np.full((4, 4, 2), 100, np.uint8)
  pixels[..., 1] = 255
  pixels[:2, :, 1] = 0
  decoded = _decode(encode(Image.fromarray(pixels, 'LA'), 'PNG'))
  assert (decoded[:2] == 255).all() and (decoded[2:] == 100).all()


def test_cmyk_jpeg(colours):
  image = Image.fromarray(colours).convert('CMYK')
  data = encode(image, 'JPEG', quality=95, subsampling=0)
  assert Image.open(io.BytesIO(data)).mode == 'CMYK'
  _assert_near(_decode(data), colours.astype(int), 8)


def test_sixteen_bits_are_scaled_not_clipped():
  wide = (np.arange(16, dtype=np.uint16)[None] * 4096 + 255).repeat(4, 0)
  data = encode(Image.fromarray(wide), 'PNG')
  assert Image.open(io.BytesIO(data)).mode.startswith('I')
  decoded = _decode(data)
  np.testing.assert_array_equal(decoded[0, :, 0], np.arange(16) * 16)


def _tiff(pixels):
  return encode(Image.fromarray(pixels), 'TIFF')


@pytest.mark.parametrize('dtype', [np.uint16, np.dtype('>u2')])
def test_sixteen_bit_tiff_is_scaled(dtype):
  wide = (np.arange(16, dtype=np.uint16)[None] * 4096 + 255).repeat(4, 0)
  decoded = _decode(_tiff(wide.astype(dtype)))
  np.testing.assert_array_equal(decoded[0, :, 0], np.arange(16) * 16)


def test_floats_from_0_to_1_are_scaled():
  grey = np.linspace(0, 1, 16, dtype=np.float32)[None].repeat(4, 0)
  decoded = _decode(_tiff(grey))
  np.testing.assert_array_equal(decoded[0, :, 1], np.arange(16) * 17)
  # What a cubic filter adds is cut.
  grey[0, 0], grey[0, 15] = -0.0005, 1.0005
  np.testing.assert_array_equal(
    _decode(_tiff(grey))[0, :, 1], np.arange(16) * 17
  )


@pytest.mark.parametrize(
  'pixels, said',
  [
    (np.full((4, 4), 200, np.float32), 'float pixels from 200 to 200'),
    (np.linspace(0, 255, 16, dtype=np.float32).reshape(4, 4), 'from 0 to 255'),
    (np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4), 'from -1 to 1'),
    (np.full((4, 4), np.nan, np.float32), 'from nan'),
    (np.full((4, 4), np.inf, np.float32), 'to inf'),
    (np.full((4, 4), 70000, np.int32), '32-bit whole numbers'),
    (np.full((4, 4), 3, np.int32), '32-bit whole numbers'),
    (np.full((4, 4), -3, np.int32), '32-bit whole numbers'),
  ],
)
def test_numbers_of_unknown_range_are_refused(pixels, said):
  with pytest.raises(transforms.BadImageError, match=said):
    transforms.decode_image(_tiff(pixels))


def test_wide_pgm_is_scaled():
  header = b'P5 16 1 65535\n'
  wide = (np.arange(16) * 4096 + 255).astype('>u2').tobytes()
  decoded = _decode(header + wide)
  np.testing.assert_array_equal(decoded[0, :, 0], np.arange(16) * 16)


def _png(width, height, colour=2, bits=8):
  """A PNG that says so and holds ten bytes."""

  def chunk(kind, data):
    checksum = zlib.crc32(kind + data)
    return (
      struct.pack('>I', len(data)) + kind + data + struct.pack('>I', checksum)
    )

  header = struct.pack('>IIBBBBB', width, height, bits, colour, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'PLTE', bytes(3)) * (colour == 3)
    + chunk(b'IDAT', zlib.compress(bytes(10)))
    + chunk(b'IEND', b'')
  )


@pytest.mark.parametrize(
  'width, height, colour, said',
  [
    (1, 2**27, 2, 'at most 65535 a side'),
    (1, 2**27, 0, 'at most 65535 a side'),
    (2**20, 1, 3, 'at most 65535 a side'),
    (1, 65000 * 20, 6, 'at most 65535 a side'),
    (9000, 9000, 0, 'cannot be in this file'),
    (1000, 1000, 3, 'cannot be in this file'),
    (5000, 2000, 6, 'cannot be in this file'),
    (15000, 15000, 0, 'exceeds limit|decompression bomb|at most'),
  ],
)
@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_images_that_cannot_be_are_refused_at_once(width, height, colour, said):
  with pytest.raises(transforms.BadImageError, match=said):
    transforms.decode_image(_png(width, height, colour))


def test_long_strips_are_whole():
  strip = np.zeros((20000, 3, 3), np.uint8)
  strip[:, 1] = 200
  assert _decode(encode(Image.fromarray(strip), 'PNG')).shape == (20000, 3, 3)
  for mode in ('L', '1', 'P'):
    blank = encode(Image.new(mode, (1500, 1500)), 'PNG')
    assert _decode(blank).shape == (1500, 1500, 3)


@pytest.mark.parametrize(
  'file_format',
  [
    'PNG',
    'JPEG',
    'BMP',
    'WEBP',
    'GIF',
    'TIFF',
    'AVIF',
    'JPEG2000',
    'PPM',
    'QOI',
  ],
)
def test_files_are_known_by_their_beginning(file_format):
  data = encode(Image.new('RGB', (9, 7)), file_format)
  assert transforms.is_image(data[:32])
  assert not transforms.is_image(b'')
  assert not transforms.is_image(b'BMW is a car, and this is text.')


def test_zeros_and_text_are_no_tga():
  for data in (bytes(100), bytes(3000), b'not an image' * 20, b'\0\0\x02' * 60):
    with pytest.raises(transforms.BadImageError):
      transforms.decode_image(data)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_applied(colours, orientation):
  upright = Image.fromarray(colours)
  # The transposition that undoes each orientation's, after the EXIF standard.
  stored = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
  }[orientation](upright)
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encode(stored, 'JPEG', quality=95, subsampling=0, exif=exif)
  _assert_near(_decode(data), colours.astype(int), 6)


def test_damaged_exif_does_not_matter(colours):
  data = encode(Image.fromarray(colours), 'JPEG', exif=b'Exif\0\0MM\0*\xff')
  assert _decode(data).shape == (16, 24, 3)


def test_truncated_and_foreign_files(colours):
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  for file_format in ('JPEG', 'PNG', 'BMP', 'WEBP'):
    data = encode(Image.fromarray(noise), file_format)
    with pytest.raises(transforms.BadImageError):
      transforms.decode_image(data[: len(data) // 2])
  for data in (b'', b'hello', b'%!PS-Adobe-3.0 EPSF-3.0', b'\xff\xd8\xff'):
    with pytest.raises(transforms.BadImageError, match=f'{len(data)} bytes'):
      transforms.decode_image(data)


def test_resize_size_of_published_crops():
  assert transforms.resize_size(224, 224 / 256) == 256
  assert transforms.resize_size(240, 240 / 272) == 272
  assert transforms.resize_size(260, 260 / 292) == 292
  assert transforms.resize_size(48, 0.875) == 54
  assert transforms.resize_size(48, 1.0) == 48


@pytest.mark.parametrize(
  'size, short_side, expected',
  [
    ((100, 50), 20, (40, 20)),
    ((50, 100), 20, (20, 40)),
    ((341, 256), 128, (170, 128)),
    ((7, 7), 20, (20, 20)),
    ((5000, 5), 20, (320, 20)),
    ((1, 300), 8, (8, 128)),
  ],
)
def test_short_side(size, short_side, expected):
  image = transforms.resize_short_side(Image.new('RGB', size), short_side)
  assert image.size == expected


def _resized(pixels, short_side, interpolation):
  image = Image.fromarray(pixels)
  return np.asarray(
    transforms.resize_short_side(image, short_side, interpolation)
  )


def _line_by_line(pixels, shape, interpolation):
  """Each row to its width, then each column to its height."""
  kernel = transforms.INTERPOLATIONS[interpolation]
  height, width = shape

  def rows_to(array, length):
    rows = (Image.fromarray(row[None]) for row in array)
    return np.concatenate(
      [np.asarray(row.resize((length, 1), kernel)) for row in rows]
    )

  columns = rows_to(pixels, width).transpose(1, 0, 2)
  return rows_to(np.ascontiguousarray(columns), height).transpose(1, 0, 2)


@pytest.mark.parametrize('interpolation', transforms.INTERPOLATIONS)
@pytest.mark.parametrize(
  ('shape', 'short_side'),
  [((120, 40), 22), ((80, 30), 21), ((60, 130), 22), ((40, 15), 32)],
)
def test_the_width_is_resized_first(shape, short_side, interpolation):
  """Of tall images too, of which Pillow since 13 begins with the height."""
  pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  found = _resized(pixels, short_side, interpolation)
  expected = _line_by_line(pixels, found.shape[:2], interpolation)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('interpolation', transforms.INTERPOLATIONS)
@pytest.mark.parametrize(
  'shape', [(192, 256), (90, 160), (33, 300), (50, 50), (160, 90), (256, 192)]
)
@pytest.mark.parametrize('short_side', [16, 36, 72, 110, 200])
def test_other_images_are_what_pillow_makes_in_one(
  shape, short_side, interpolation
):
  pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  found = _resized(pixels, short_side, interpolation)
  whole = Image.fromarray(pixels).resize(
    found.shape[1::-1], transforms.INTERPOLATIONS[interpolation]
  )
  np.testing.assert_array_equal(found, np.asarray(whole))


@pytest.mark.parametrize('shape', [(300, 100), (40, 15), (160, 10)])
def test_so_are_tall_images_that_grow(shape):
  pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  found = _resized(pixels, 109, 'bicubic')
  whole = Image.fromarray(pixels).resize(
    found.shape[1::-1], Image.Resampling.BICUBIC
  )
  np.testing.assert_array_equal(found, np.asarray(whole))


def test_centre_crop_is_the_centre():
  pixels = np.arange(6 * 9, dtype=np.uint8).reshape(6, 9)
  cropped = transforms.centre_crop(Image.fromarray(pixels), 4)
  np.testing.assert_array_equal(np.asarray(cropped), pixels[1:5, 2:6])


@pytest.mark.parametrize(
  'model, size, short_side',
  [('lite0', 224, 256), ('lite1', 240, 272), ('lite2', 260, 292)],
)
def test_crops_of_the_published_recipe(shared_dir, model, size, short_side):
  fixture = shared_dir / 'fixtures' / 'parity' / 'lite_imagenet_val10.npz'
  archive = shared_dir / 'data' / 'imagenet_val10.zip'
  with np.load(fixture) as stored, zipfile.ZipFile(archive) as images:
    by_name = {name.split('/')[-1]: name for name in images.namelist()}
    for name, expected in zip(
      stored['logits_files'], stored[f'{model}_crop_crc32'], strict=True
    ):
      data = images.read(by_name[str(name).split('/')[-1]])
      crop = transforms.load_square(data, short_side=short_side, size=size)
      assert crop.shape == (size, size, 3)
      assert zlib.crc32(crop.tobytes()) == int(expected), name
