"""Parts of the corruptions against direct or independent computations."""

import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from tlkd_jax.evaluation.corruptions import (
  CORRUPTIONS,
  blur,
  camera,
  filters,
  noise,
  spatter,
)


def _photo(height: int, width: int, seed: int = 0) -> np.ndarray:
  """Blurred colour noise with hard edges and saturated areas, uint8."""
  rng = np.random.default_rng(seed)
  coarse = rng.uniform(-60, 315, (height // 5 + 1, width // 5 + 1, 3))
  image = np.kron(coarse, np.ones((5, 5, 1)))[:height, :width]
  image[: height // 2] = scipy.ndimage.gaussian_filter(
    image[: height // 2], (2, 2, 0)
  )
  image += rng.normal(0, 4, image.shape)
  return np.clip(image, 0, 255).astype(np.uint8)


def _corrupt(name, image, severity):
  return np.asarray(
    jax.jit(CORRUPTIONS[name], static_argnums=1)(
      image, severity, jax.random.key(0)
    )
  )


@pytest.mark.parametrize(
  ('height', 'width', 'severity', 'quality'),
  [(45, 70, 2, 65)],
)
def test_jpeg_equals_pillow(height, width, severity, quality):
  image = _photo(height, width)
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'JPEG', quality=quality)
  expected = np.asarray(Image.open(buffer))
  np.testing.assert_array_equal(
    _corrupt('jpeg_compression', image, severity), expected
  )


@pytest.mark.parametrize(('height', 'width'), [(32, 32), (45, 70)])
def test_pixelate_equals_pillow(height, width):
  image = _photo(height, width)
  factor = 0.65
  small = Image.fromarray(image).resize(
    (int(width * factor), int(height * factor)), Image.Resampling.BOX
  )
  expected = np.asarray(small.resize((width, height), Image.Resampling.BOX))
  np.testing.assert_array_equal(_corrupt('pixelate', image, 5), expected)


@pytest.mark.parametrize('sigma', [0.4, 1.3, 4.0])
def test_gaussian_blur_equals_scipy(sigma):
  image = _photo(40, 33).astype(np.float32)
  expected = scipy.ndimage.gaussian_filter(
    image.astype(np.float64), (sigma, sigma, 0), mode='nearest'
  )
  np.testing.assert_allclose(
    filters.gaussian_blur(jnp.asarray(image), sigma), expected, atol=1e-3
  )


@pytest.mark.parametrize('sigma', [0.0, 0.7, 40.0])
def test_gaussian_matrix_equals_scipy(sigma):
  line = np.random.default_rng(0).normal(size=30)
  expected = line
  if sigma:
    expected = scipy.ndimage.gaussian_filter1d(
      line, sigma, mode='reflect', truncate=3
    )
  matrix = filters.gaussian_matrix(30, sigma, 3.0)
  np.testing.assert_allclose(matrix @ line, expected, atol=1e-5)


def test_convolve_fft_equals_scipy():
  image = _photo(41, 33).astype(np.float32)
  kernel = blur.disk_kernel(9.5, 0.5)
  expected = scipy.ndimage.correlate(
    image.astype(np.float64), kernel[..., None], mode='mirror'
  )
  np.testing.assert_allclose(
    filters.convolve_fft(jnp.asarray(image), kernel), expected, atol=1e-3
  )


@pytest.mark.parametrize('factor', [1.0, 1.07, 1.25, 3.0])
def test_clipped_zoom_equals_scipy(factor):
  image = _photo(45, 45)[..., 0].astype(np.float32)
  cropped = int(np.ceil(45 / factor))
  start = (45 - cropped) // 2
  part = slice(start, start + cropped)
  zoomed = scipy.ndimage.zoom(image[part, part], factor, order=1)
  trim = (len(zoomed) - 45) // 2
  np.testing.assert_allclose(
    blur.clipped_zoom(jnp.asarray(image), factor),
    zoomed[trim : trim + 45, trim : trim + 45],
    atol=1e-3,
  )


@pytest.mark.parametrize('doubled_edge', [True, False])
def test_sample_bilinear_equals_scipy(doubled_edge):
  image = _photo(20, 17).astype(np.float32)
  rng = np.random.default_rng(1)
  rows = rng.uniform(-25, 45, (20, 17)).astype(np.float32)
  columns = rng.uniform(-25, 40, (20, 17)).astype(np.float32)
  mode = 'reflect' if doubled_edge else 'mirror'
  expected = [
    scipy.ndimage.map_coordinates(
      image[..., c], (rows, columns), order=1, mode=mode
    )
    for c in range(3)
  ]
  out = filters.sample_bilinear(
    jnp.asarray(image), jnp.asarray(rows), jnp.asarray(columns), doubled_edge
  )
  np.testing.assert_allclose(out, np.stack(expected, -1), atol=1e-2)


@pytest.mark.parametrize(('reach', 'height'), [(1, 12), (2, 12), (4, 40)])
def test_copy_source_equals_the_loop_in_raster_order(reach, height):
  width, key = height + 5, jax.random.key(reach)
  bits = np.asarray(jax.random.bits(key, (height, width)))
  draw = (bits % (2 * reach) ** 2).astype(int)
  expected = np.arange(height * width).reshape(height, width)
  for row in range(height - reach, reach, -1):
    for column in range(width - reach, reach, -1):
      down = draw[row, column] // (2 * reach) - reach
      right = draw[row, column] % (2 * reach) - reach
      expected[row, column] = expected[row + down, column + right]
  out = blur._copy_source(height, width, reach, key)
  np.testing.assert_array_equal(out, expected.ravel())


@pytest.mark.parametrize('angle', [-135.0, -31.0, 0.0, 17.0, 45.0])
def test_motion_blur_equals_a_sum_of_moved_copies(angle):
  image = _photo(30, 26).astype(np.float32)
  weights = np.exp(-0.5 * (np.arange(13) / 3) ** 2)
  weights /= weights.sum()
  rows, columns = np.mgrid[:30, :26]
  expected = 0
  for i, weight in enumerate(weights):
    down = np.ceil(i * np.sin(np.deg2rad(angle)) - 0.5).astype(int)
    right = np.ceil(i * np.cos(np.deg2rad(angle)) - 0.5).astype(int)
    source = np.clip(rows + down, 0, 29), np.clip(columns + right, 0, 25)
    expected = expected + weight * image[source]
  out = blur.motion_blur_along(jnp.asarray(image), 6, 3.0, jnp.float32(angle))
  np.testing.assert_allclose(out, expected, atol=1e-3)


def test_motion_blur_longer_than_the_image_drops_the_copies_outside():
  out = blur.motion_blur_along(jnp.ones((5, 8)), 4, 50.0, jnp.float32(90.0))
  np.testing.assert_allclose(out, 5 / 9, rtol=1e-2)


def test_clipped_poisson_has_the_right_distribution():
  image = np.repeat(np.array([0, 40, 128, 255], np.uint8), 20000)
  counts = noise._clipped_poisson(jnp.asarray(image), 12, jax.random.key(0))
  drawn = np.random.default_rng(0).poisson(image / 255 * 12)
  ours = np.asarray(counts).reshape(4, -1)
  reference = np.minimum(drawn, 12).reshape(4, -1)
  assert ours.min() == 0 and ours.max() == 12 and not ours[0].any()
  error = np.sqrt(2 * reference.var(axis=1) / 20000)
  assert (abs(ours.mean(1) - reference.mean(1)) <= 4 * error).all()
  np.testing.assert_allclose(ours.var(1), reference.var(1), rtol=0.05)


def _chamfer(down: int, across: int) -> float:
  """Shortest path by the steps (0, 1), (1, 1) and (1, 2)."""
  long, short = max(abs(down), abs(across)), min(abs(down), abs(across))
  if 2 * short <= long:
    return long - 2 * short + 2.1969 * short
  return 2.1969 * (long - short) + 1.4 * (2 * short - long)


def test_chamfer_distance_equals_the_closed_form():
  edges = np.zeros((50, 45), bool)
  places = [(3, 40), (30, 5), (31, 30)]
  for place in places:
    edges[place] = True
  expected = [
    min(20.0, min(_chamfer(i - a, j - b) for a, b in places))
    for i, j in itertools.product(range(50), range(45))
  ]
  out = spatter._chamfer_distance(jnp.asarray(edges))
  np.testing.assert_allclose(out.ravel(), expected, atol=1e-4)


def test_hysteresis_keeps_the_weak_components_with_a_strong_pixel():
  rng = np.random.default_rng(3)
  weak = rng.random((40, 40)) < 0.35
  strong = weak & (rng.random((40, 40)) < 0.03)
  labels, _ = scipy.ndimage.label(weak, np.ones((3, 3)))
  expected = np.isin(labels, np.unique(labels[strong])) & weak
  out = spatter._hysteresis(jnp.asarray(weak), jnp.asarray(strong))
  assert expected.any() and (expected != weak).any()
  np.testing.assert_array_equal(out, expected)


def test_canny_outlines_a_square_only():
  image = np.zeros((20, 20), np.float32)
  image[6:14, 6:14] = 200
  edges = np.asarray(spatter._canny(jnp.asarray(image)))
  assert edges.any()
  rows, columns = np.nonzero(edges)
  border = np.minimum(
    np.minimum(abs(rows - 5.5), abs(rows - 13.5)),
    np.minimum(abs(columns - 5.5), abs(columns - 13.5)),
  )
  assert (border <= 0.5).all()
  assert not np.asarray(spatter._canny(jnp.asarray(image / 40))).any()


def test_equalise_spreads_two_levels_over_the_range():
  image = jnp.asarray(np.repeat([3.0, 7.0], 50).reshape(10, 10))
  np.testing.assert_array_equal(
    spatter._equalise(image), np.repeat([0.0, 255.0], 50).reshape(10, 10)
  )
  flat = jnp.full((10, 10), 20.0)
  np.testing.assert_array_equal(spatter._equalise(flat), flat)


def test_full_grey_scale_has_equal_channels():
  out = _corrupt('grey_scale', _photo(32, 32), 5)
  assert np.ptp(out.astype(int), axis=-1).max() <= 1


def test_occlusion_covers_its_share():
  image = np.full((40, 60, 3), 7, np.uint8)
  out = np.asarray(camera.occlusion(image, 3, jax.random.key(2)))
  covered = (out == 128).all(axis=-1)
  assert covered.mean() == pytest.approx(0.2, abs=0.02)
  assert ((out == 7) | (out == 128)).all()


def test_rotation_turns_both_ways_about_the_centre():
  image = np.zeros((41, 41, 3), np.uint8)
  # Near the centre, so that no mirrored copy comes into view.
  image[20, 27:30] = 255
  angles = set()
  for seed in range(8):
    out = np.asarray(camera.rotation(image, 5, jax.random.key(seed)))
    rows, columns = np.nonzero(out[..., 0])
    weights = out[rows, columns, 0].astype(float)
    down = np.average(rows - 20, weights=weights)
    right = np.average(columns - 20, weights=weights)
    assert np.hypot(down, right) == pytest.approx(8, abs=0.3)
    angles.add(round(np.degrees(np.arctan2(down, right))))
  assert angles == {-45, 45}


def test_colour_cast_keeps_the_geometric_mean():
  image = np.full((8, 8, 3), 100, np.uint8)
  out = np.asarray(camera.colour_cast(image, 4, jax.random.key(0)))
  gains = np.log((out[0, 0] + 0.5) / 100)
  assert gains.sum() == pytest.approx(0, abs=0.03)
  assert np.linalg.norm(gains) == pytest.approx(0.45, abs=0.03)


def test_low_light_keeps_the_exposed_share_of_linear_light():
  image = np.full((64, 64, 3), 200, np.uint8)
  out = np.asarray(camera.low_light(image, 3, jax.random.key(0)))
  light = ((out + 0.5) / 255) ** 2.2
  expected = 0.15 * (200 / 255) ** 2.2
  assert light.mean() == pytest.approx(expected, rel=0.05)
