"""New families against PyTorch: training steps, and features of teachers.

  python -m benchmarks.families --torch-python PYTHON [--part step | features]

PYTHON has torch and timm, and torchvision for its models; its process
(benchmarks/families_torch.py) stays beside ours, and the two are run in turn,
each idle while the other is measured. Prints one JSON line per model: `step` is
forward, backward and a Nesterov SGD update with BatchNorm in train mode of a
batch of 32 at 128 px, or the native size of those that take no other;
`features` what the last layer of a frozen teacher reads. All in float32 on
random weights; PyTorch is eager, as its tensors come (`eager`) and
channels_last, and the ratio is of the faster. Medians with minimum and maximum;
compilation is left out. A last line has the largest ratio of each part.

A model that PyTorch's side cannot make is a row that says why; a form of which
its process dies (MobileOne's channels_last steps do) is left out of its row.
`--quick` takes a few of them, in under ten minutes on two idle cores; all take
about 40.
"""

import argparse
import contextlib
import functools
import json
import subprocess
import sys
import time
from collections.abc import Generator

import jax
import numpy as np

from benchmarks import machine, train_step
from tlkd_jax import models
from tlkd_jax.models.weights import pretrained
from tlkd_jax.runtime import allocator

# One small variant of each family -> side of its images in pixels.
STEPS = {
  'timm/mobilenetv4_conv_small': 128,
  'timm/lcnet_100': 128,
  'timm/repvit_m0_9': 128,
  'timm/mobileone_s0': 128,
  'timm/fastvit_t8': 128,
  'timm/fastvit_sa12': 128,
  'timm/ghostnetv2_100': 128,
  'timm/efficientvit_b0': 128,
  'torchvision/shufflenet_v2_x1_0': 128,
  'torchvision/squeezenet1_1': 128,
  'timm/mixer_s32_224': 224,
  'timm/resnetv2_50': 128,
  'timm/resnetv2_50x1_bit': 128,
  'timm/seresnet18': 128,
  'timm/seresnext26d_32x4d': 128,
  'timm/convnextv2_atto': 128,
  # At 128 px timm makes smaller windows, another network.
  'timm/swin_tiny_patch4_window7_224': 224,
  'timm/eva02_tiny_patch14_224': 126,
  'timm/vit_small_patch14_dinov2': 126,
  'timm/vit_small_patch16_dinov3': 128,
  'timm/vit_base_patch32_clip_224': 128,
  'timm/vit_base_patch16_siglip_224': 128,
}
FEATURES = {
  'timm/vit_small_patch14_dinov2': 98,
  'timm/convnext_tiny': 128,
  'timm/swin_tiny_patch4_window7_224': 224,
}
_QUICK = {
  'step': ('timm/mobilenetv4_conv_small', 'timm/lcnet_100'),
  'features': ('timm/vit_small_patch14_dinov2',),
}
PARTS = {'step': STEPS, 'features': FEATURES}
SIDES = ('eager', 'channels_last')


class Ended(RuntimeError):
  """PyTorch's process is gone."""


