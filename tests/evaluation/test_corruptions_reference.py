"""Corruptions against the outputs and statistics of the reference code."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tlkd_jax.evaluation import corruptions
from tlkd_jax.evaluation.corruptions import blur, tables

_DETERMINISTIC = (
  'contrast',
  'brightness',
  'saturate',
  'jpeg_compression',
  'pixelate',
  'defocus_blur',
  'zoom_blur',
  'gaussian_blur',
)
_IMAGES = ('astronaut', 'chelsea', 'synthetic')
_STOCHASTIC = ('gaussian_noise', 'shot_noise', 'impulse_noise')
_STOCHASTIC += ('speckle_noise', 'glass_blur', 'fog', 'spatter')
_STOCHASTIC += ('elastic_transform',)
_ONLY_LARGE = ('motion_blur', 'snow', 'frost')
_REFERENCE_DRAWS = 20


@pytest.fixture(scope='module')
def pictures(shared_dir):
  path = shared_dir / 'fixtures' / 'evaluation' / 'corruptions.npz'
  with np.load(path) as archive:
    return dict(archive)


@pytest.fixture(scope='module')
def statistics(shared_dir):
  path = shared_dir / 'fixtures' / 'evaluation' / 'corruptions.json'
  return json.loads(path.read_text())['stochastic']


def _check_deterministic(pictures, source, size, name, severity):
  images = np.stack([pictures[f'in{size}/{image}'] for image in _IMAGES])
  expected = np.stack(
    [pictures[f'{source}/{name}/{severity}/{image}'] for image in _IMAGES]
  )
  keys = corruptions.corruption_keys(0, range(3), name, severity)
  out = corruptions.corrupt_batch(name, images, severity, keys)
  difference = np.abs(np.asarray(out).astype(int) - expected)
  assert difference.max() <= 1
  if name in ('jpeg_compression', 'pixelate'):
    assert difference.max() == 0
  # A rewrite that rounds would be off by one at half of the pixels.
  assert (difference > 0).mean() < 0.15


@pytest.mark.parametrize('name', _DETERMINISTIC)
def test_deterministic_at_32_pixels(pictures, name):
  _check_deterministic(pictures, 'cifar32', 32, name, 5)


@pytest.mark.slow
@pytest.mark.parametrize('severity', [1, 2, 3, 4])
@pytest.mark.parametrize('name', _DETERMINISTIC)
def test_deterministic_at_32_pixels_other_severities(pictures, name, severity):
  _check_deterministic(pictures, 'cifar32', 32, name, severity)


@pytest.mark.parametrize('name', ['contrast', 'defocus_blur', 'zoom_blur'])
def test_deterministic_at_224_pixels(pictures, name):
  _check_deterministic(pictures, 'ic224', 224, name, 3)


@pytest.mark.slow
@pytest.mark.parametrize('severity', [1, 3, 5])
@pytest.mark.parametrize('name', _DETERMINISTIC)
def test_deterministic_at_224_pixels_all(pictures, name, severity):
  _check_deterministic(pictures, 'ic224', 224, name, severity)


@pytest.mark.parametrize('angle', [-30.0, 0.0, 17.0, 45.0])
def test_motion_blur_at_a_fixed_angle(pictures, angle):
  expected = pictures[f'motion_blur_fixed_angle/sev3/{angle}/astronaut']
  image = jnp.asarray(pictures['in224/astronaut'], jnp.float32)
  out = np.asarray(blur.motion_blur_along(image, 15, 8, jnp.float32(angle)))
  assert np.abs(out.astype(np.uint8).astype(int) - expected).max() <= 1


@pytest.mark.parametrize('table', ['imagenet', 'cifar'])
def test_disk_kernels(pictures, table):
  size = {'imagenet': 224, 'cifar': 32}[table]
  image = jnp.zeros((size, size, 3), jnp.uint8)
  for severity in corruptions.SEVERITIES:
    kernel = blur.disk_kernel(
      *tables.parameters('defocus_blur', image, severity)
    )
    expected = pictures[f'kernel/disk/{table}/{severity}']
    np.testing.assert_allclose(kernel, expected, atol=1e-7)


def _check_statistics(pictures, statistics, source, name, severity, draws):
  """Means over draws within 4 standard errors of the difference.

  The reference's spread is itself estimated from 20 draws, so the larger of
  its and our standard deviation is used.
  """
  size = {'ic224': 224, 'cifar32': 32}[source]
  keys = corruptions.corruption_keys(1, range(draws), name, severity)
  for image_name in _IMAGES:
    image = pictures[f'in{size}/{image_name}']
    batch = np.broadcast_to(image, (draws, *image.shape))
    out = corruptions.corrupt_batch(name, batch, severity, keys)
    out = np.asarray(out).astype(np.float64)
    reference = statistics[f'{source}/{name}/{severity}/{image_name}']
    mad = np.abs(out - image).mean(axis=(1, 2, 3))
    pairs = [
      (
        out.mean(axis=(1, 2)),
        reference['mean_rgb'],
        reference['mean_rgb_std_over_draws'],
      ),
      (mad, *reference['mad']),
    ]
    if 'std_rgb_std_over_draws' in reference:
      pairs.append(
        (
          out.std(axis=(1, 2)),
          reference['std_rgb'],
          reference['std_rgb_std_over_draws'],
        )
      )
    for ours, expected, spread in pairs:
      spread = np.maximum(ours.std(axis=0), spread)
      error = spread * np.sqrt(1 / _REFERENCE_DRAWS + 1 / draws)
      # The reference's figures are stored to three decimals.
      gap = np.abs(ours.mean(axis=0) - np.asarray(expected)) - 5e-4
      assert (gap <= 4 * error).all(), (image_name, gap / error)


@pytest.mark.parametrize('name', ['shot_noise', 'glass_blur'])
def test_statistics_at_32_pixels(pictures, statistics, name):
  _check_statistics(pictures, statistics, 'cifar32', name, 2, 64)


@pytest.mark.slow
@pytest.mark.parametrize('severity', corruptions.SEVERITIES)
@pytest.mark.parametrize('name', _STOCHASTIC)
def test_statistics_at_32_pixels_all(pictures, statistics, name, severity):
  _check_statistics(pictures, statistics, 'cifar32', name, severity, 512)


def test_statistics_at_224_pixels(pictures, statistics):
  _check_statistics(pictures, statistics, 'ic224', 'snow', 3, 16)


@pytest.mark.slow
@pytest.mark.parametrize('severity', [1, 3, 5])
@pytest.mark.parametrize('name', _STOCHASTIC + _ONLY_LARGE)
def test_statistics_at_224_pixels_all(pictures, statistics, name, severity):
  _check_statistics(pictures, statistics, 'ic224', name, severity, 64)


def _flat(value):
  return list(value) if isinstance(value, (list, tuple)) else [value]


@pytest.mark.parametrize(
  ('key', 'size'),
  [('imagenet224', 224), ('tinyimagenet64', 64), ('cifar32', 32)],
)
def test_severity_tables(shared_dir, key, size):
  path = shared_dir / 'fixtures' / 'evaluation' / 'corruption_params.json'
  reference = json.loads(path.read_text())[key]
  image = jnp.zeros((size, size, 3), jnp.uint8)
  checked = set()
  for label, rows in reference.items():
    name = label.split('(')[0]
    if name == 'elastic_transform' and size == 224:
      package = 'imagecorruptions' in label
      name += '' if package else '_original'
    checked.add(name)
    for severity, row in zip(corruptions.SEVERITIES, rows, strict=True):
      ours = _flat(tables.parameters(name, image, severity))
      expected = _flat(row)
      if name == 'zoom_blur':
        expected = expected[1:]
      elif name == 'elastic_transform' and size == 224:
        # 250 * a of noise up to 0.005 of the side; sigma 0.01 of the side.
        expected = [250 * row * 0.005, 0.01, 0]
      elif name == 'elastic_transform_original':
        expected = [figure * 244 / 224 for figure in row]
      np.testing.assert_allclose(ours, expected, rtol=1e-12)
  names = set(corruptions.CORRUPTION_SETS['imagenet-c-like'])
  assert names <= checked
