"""How much the transfer baselines say, and which weights of them do not lose.

  python -m benchmarks.transfer_weights scales FOLDER_OR_ZIP --sizes 64 224
  python -m benchmarks.transfer_weights tries FOLDER_OR_ZIP --size 64 \\
    --seeds 0 1 --steps 60 tl bss=1e-5 lwf=0.01 "lwf=0.01 source_scale=0.2"

`scales`: what the pretrained EfficientNet-Lite0 says of training images at each
size: the pooled features, their smallest squared singular value in a batch of
32 (BSS), the logits of its own head (LwF, Co-Tuning) and how sure they are, the
feature maps (DELTA), and Co-Tuning's table: how far the rows of two classes are
apart, and those of two halves of one class, which is noise.

`tries`: fine-tunes it on 20 images a class with the weights of config.transfer
that are given, `tl` without any. One program serves all tries, as the weights
are its arguments. Judged after the last step on validation and on 600 training
images outside the subset; test images are not read. `source_scale` multiplies
the source head's logits in both of its terms. Prints one JSON line a try.
"""

import argparse
import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tlkd_jax import settings
from tlkd_jax.data import pipeline
from tlkd_jax.evaluation import metrics
from tlkd_jax.losses import supervised, transfer
from tlkd_jax.models.network import last_layer
from tlkd_jax.training import (
  decoding,
  drawing,
  guides,
  networks,
  optimizers,
  start,
)

BATCH = 32
TERMS = ('delta', 'bss', 'lwf', 'co_tuning')
_OFF = dict.fromkeys(TERMS, 0.0) | {'source_scale': 1.0}
_JUDGED_BEYOND_VALIDATION = 600


def config_of(data: str, size: int, seed: int, per_class: int, steps: int):
  """The settings of a try; the transfer terms are weighed by its step."""
  config = settings.config_of('tl', f'dataset=folder:{data}')
  config.image_size, config.seed = size, seed
  config.num_train_per_class, config.num_steps = per_class, steps
  config.label_smoothing = 0.0
  return settings.from_config(config)


def shown(dataset, rows: np.ndarray) -> np.ndarray:
  """Training images as they are evaluated."""
  split = dataset.splits['train']
  chosen = dataclasses.replace(split, images=np.asarray(split.images[rows]))
  return start.as_evaluated(dataset, chosen).images


def speaker(source):
  """(constants, images) -> outputs of the pretrained network and its head."""

  @jax.jit
  def speak(constants, images):
    said = guides.speak(source.network, constants, jnp.float32(images))
    return said | {'logits': transfer.head_logits(said, said['head'])}

  given = {'params': source.params, 'model_state': source.model_state}
  constants = jax.device_put(given)
  return lambda images: jax.device_get(speak(constants, images))


def scales(data: str, size: int) -> dict[str, float]:
  """See the top of this file."""
  config = config_of(data, size, 0, 40, 1)
  dataset = decoding.load_dataset(config)
  learner = networks.load(config, 'student', dataset.class_names)
  speak = speaker(start.load_source(config, learner))
  split = dataset.splits['train']
  rows = np.random.default_rng(0).permutation(len(split))
  rows = rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH)
  said = [speak(shown(dataset, batch)) for batch in rows]
  labels = split.labels[rows.ravel()]
  features = np.stack([s['pre_logits'] for s in said])
  logits = np.concatenate([s['logits'] for s in said])
  p = np.asarray(jax.nn.softmax(logits))
  classes = [p[labels == k] for k in range(len(dataset.class_names))]
  tables = [own.mean(0) for own in classes]
  noise = [far(own[::2].mean(0), own[1::2].mean(0)) for own in classes]
  stages = said[0]['features']
  maps = [np.stack([s['features'][name] for s in said]) for name in stages]
  singular = np.linalg.svd(features, compute_uv=False)
  apart = [
    far(one, other)
    for number, one in enumerate(tables)
    for other in tables[:number]
  ]
  return {
    'size': size,
    'features_rms': float(np.sqrt((features**2).mean())),
    'smallest_squared_singular': float((singular[:, -1] ** 2).mean()),
    'logits_std': float(logits.std()),
    'mean_largest_p': float(p.max(-1).mean()),
    'maps_rms': [float(np.sqrt((m**2).mean())) for m in maps],
    'rows_apart': float(np.mean(apart)),
    'halves_apart': float(np.mean(noise)),
  }


def far(p: np.ndarray, q: np.ndarray) -> float:
  """Total variation between two distributions."""
  return float(np.abs(p - q).sum() / 2)


def make_step(config, dataset, learner):
  """update(learned, optimizer state, start, weights, batch, seed, number)."""
  network = learner.network
  chosen = config.optimizer
  schedule = optimizers.learning_rate_schedule(
    chosen.learning_rate,
    config.num_steps,
    chosen.warmup_fraction,
    chosen.final_fraction,
  )
  optimizer = optimizers.make_optimizer(network.model, schedule, chosen)
  augmentation = drawing.make_augmentation(config, dataset)

  def loss_fn(learned, begun, weights, images, labels, key):
    said, _ = network.model.apply(
      learned['weights'],
      learner.model_state,
      network.prepare(images),
      train=True,
      key=key,
    )
    was = guides.speak(network, begun, images)
    scale = weights['source_scale']
    own = scale * transfer.head_logits(said, learned['source_head'])
    first = scale * transfer.head_logits(was, begun['source_head'])
    terms = {
      'delta': transfer.delta(said, was, labels, mean_over_positions=True),
      'bss': transfer.bss(said['pre_logits']),
      'lwf': transfer.lwf(own, first),
      'co_tuning': transfer.co_tuning(own, labels, begun['relationship']),
    }
    soft = supervised.soft_labels(labels, network.model.num_classes, 0.0)
    hard = supervised.soft_cross_entropy(said['logits'], soft)
    total = hard + sum(weights[name] * terms[name] for name in TERMS)
    return total, terms | {'hard': hard}

  @jax.jit
  def update(learned, state, begun, weights, batch, seed, number):
    images = augmentation(
      batch['image'], batch['index'], batch['view'], seed=seed
    )
    key = jax.random.fold_in(jax.random.key(seed), number)
    gradients, values = jax.grad(loss_fn, has_aux=True)(
      learned, begun, weights, images, batch['label'], key
    )
    updates, state = optimizer.update(gradients, state, learned)
    return optax.apply_updates(learned, updates), state, values

  return optimizer, update


