"""Time of `conv2d` against `lax.conv_general_dilated` on this backend.

  python -m benchmarks.convolutions [--case depthwise] [--repeats 9]

Prints one JSON line per case: the shapes, the medians with minimum and maximum
of both sides in milliseconds from interleaved runs, for the forward pass and
for the gradients of input and kernel, and their ratios (ours / lax; below 1 is
faster). Float32, batch 32; compilation is left out, its seconds are told.
"""

import argparse
import functools
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from tlkd_jax.models.layers.convolutions import (
  conv2d,
  lax_convolutions,
  same_padding,
)

# name: (pixels, input channels, kernel, stride, output channels, groups), from
# the named model at 128 pixels.
CASES = {
  'depthwise3 lite0 stage 1': (64, 32, 3, 1, 32, 32),
  'depthwise3 stride 2 lite0 stage 2': (64, 96, 3, 2, 96, 96),
  'depthwise3 lite0 stage 2': (32, 144, 3, 1, 144, 144),
  'depthwise5 stride 2 lite0 stage 3': (32, 144, 5, 2, 144, 144),
  'depthwise5 lite0 stage 5': (8, 672, 5, 1, 672, 672),
  'depthwise5 lite0 stage 6': (4, 1152, 5, 1, 1152, 1152),
  'depthwise7 convnext_atto stage 1': (32, 40, 7, 1, 40, 40),
  'depthwise7 convnext_atto stage 3': (8, 160, 7, 1, 160, 160),
  'pointwise lite0 stage 2': (64, 16, 1, 1, 96, 1),
  'pointwise lite0 stage 6': (4, 192, 1, 1, 1152, 1),
  'pointwise stride 2 resnet18': (32, 64, 1, 2, 128, 1),
  'first3 lite0': (128, 3, 3, 2, 32, 1),
  'first7 resnet18': (128, 3, 7, 2, 64, 1),
  'patches vit_tiny': (128, 3, 16, 16, 192, 1),
  'patches convnext_atto': (32, 40, 2, 2, 80, 1),
  'grouped resnext50 stage 1': (32, 128, 3, 1, 128, 32),
  'grouped resnext50 stage 3': (8, 512, 3, 1, 512, 32),
  'grouped regnety_400mf stage 3': (8, 208, 3, 1, 208, 26),
  'grouped regnety_400mf stage 4': (4, 440, 3, 1, 440, 55),
  'dense3 resnet18 stage 1': (32, 64, 3, 1, 64, 1),
  'dense3 stride 2 resnet18': (32, 64, 3, 2, 128, 1),
  'dense3 resnet18 stage 3': (8, 256, 3, 1, 256, 1),
  'dense3 resnet18 stage 4': (4, 512, 3, 1, 512, 1),
}
BATCH = 32


def sides(case: str) -> tuple[dict, dict]:
  """The row's head, and {name: function that runs one compiled pass}."""
  size, features_in, k, stride, features_out, groups = CASES[case]
  padding = same_padding((size, size), (k, k), (stride, stride))
  rng = np.random.default_rng(0)
  x_shape = (BATCH, size, size, features_in)
  kernel_shape = (k, k, features_in // groups, features_out)
  x = jnp.asarray(rng.normal(size=x_shape), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=kernel_shape), jnp.float32)

  def forward(x, kernel):
    return conv2d(
      x, kernel, stride=(stride, stride), padding=padding, groups=groups
    )

  def gradients(x, kernel, dy):
    # Images have no gradient: a first convolution needs that of its kernel.
    if features_in == 3:
      pullback = jax.vjp(functools.partial(forward, x), kernel)[1]
    else:
      pullback = jax.vjp(forward, x, kernel)[1]
    return pullback(dy)

  dy = forward(x, kernel)

  def compiled(function, *arguments):
    run = jax.jit(function).lower(*arguments).compile()
    return lambda: jax.block_until_ready(run(*arguments))

  def both(side):
    start = time.perf_counter()
    functions[f'forward_{side}'] = compiled(forward, x, kernel)
    functions[f'gradients_{side}'] = compiled(gradients, x, kernel, dy)
    head[f'compilation_{side}_s'] = round(time.perf_counter() - start, 1)

  functions: dict = {}
  head = {'case': case, 'x': x_shape, 'kernel': kernel_shape}
  head |= {'stride': stride, 'groups': groups}
  both('ours')
  with lax_convolutions():
    both('lax')
  return head, functions


def measure(case: str, repeats: int) -> dict:
  """One row of the table."""
  row, functions = sides(case)
  times = {name: [] for name in functions}
  for function in functions.values():
    function()
  for _ in range(repeats):
    for name, function in functions.items():
      start = time.perf_counter()
      function()
      times[name].append(1e3 * (time.perf_counter() - start))
  for part in ('forward', 'gradients'):
    ours, lax = times[f'{part}_ours'], times[f'{part}_lax']
    row |= machine.summary(f'{part}_ours', ours, digits=3)
    row |= machine.summary(f'{part}_lax', lax, digits=3)
    ratio = statistics.median(ours) / statistics.median(lax)
    row[f'{part}_ratio'] = round(ratio, 3)
  return row | machine.versions()


def main() -> None:
  """Parses the command line and prints the rows."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--case', default='', help='part of the names to run')
  parser.add_argument('--repeats', type=int, default=9)
  arguments = parser.parse_args()
  for case in CASES:
    if arguments.case in case:
      print(json.dumps(measure(case, arguments.repeats)), flush=True)


if __name__ == '__main__':
  main()
