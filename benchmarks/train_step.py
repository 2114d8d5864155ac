"""Time of one training step and of one forward pass, ours against PyTorch's.

  python -m benchmarks.train_step --model all --against torch

Prints one JSON line per model. `step` is forward, backward and a Nesterov SGD
update with BatchNorm in train mode, `frozen_step` the same with frozen
statistics, both in float32 on 1,000 classes; `forward` is evaluation. The sides
run in turn in one process, medians with minimum and maximum are quoted,
compilation is left out. PyTorch is channels_last, eager (`torch`) and, but for
the frozen step, through torch.compile (`compiled`, unless `--no-compile`); each
ratio is ours / the faster of the two.

`--model all` are the five that benchmarks/torch_models.py writes out,
`--model families` one of every family, from torchvision, of which the build
must match that of torch. Each model then has a process of its own, so that none
finds the memory and the threads of another, and our programs come from the
compilation cache, which a process before it filled.

Both sides run with `tlkd_jax.allocator`'s settings, as a training run does;
`--default-malloc` leaves the C library as it is, for both. About 2 minutes a
model on two idle cores, most of it compilation by torch.compile.
"""

import argparse
import functools
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import machine
from tlkd_jax import models
from tlkd_jax.runtime import allocator

MODELS = (
  'efficientnet_lite0',
  'mobilenet_v2',
  'resnet18',
  'convnext_atto',
  'vit_tiny_patch16_224',
)
FAMILIES = (
  'mobilenet_v2',
  'mobilenet_v3_large',
  'efficientnet_b0',
  'efficientnet_v2_s',
  'resnet50',
  'resnext50_32x4d',
  'regnet_y_400mf',
  'convnext_tiny',
  'densenet121',
  'vgg11_bn',
)
PARTS = ('forward', 'step', 'frozen_step')


def ours(name, image_size, images, labels, learning_rate=1e-3):
  """{part: function that runs it once}, over one of our models."""
  model = models.create_model(name, dropout=0.0)
  start = model.init(jax.random.key(0))
  optimizer = optax.sgd(learning_rate, momentum=0.9, nesterov=True)
  x, y = jnp.asarray(images), jnp.asarray(labels)

  @jax.jit
  def forward(params, model_state):
    return model.apply(params, model_state, x)[0]['logits']

  def loss_fn(params, model_state, norm_train):
    outputs, new = model.apply(
      params, model_state, x, train=True, norm_train=norm_train
    )
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(
      outputs['logits'], y
    )
    return losses.mean(), new

  def update(params, model_state, opt_state, *, norm_train):
    loss = functools.partial(loss_fn, norm_train=norm_train)
    grads, new = jax.grad(loss, has_aux=True)(params, model_state)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), new, opt_state

  def make_step(norm_train):
    step = functools.partial(update, norm_train=norm_train)
    step = jax.jit(step, donate_argnums=(0, 1, 2))
    params, model_state = jax.tree.map(jnp.copy, start)
    state = [params, model_state, jax.jit(optimizer.init)(params)]

    def run():
      state[:] = step(*state)
      jax.block_until_ready(state)

    return run

  result = {'forward': lambda: jax.block_until_ready(forward(*start))}
  result['step'] = make_step(True)
  if start[1]:
    result['frozen_step'] = make_step(False)
  return result


def measure(sides: dict, repeats: int) -> dict:
  """Interleaves the functions; {name: [milliseconds, ...]}."""
  for function in sides.values():
    function()
    function()
  times = {name: [] for name in sides}
  for _ in range(repeats):
    for name, function in sides.items():
      # Idle threads of the other side spin for a while.
      time.sleep(0.05)
      start = time.perf_counter()
      function()
      times[name].append(1e3 * (time.perf_counter() - start))
  return times


def run(name: str, arguments: argparse.Namespace) -> dict:
  """One row of the table."""
  size, batch = arguments.image_size, arguments.batch_size
  rng = np.random.default_rng(0)
  images = rng.standard_normal((batch, size, size, 3)).astype(np.float32)
  labels = rng.integers(0, 1000, batch)
  sides = {'ours': ours(name, size, images, labels)}
  if arguments.against == 'torch':
    from benchmarks import torch_models

    make = functools.partial(
      torch_models.make_side, name, size, images, labels, 1e-3
    )
    sides['torch'] = make()
    if not arguments.no_compile:
      sides['compiled'] = make(compiled=True)
  row = {'model': name, 'image_size': size, 'batch_size': batch}
  for part in filter(sides['ours'].__contains__, arguments.parts):
    functions = {side: parts[part] for side, parts in sides.items()}
    if part == 'frozen_step':
      # Spares another compilation.
      functions.pop('compiled', None)
    times = measure(functions, arguments.repeats)
    for side, values in times.items():
      row |= machine.summary(f'{part}_{side}', values)
    others = [row[f'{part}_{side}_ms'] for side in times if side != 'ours']
    if others:
      row[f'{part}_ratio'] = round(row[f'{part}_ours_ms'] / min(others), 3)
  return row


def run_alone(name: str) -> dict:
  """The row of this command's arguments for one model, from a new process."""
  command = [sys.executable, '-m', 'benchmarks.train_step', *sys.argv[1:]]
  command += ['--model', name]
  output = machine.run_compiled(command, [*command, '--repeats', '1'])
  return json.loads(output.splitlines()[0])


def main() -> None:
  """Parses the command line and prints the rows."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--model', default='efficientnet_lite0', help='or "all", or "families"'
  )
  parser.add_argument('--image-size', type=int, default=128)
  parser.add_argument('--batch-size', type=int, default=32)
  parser.add_argument('--against', choices=['torch'], default=None)
  parser.add_argument('--no-compile', action='store_true')
  parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS)
  parser.add_argument('--repeats', type=int, default=15)
  parser.add_argument('--default-malloc', action='store_true')
  arguments = parser.parse_args()
  groups = {'all': MODELS, 'families': FAMILIES}
  if arguments.model in groups:
    for name in groups[arguments.model]:
      print(json.dumps(run_alone(name)), flush=True)
  else:
    if not arguments.default_malloc:
      allocator.keep_freed_memory()
    row = run(arguments.model, arguments) | machine.versions()
    print(json.dumps(row))


if __name__ == '__main__':
  main()