def judged(dataset, config) -> tuple[np.ndarray, np.ndarray]:
  """Validation, and training images that are not in the subset, no test."""
  seed, size = config.seed, config.image_size
  path = config.dataset.partition(':')[2]
  whole = decoding.load_dataset(config_of(path, size, seed, 0, 1))
  split = whole.splits['train']
  free = ~np.isin(split.indices, dataset.splits['train'].indices)
  rows = np.random.default_rng(seed).permutation(np.flatnonzero(free))
  rows = np.sort(rows[:_JUDGED_BEYOND_VALIDATION])
  validation = dataset.splits['validation']
  images = [shown(whole, rows), np.asarray(validation.images)]
  labels = [split.labels[rows], validation.labels]
  return np.concatenate(images), np.concatenate(labels)


def tries(data: str, size: int, seed: int, steps: int, weights: list[dict]):
  """Yields a row for each dict of weights, see the top of this file."""
  config = config_of(data, size, seed, 20, steps)
  dataset = decoding.load_dataset(config)
  images, labels = judged(dataset, config)
  learner = networks.load(config, 'student', dataset.class_names)
  source = start.load_source(config, learner)
  split = dataset.splits['train']
  speak = speaker(source)
  own = speak(shown(dataset, np.arange(len(split))))['logits']
  begun = {
    'params': learner.params,
    'model_state': learner.model_state,
    'source_head': last_layer(source.network.model, source.params),
  }
  optimizer, update = make_step(config, dataset, learner)
  predict = jax.jit(
    lambda learned, images: learner.network.model.apply(
      learned, learner.model_state, learner.network.prepare(images)
    )[0]['logits']
  )
  for given in weights:
    began = time.perf_counter()
    chosen = _OFF | given
    table = transfer.category_relationship(
      jax.nn.softmax(chosen['source_scale'] * own),
      split.labels,
      len(dataset.class_names),
    )
    constants = jax.device_put(begun | {'relationship': table})
    head = begun['source_head']
    learned = {'weights': learner.params, 'projector': {}, 'source_head': head}
    learned = jax.device_put(learned)
    state, values = optimizer.init(learned), {}
    strengths = jax.tree.map(jnp.float32, chosen)
    batches = pipeline.train_iterator(
      split, batch_size=BATCH, seed=seed, num_batches=steps
    )
    for number, batch in enumerate(batches):
      read = ('image', 'label', 'index', 'view')
      learned, state, values = update(
        learned,
        state,
        constants,
        strengths,
        {name: jnp.asarray(batch[name]) for name in read},
        jnp.int32(seed),
        jnp.int32(number),
      )
    logits = np.concatenate(
      [
        predict(learned['weights'], jnp.float32(images[at : at + BATCH]))
        for at in range(0, len(images), BATCH)
      ]
    )
    yield {
      'size': size,
      'seed': seed,
      'weights': given,
      'judged': len(labels),
      'top1': metrics.top1(logits, labels),
      'nll': metrics.nll(logits, labels),
      'last_terms': {k: float(v) for k, v in values.items()},
      'seconds': time.perf_counter() - began,
    }


def weights_of(text: str) -> dict[str, float]:
  """'lwf=0.01 source_scale=0.2' -> a dict; 'tl' is {}.

  Raises:
    argparse.ArgumentTypeError: a name that is no term, or no number.
  """
  if text == 'tl':
    return {}
  found = {}
  for item in text.split():
    name, _, value = item.partition('=')
    try:
      found[name] = float(value)
    except ValueError:
      found = {}
    if name not in _OFF or name not in found:
      raise argparse.ArgumentTypeError(
        f'{item!r}; accepted: tl, or NAME=NUMBER of {", ".join(_OFF)}'
      )
  return found


def main(argv: list[str] | None = None):
  """See the top of this file."""
  parser = argparse.ArgumentParser(description=__doc__)
  kinds = parser.add_subparsers(dest='kind', required=True)
  sizes = kinds.add_parser('scales')
  sizes.add_argument('data')
  sizes.add_argument('--sizes', type=int, nargs='+', default=[64, 96, 128, 224])
  runs = kinds.add_parser('tries')
  runs.add_argument('data')
  runs.add_argument('weights', nargs='+', type=weights_of)
  runs.add_argument('--size', type=int, default=64)
  runs.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
  runs.add_argument('--steps', type=int, default=60)
  given = parser.parse_args(argv)
  if given.kind == 'scales':
    for size in given.sizes:
      print(json.dumps(scales(given.data, size)), flush=True)
    return
  for seed in given.seeds:
    for row in tries(given.data, given.size, seed, given.steps, given.weights):
      print(json.dumps(row), flush=True)


if __name__ == '__main__':
  main()
