"""Time of one training step and of one forward pass, ours against PyTorch's.

  python -m benchmarks.train_step --model efficientnet_lite0 \\
    --image-size 128 --batch-size 32 --against torch

Prints one JSON line per model. A step is forward, backward and a Nesterov SGD
update with BatchNorm in train mode, in float32, on 1,000 classes; both sides
run in turn in one process, medians are quoted, compilation is left out.
`step_ratio` and `forward_ratio` are ours / PyTorch's (channels_last, eager).
Both sides run with `tlkd_jax.allocator`'s settings, as a training run does;
`--default-malloc` leaves the C library as it is, for both.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tlkd_jax import allocator, models

MODELS = (
  'efficientnet_lite0',
  'mobilenet_v2',
  'resnet18',
  'convnext_atto',
  'vit_tiny_patch16_224',
)


def ours(name, image_size, images, labels, learning_rate):
  """(forward, step) closures, compiled, over one of our models."""
  model = models.create_model(name, dropout=0.0)
  params, model_state = jax.device_get(model.init(jax.random.key(0)))
  params, model_state = jax.device_put((params, model_state))
  optimizer = optax.sgd(learning_rate, momentum=0.9, nesterov=True)
  x, y = jnp.asarray(images), jnp.asarray(labels)

  @jax.jit
  def forward(params, model_state, x):
    return model.apply(params, model_state, x)[0]['logits']

  def loss_fn(params, model_state):
    outputs, new = model.apply(
      params, model_state, x, train=True, norm_train=True
    )
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(
      outputs['logits'], y
    )
    return losses.mean(), new

  def update(params, model_state, opt_state):
    grads, new = jax.grad(loss_fn, has_aux=True)(params, model_state)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), new, opt_state

  update = jax.jit(update, donate_argnums=(0, 1, 2))
  frozen = jax.tree.map(jnp.copy, (params, model_state))
  state = [params, model_state, optimizer.init(params)]

  def run_forward():
    jax.block_until_ready(forward(*frozen, x))

  def run_step():
    state[:] = update(*state)
    jax.block_until_ready(state)

  return run_forward, run_step


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


def run(name: str, image_size: int, batch_size: int, against, repeats: int):
  """One row of the table."""
  rng = np.random.default_rng(0)
  shape = (batch_size, image_size, image_size, 3)
  images = rng.standard_normal(shape).astype(np.float32)
  labels = rng.integers(0, 1000, batch_size)
  forward, step = ours(name, image_size, images, labels, 1e-3)
  sides = {'forward_ours': forward, 'step_ours': step}
  row = {'model': name, 'image_size': image_size, 'batch_size': batch_size}
  if against == 'torch':
    from benchmarks import torch_models

    theirs = torch_models.make_side(name, image_size, images, labels, 1e-3)
    sides |= dict(zip(('forward_torch', 'step_torch'), theirs, strict=True))
  times = measure(sides, repeats)
  for key, values in times.items():
    row[f'{key}_ms'] = round(statistics.median(values), 1)
    row[f'{key}_min_max'] = [round(min(values), 1), round(max(values), 1)]
  if against:
    for part in ('forward', 'step'):
      ratio = row[f'{part}_ours_ms'] / row[f'{part}_torch_ms']
      row[f'{part}_ratio'] = round(ratio, 3)
  return row


def main() -> None:
  """Parses the command line and prints the rows."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--model', default='efficientnet_lite0', help='or "all"')
  parser.add_argument('--image-size', type=int, default=128)
  parser.add_argument('--batch-size', type=int, default=32)
  parser.add_argument('--against', choices=['torch'], default=None)
  parser.add_argument('--repeats', type=int, default=15)
  parser.add_argument('--default-malloc', action='store_true')
  arguments = parser.parse_args()
  if not arguments.default_malloc:
    allocator.keep_freed_memory()
  names = MODELS if arguments.model == 'all' else (arguments.model,)
  for name in names:
    row = run(
      name,
      arguments.image_size,
      arguments.batch_size,
      arguments.against,
      arguments.repeats,
    )
    print(json.dumps(row), flush=True)


if __name__ == '__main__':
  main()
