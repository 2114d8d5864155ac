"""About how long runs will take, said before the first of them starts.

The multiply-adds of costs.py over the rate at which this machine does those of
a small block, forward and backward, in about a second. Kinds of layers differ
by two in their rate, and the time to compile one by more: the forecast is
rounded widely, and progress.py corrects it once steps of a run are measured.
"""

import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from tlkd_jax import models
from tlkd_jax.data import Dataset
from tlkd_jax.models import describe
from tlkd_jax.models.layers.convolutions import conv2d
from tlkd_jax.models.network import DTYPES
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.texts import duration
from tlkd_jax.settings import Settings
from tlkd_jax.training import (
  checkpoints,
  costs,
  crossfit,
  ensemble,
  features,
  inputs,
  networks,
  preparation,
  probes,
  shares,
  targets,
)
from tlkd_jax.training import workdir as workdirs
from tlkd_jax.training.feature_store import row_of
from tlkd_jax.training.summary import SPLITS

# Minutes that a forecast is rounded to.
_ROUND = (2, 3, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 480, 720, 1440)
# Seconds to compile one array of weights' part of a step, by those of the
# block's three convolutions; a forward pass takes a fifth.
_COMPILES = 1 / 4
_FORWARD = 1 / 5
# Of the block: images for each platform, their side, channels, inner channels.
_IMAGES = {'cpu': 32}
_MORE_IMAGES = 1024
_SIDE, _CHANNELS, _INNER = 16, 24, 144
# For so long it is run.
_SECONDS = 0.3

# Runs that consist of others.
_PARTS = {crossfit.KIND: crossfit.parts, ensemble.KIND: ensemble.parts}

Runs = Sequence[tuple[pathlib.Path, Settings]]


@dataclasses.dataclass(frozen=True)
class Work:
  """What runs take of a machine.

  Neither terms of transfer baselines are counted, nor logistic regression, nor
  what is no arithmetic.

  Attributes:
    macs: multiply-adds.
    compiled: arrays of weights in the programs to compile, those of forward
      passes alone counted as a part of one.
  """

  macs: float
  compiled: float

  def __add__(self, other: 'Work') -> 'Work':
    return Work(self.macs + other.macs, self.compiled + other.compiled)


def say(runs: Runs, dataset: Dataset, mesh: Mesh) -> None:
  """Logs about how long the runs of a command will take together.

  Args:
    runs: workdir and settings of each, steps settled; finished ones are left
      out, one that was begun counts whole.
    dataset: of all of them.
    mesh: devices.
  """
  if not sharding.is_lead():
    return
  left = [
    settings
    for workdir, settings in runs
    if not (workdir / 'summary.json').exists()
  ]
  if not left:
    return
  for line in dict.fromkeys(stored(one, dataset) for one in left):
    if line:
      logging.info('%s', line)
  work = sum((count(one, dataset) for one in left), Work(0, 0))
  rate, compiling = measure_rates(left[0].compute_dtype)
  if mesh.devices.flat[0].platform != 'cpu':
    rate *= mesh.size
  logging.info(
    '%s on this machine, compilation included: %.2g multiply-adds at about '
    '%.2g a second; a guess, until steps are measured',
    *(rounded(work.macs / rate + work.compiled * compiling), work.macs, rate),
  )


def stored(settings: Settings, dataset: Dataset) -> str:
  """What a probe keeps of its images for others; '' of another run."""
  if settings.fit not in probes.KINDS:
    return ''
  own = networks.learner_names(settings)[0]
  section = settings.network(networks.role(own))
  sizes = {name: len(split) for name, split in dataset.splits.items()}
  images = sizes['train'] * (1 + section.probe_views)
  images += sum(sizes[name] for name in SPLITS)
  look = networks.look(settings, own)
  width = _described(section.name, look.image_size, len(dataset.class_names))[2]
  dtype, most = settings.targets.features_dtype, settings.targets.features_mib
  row = row_of({'pre_logits': width}, dtype)
  size = features.bytes_of(images, 1, row)
  said = f'features of {section.name}: {images} x {width} numbers of {dtype}'
  if size > most * 2**20:
    return f'{said}, {features.in_words(size)}, beyond targets.features_mib'
  return f'{said}, {features.in_words(size)} in {features.folder_of(settings)}'


def rounded(seconds: float) -> str:
  """'about 5 min': no more than is known."""
  if seconds < 90:
    return 'about a minute or less'
  minutes = min(_ROUND, key=lambda near: abs(math.log(60 * near / seconds)))
  if seconds > 1.5 * 60 * _ROUND[-1]:
    return f'about {seconds / 86400:.0f} days'
  return f'about {duration(60 * minutes)}'


