"""Depthwise convolutions: lax against sums of shifted products.

`lax` is what accelerators get, `shifted` what a processor gets, with its own
gradients (models/layers/convolutions.py), `plain` the same sum of shifted
products with the gradients that JAX makes of it.
"""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from tlkd_jax.models.layers import convolutions
from tlkd_jax.models.layers.convolutions import lax_convolutions, same_padding
from tlkd_jax.models.layers.patches import output_hw, pad, taps

# name: (pixels, channels, kernel, stride), of the named model at 224 pixels.
CASES = {
  'depthwise3 lite0 stage 1': (112, 32, 3, 1),
  'depthwise3 stride 2 lite0 stage 2': (112, 96, 3, 2),
  'depthwise3 lite0 stage 2': (56, 144, 3, 1),
  'depthwise5 lite0 stage 3': (28, 240, 5, 1),
  'depthwise3 lite0 stage 4': (14, 480, 3, 1),
  'depthwise5 lite0 stage 6': (7, 1152, 5, 1),
  'depthwise7 convnext_tiny stage 1': (56, 96, 7, 1),
  'depthwise7 convnext_tiny stage 3': (14, 384, 7, 1),
}
FORMS = ('lax', 'shifted', 'plain')
# A form that is so much slower than lax says enough after one call.
_SLOW = 20.0


def _lax(x, kernel, stride, padding):
  with lax_convolutions():
    return convolutions.conv2d(
      x,
      kernel[:, :, None],
      stride=stride,
      padding=padding,
      groups=x.shape[3],
    )


def _plain(x, kernel, stride, padding):
  out = output_hw(x, kernel.shape[:2], stride, padding)
  y = jnp.zeros((), jnp.float32)
  for (u, v), tap in taps(pad(x, padding), kernel.shape[:2], stride, out):
    weight = kernel[u, v].astype(jnp.float32)
    y += tap.astype(jnp.float32) * weight[None, None, None]
  return y.astype(x.dtype)


_FUNCTIONS = {
  'lax': _lax,
  'shifted': convolutions._depthwise,
  'plain': _plain,
}


def programs(case: str, dtype: str, batch: int, share: int) -> dict:
  """{(part, form): (compiled function, its arguments)}."""
  size, channels, k, step = CASES[case]
  size = -(-size // share)
  stride = step, step
  padding = same_padding((size, size), (k, k), stride)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((batch, size, size, channels)), dtype)
  kernel = jnp.asarray(rng.standard_normal((k, k, channels)), dtype)
  found = {}
  for form, function in _FUNCTIONS.items():

    def forward(x, kernel, function=function):
      return function(x, kernel, stride, padding)

    def gradients(x, kernel, dy, forward=forward):
      return jax.vjp(forward, x, kernel)[1](dy)

    out = output_hw(x, (k, k), stride, padding)
    dy = jnp.ones((batch, *out, channels), dtype)
    for part, run, given in (
      ('forward', forward, (x, kernel)),
      ('gradients', gradients, (x, kernel, dy)),
    ):
      compiled = jax.jit(run).lower(*given).compile()
      found[part, form] = compiled, given
  return found


def measure(
  case: str, dtype: str, batch: int, share: int, rounds: int
) -> dict[str, Any]:
  """A row: milliseconds of each form, and how far shifted is from lax."""
  row: dict[str, Any] = {'key': f'{case} {dtype}', 'case': case}
  row |= {'dtype': dtype, 'batch': batch}
  functions = programs(case, dtype, batch, share)
  for part in ('forward', 'gradients'):
    sides = {form: functions[part, form] for form in FORMS}
    results = {form: run(*given) for form, (run, given) in sides.items()}
    row[f'{part}_apart'] = max(
      _apart(results[form], results['lax']) for form in FORMS
    )
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    once = {form: _milliseconds(*side, 1) for form, side in sides.items()}
    for _ in range(rounds):
      for form, side in sides.items():
        if once[form] > _SLOW * once['lax']:
          times[form] = times[form] or [once[form]]
        else:
          count = max(1, min(20, int(20 / once[form])))
          times[form].append(_milliseconds(*side, count))
    for form, values in times.items():
      row |= machine.summary(f'{part}_{form}', values, digits=4)
    middle = {form: statistics.median(times[form]) for form in FORMS}
    row[f'{part}_fastest'] = min(middle, key=middle.__getitem__)
  return row


def _milliseconds(run, given: tuple, count: int) -> float:
  """Of a call, of so many that are sent before the first is waited for."""
  begun = time.perf_counter()
  for _ in range(count):
    result = run(*given)
  jax.block_until_ready(result)
  return 1e3 * (time.perf_counter() - begun) / count


def _apart(found, expected) -> float:
  """Largest difference over the largest number."""
  return max(
    float(f'{np.max(np.abs(a - b)) / np.max(np.abs(b)):.2g}')
    for a, b in zip(
      (np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(found)),
      (np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(expected)),
      strict=True,
    )
  )
