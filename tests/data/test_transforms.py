import io
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