def count(settings: Settings, dataset: Dataset) -> Work:
  """What one run takes.

  Args:
    settings: of the run; a teacher that it names need not be there yet.
    dataset: of the run.
  """
  own = networks.learner_names(settings)[0]
  sizes = {name: len(split) for name, split in dataset.splits.items()}
  at_end = sum(sizes[name] for name in SPLITS)
  each, arrays = _network(settings, own, dataset)
  if settings.fit in _PARTS:
    members = _PARTS[settings.fit](settings, pathlib.Path()).values()
    done = Work(len(members) * each * at_end, _FORWARD * arrays)
    return sum((count(one, dataset) for one in members), done)
  if settings.fit in probes.KINDS:
    views = 1 + settings.network(networks.role(own)).probe_views
    seen = views * sizes['train'] + at_end
    return Work(each * seen, 2 * _FORWARD * arrays)
  steps = workdirs.num_steps(settings)
  if settings.cost_matched:
    steps = costs.count(settings, dataset).total_steps
  between = settings.eval_every_steps or steps or 1
  evaluated = at_end + sizes['validation'] * (-(-steps // between))
  learn = costs.passes(settings) * steps * shares.images_per_step(settings)
  done = Work(0, 0)
  for name in networks.learner_names(settings):
    each, arrays = _network(settings, name, dataset)
    done += Work(each * (learn + evaluated), arrays * (1 + _FORWARD))
  asked = _asked(settings, steps, sizes['train']) + at_end
  for name in networks.teacher_runs(settings):
    each, arrays = _network(settings, name, dataset)
    done += Work(each * asked, 2 * _FORWARD * arrays)
  return done


def _asked(settings: Settings, steps: int, num_train: int) -> int:
  """Images of which a teacher speaks; those without labels count each time."""
  unlabelled = shares.learns_without_labels(settings)
  return targets.images_seen(
    steps * settings.batch_size,
    num_train,
    mode='online' if unlabelled else settings.targets.mode,
    views=settings.targets.views,
    balanced=inputs.is_balanced(settings),
  )


def _network(
  settings: Settings, name: str, dataset: Dataset
) -> tuple[int, int]:
  """Multiply-adds of an image, and arrays of weights."""
  run = networks.teacher_runs(settings).get(name)
  num_classes = len(dataset.class_names)
  if run is None or (pathlib.Path(run) / 'summary.json').exists():
    size = networks.look(settings, name).image_size
    if run is None:
      model = settings.network(networks.role(name)).name
    else:
      model = checkpoints.read_description(run).model
    return _described(model, size, num_classes)[:2]
  # It is fitted before.
  teacher = settings.teacher
  size = teacher.image_size or preparation.image_size(settings)
  each, arrays, _ = _described(teacher.name, size, num_classes)
  joined = teacher.fit == crossfit.KIND
  return each * (teacher.probe_folds if joined else 1), arrays


@functools.lru_cache
def _described(model: str, size: int, num_classes: int) -> tuple[int, int, int]:
  """Multiply-adds of an image, arrays of weights, length of pre_logits."""
  found = describe.describe(model, size, num_classes=num_classes)
  shape = models.create_model(model, num_classes=num_classes).params_shape
  macs = found.macs + found.attention_macs
  return macs, len(jax.tree.leaves(shape)), found.pre_logits


@functools.lru_cache
def measure_rates(dtype: str) -> tuple[float, float]:
  """Multiply-adds a second, and seconds to compile for an array of weights.

  Args:
    dtype: of the compute, a key of DTYPES.
  """
  platform = jax.default_backend()
  count = _IMAGES.get(platform, _MORE_IMAGES)
  # Of numpy: each shape that jnp fills is a program to compile.
  images = np.ones((count, _SIDE, _SIDE, _CHANNELS), DTYPES[dtype])
  kernels = [
    np.full(shape, 0.01, images.dtype)
    for shape in (
      (1, 1, _CHANNELS, _INNER),
      (3, 3, 1, _INNER),
      (1, 1, _INNER, _CHANNELS),
    )
  ]

  def block(kernels, x):
    wide, depthwise, narrow = kernels
    x = jax.nn.relu6(conv2d(x, wide))
    padding = ((1, 1), (1, 1))
    x = jax.nn.relu6(conv2d(x, depthwise, padding=padding, groups=_INNER))
    return jnp.mean(jnp.square(conv2d(x, narrow)))

  begun = time.monotonic()
  program = jax.jit(jax.grad(block)).lower(kernels, images).compile()
  compiled = time.monotonic() - begun
  kernels, images = jax.device_put((kernels, images))
  jax.block_until_ready(program(kernels, images))
  begun, repeats = time.monotonic(), 0
  # The mean of a while, not the best: others may use the machine too.
  while (spent := time.monotonic() - begun) < _SECONDS:
    jax.block_until_ready(program(kernels, images))
    repeats += 1
  macs = 3 * count * _SIDE**2 * sum(kernel.size for kernel in kernels)
  return repeats * macs / spent, compiled * _COMPILES