class Other:
  """PyTorch's process; it is asked a line at a time."""

  def __init__(self, command: list[str]):
    """Starts it."""
    self._command = command
    self._process = self._start()

  def _start(self) -> subprocess.Popen:
    return subprocess.Popen(
      self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

  def restart(self) -> None:
    """Starts it again after it has ended."""
    self.close()
    self._process = self._start()

  def ask(self, **request) -> dict:
    """Its answer to a request.

    Raises:
      Ended: it did.
    """
    assert self._process.stdin is not None
    assert self._process.stdout is not None
    try:
      print(json.dumps(request), file=self._process.stdin, flush=True)
    except BrokenPipeError:
      pass
    answer = self._process.stdout.readline()
    if not answer:
      said = f"PyTorch's side ended at {request}; see its error"
      raise Ended(said, request.get('run'))
    return json.loads(answer)

  def close(self) -> None:
    """Ends it."""
    self._process.communicate()


@contextlib.contextmanager
def started(command: list[str]) -> Generator[Other]:
  """PyTorch's side, while this is open."""
  other = Other(command)
  try:
    yield other
  finally:
    other.close()


def ours(name: str, image_size: int, batch_size: int, part: str):
  """A function that runs our side once."""
  draw = np.random.default_rng(0)
  shape = batch_size, image_size, image_size, 3
  images = draw.standard_normal(shape).astype(np.float32)
  if part == 'step':
    labels = draw.integers(0, 1000, batch_size)
    return train_step.ours(name, image_size, images, labels)['step']
  model = models.create_model(name)
  variables = model.init(jax.random.key(0))

  @jax.jit
  def features(params, model_state, images):
    return model.apply(params, model_state, images)[0]['pre_logits']

  run = functools.partial(features, *variables, jax.numpy.asarray(images))
  return lambda: jax.block_until_ready(run())


def run(name: str, image_size: int, part: str, other: Other, arguments) -> dict:
  """One row of the table."""
  batch = arguments.batch_size
  row = {
    'model': name,
    'part': part,
    'image_size': image_size,
    'batch_size': batch,
  }
  request = {
    'name': name,
    'image_size': image_size,
    'batch_size': batch,
    'part': part,
  }
  made = other.ask(**request)
  if 'failed' in made:
    return row | made
  shapes = models.create_model(name).params_shape
  row['parameters'] = pretrained.count_params(shapes)
  # Ours are of the native size, timm's of this one.
  positions = pretrained.count_params(shapes.get('position', {}))
  count = row['parameters'] - positions
  if made['parameters'] != count:
    return row | {
      'failed': f'{made["parameters"]} parameters there, {count} here'
    }
  mine = ours(name, image_size, batch, part)
  times, died = measure(mine, other, arguments.repeats, request)
  for side, values in times.items():
    row |= machine.summary(side, values)
  if died:
    row['died'] = died
  if len(times) == 1:
    return row | {'failed': "PyTorch's process died in each form"}
  fastest = min(row[f'{side}_ms'] for side in times if side != 'ours')
  row['ratio'] = round(row['ours_ms'] / fastest, 3)
  if part == 'features':
    for side in times:
      row[f'{side}_images_per_second'] = round(
        1e3 * batch / row[f'{side}_ms'], 1
      )
  return row


def measure(mine, other: Other, repeats: int, request: dict):
  """All sides in turn; ({side: [milliseconds, ...]}, sides that died)."""
  sides, died = ['ours', *SIDES], []
  while True:
    try:
      return _in_turn(mine, other, repeats, sides), died
    except Ended as error:
      side = str(error.args[1])
      print(f'{side} died and is left out', file=sys.stderr, flush=True)
      sides.remove(side)
      died.append(side)
      other.restart()
      other.ask(**request)


def _in_turn(mine, other, repeats, sides) -> dict[str, list[float]]:
  times: dict[str, list[float]] = {side: [] for side in sides}
  # The first two compile, and fill pools of memory.
  for number in range(-2, repeats):
    for side, values in times.items():
      # Idle threads of the side before spin for a while.
      time.sleep(0.05)
      if side == 'ours':
        start = time.perf_counter()
        mine()
        taken = 1e3 * (time.perf_counter() - start)
      else:
        taken = other.ask(run=side)['ms']
      if number >= 0:
        values.append(taken)
  return times


def main() -> None:
  """Parses the command line and prints the rows."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--torch-python', default=sys.executable)
  parser.add_argument('--part', nargs='+', choices=PARTS, default=list(PARTS))
  parser.add_argument('--model', nargs='+', default=None)
  parser.add_argument('--batch-size', type=int, default=32)
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--quick', action='store_true')
  arguments = parser.parse_args()
  allocator.keep_freed_memory()
  command = [arguments.torch_python, '-m', 'benchmarks.families_torch']
  largest = {}
  with started(command) as other:
    there = other.ask(versions=True)
    for part in arguments.part:
      usual = _QUICK[part] if arguments.quick else PARTS[part]
      for name in arguments.model or usual:
        size = PARTS[part].get(name)
        if size is None:
          parser.error(f'--model {name}; accepted: {", ".join(PARTS[part])}')
        row = run(name, size, part, other, arguments) | machine.versions()
        row['versions'] = row['versions'] | there
        print(json.dumps(row), flush=True)
        ratio = row.get('ratio', 0.0)
        largest[part] = max(ratio, largest.get(part, 0.0))
        jax.clear_caches()
  print(json.dumps({'largest': largest}))


if __name__ == '__main__':
  main()
