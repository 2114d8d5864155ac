"""What a GPU or a TPU computes, against this machine's processor.

  pytest -m gpu tests/test_on_accelerator.py

The checks of `python -m benchmarks.accelerator`, one by one; bounds are in
benchmarks/accelerator/checks.py.
"""

import jax
import pytest

from benchmarks.accelerator import checks, parts

pytestmark = pytest.mark.gpu
PAIR = parts.LARGE.updated


@pytest.fixture(autouse=True, scope='module')
def accelerator():
  if jax.default_backend() == 'cpu':
    pytest.skip('JAX finds no accelerator here, a processor alone')
  try:
    checks.processor()
  except RuntimeError:
    pytest.skip("JAX_PLATFORMS leaves out 'cpu', the other side of the checks")


def assert_hold(rows):
  assert [row for row in rows if not row['ok']] == []


@pytest.mark.parametrize(('name', 'size'), parts.LARGE.families)
def test_outputs_and_gradients_of_a_model(name, size):
  assert_hold(checks.of_model(name, size))


def test_losses_and_their_gradients():
  assert_hold(checks.of_losses())


def test_augmentation():
  assert_hold(checks.of_augmentation())


def test_a_few_updates():
  assert_hold(checks.of_updates(PAIR))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_resumed_is_uninterrupted_bit_for_bit(dtype):
  assert_hold(checks.of_resuming(PAIR, dtype))


def test_one_and_all_devices():
  if jax.device_count() < 2:
    pytest.skip('one device')
  assert_hold(checks.of_devices(PAIR))
