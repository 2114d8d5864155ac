"""PyTorch's steps of the pairs, on the same card: what an own process prints.

  PYTHON -m benchmarks.accelerator.torch_side JOB.json

channels_last, autocast to bfloat16, fused AdamW, clipped gradients, BatchNorm
with frozen statistics; eager and through torch.compile. The images of a batch
are uint8 on the device and are normalised there; they are not augmented, which
our steps do. Needs PyTorch and NumPy alone, not JAX.

JOB.json: {'pair': name, 'student', 'teacher', 'image_size', 'classes',
'batches': {arm: [batch, ...]}, 'done': [key, ...], 'seconds': to spend,
'timing': seconds of one timing, 'rounds': of it}.
"""

import functools
import gc
import json
import pathlib
import statistics
import sys
import time

import numpy as np
import torch
from torch import nn

from benchmarks import torch_models
from benchmarks.torch_models import (
  BasicBlock,
  Mobile,
  ViT,
  conv_norm,
  loss_of,
)

MODES = ('eager', 'compiled')


class Bottleneck(nn.Module):
  """ResNet's 1x1, 3x3, 1x1; the stride is in the 3x3 (He et al., v1.5)."""

  expansion = 4

  def __init__(self, cin, width, stride):
    super().__init__()
    cout = width * self.expansion
    self.body = nn.Sequential(
      *conv_norm(cin, width, 1, activation=nn.ReLU),
      *conv_norm(width, width, 3, stride, activation=nn.ReLU),
      *conv_norm(width, cout, 1),
    )
    same = stride == 1 and cin == cout
    self.skip = (
      nn.Identity() if same else nn.Sequential(*conv_norm(cin, cout, 1, stride))
    )

  def forward(self, x):
    """x [B, C, H, W]."""
    return torch.relu(self.body(x) + self.skip(x))


class ResNet(nn.Module):
  """He et al. 2016 of either block."""

  def __init__(self, block, expansion, depths, classes):
    super().__init__()
    parts = [*conv_norm(3, 64, 7, 2, activation=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate(depths):
      width = 64 * 2**stage
      for number in range(depth):
        stride = 2 if stage and not number else 1
        parts.append(block(channels, width, stride))
        channels = width * expansion
    self.body = nn.Sequential(*parts)
    self.head = nn.Linear(channels, classes)

  def forward(self, x):
    """x [B, 3, H, W] -> logits."""
    return self.head(self.body(x).mean((2, 3)))


# Width 1.1, depth 1.2, the first and the last stage as deep as Lite0's.
_LITE2 = (
  (3, 1, 1, 16, 1),
  (3, 2, 6, 24, 3),
  (5, 2, 6, 48, 3),
  (3, 2, 6, 88, 4),
  (5, 1, 6, 120, 4),
  (5, 2, 6, 208, 5),
  (3, 1, 6, 352, 1),
)
# Our name -> twin(classes, image size).
TWINS = {
  'efficientnet_lite0': torch_models.TWINS['efficientnet_lite0'],
  'efficientnet_lite2': lambda k, _: Mobile(_LITE2, 32, 1280, k),
  'resnet18': lambda k, _: ResNet(BasicBlock, 1, (2, 2, 2, 2), k),
  'resnet34': lambda k, _: ResNet(BasicBlock, 1, (3, 4, 6, 3), k),
  'resnet50': lambda k, _: ResNet(Bottleneck, 4, (3, 4, 6, 3), k),
  'resnet152': lambda k, _: ResNet(Bottleneck, 4, (3, 8, 36, 3), k),
  'vit_tiny_patch16_224': torch_models.TWINS['vit_tiny_patch16_224'],
  'vit_small_patch16_224': lambda k, size: ViT(384, 6, 12, k, size),
  'vit_large_patch16_224': lambda k, size: ViT(1024, 16, 24, k, size),
}


def make_step(job: dict, arm: str, batch: int, mode: str, device: str):
  """A function that takes one step and returns the loss, on the device."""
  size, classes = job['image_size'], job['classes']

  def network(name):
    module = TWINS[name](classes, size).to(device)
    return module.to(memory_format=torch.channels_last)

  student, teacher = network(job['student']), None
  torch_models.train_mode(student, norm_train=False)
  if arm == 'online':
    teacher = network(job['teacher']).eval().requires_grad_(False)
  learner, guide = student, teacher
  if mode == 'compiled':
    learner = torch.compile(student)
    guide = torch.compile(teacher) if teacher is not None else None
  options = {'fused': True} if device == 'cuda' else {}
  optimizer = torch.optim.AdamW(student.parameters(), 1e-3, **options)
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
  images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
  labels = torch.from_numpy(rng.integers(0, classes, batch)).to(device)

  def step():
    x = ((images.float() - 127.0) / 128.0).contiguous(
      memory_format=torch.channels_last
    )
    with torch.autocast(device, torch.bfloat16):
      said = None
      if guide is not None:
        with torch.no_grad():
          said = guide(x).float()
      logits = learner(x)
    loss = loss_of(logits.float(), labels, said)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    return loss.detach()

  return step


def time_calls(step, seconds: float, rounds: int, wait) -> tuple:
  """As programs.time_calls; (its figures, the last loss)."""

  def run(count):
    begun = time.perf_counter()
    for _ in range(count):
      loss = step()
    wait()
    return (time.perf_counter() - begun) / count, loss

  run(3)
  one, _ = run(1)
  steps = max(1, min(50, int(seconds / rounds / one)))
  found = [run(steps) for _ in range(rounds)]
  each = [1e3 * spent for spent, _ in found]
  return {
    'ms': round(statistics.median(each), 3),
    'ms_min_max': [round(min(each), 3), round(max(each), 3)],
    'rounds': rounds,
    'steps': steps,
  }, found[-1][1]


def measure(job: dict, arm: str, batch: int, mode: str, device: str) -> dict:
  """A row; of what does not fit or does not compile, that it does not."""
  row = {'key': key_of(job, arm, batch, mode), 'pair': job['pair']}
  row |= {'arm': arm, 'batch': batch, 'mode': mode, 'device': device}
  wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
  try:
    begun = time.perf_counter()
    step = make_step(job, arm, batch, mode, device)
    step()
    wait()
    row['first_step_s'] = round(time.perf_counter() - begun, 1)
    found, loss = time_calls(step, job['timing'], job['rounds'], wait)
    row |= found | {'finite': bool(torch.isfinite(loss))}
    row['images_per_second'] = round(1e3 * batch / found['ms'], 1)
  # torch.compile raises what its backends raise.
  except Exception as error:
    said = f'{type(error).__name__}: {error}'.splitlines()[0][:300]
    kind = 'out_of_memory' if 'out of memory' in said.lower() else 'broken'
    row[kind] = said
  if device == 'cuda':
    row['peak_mib'] = round(torch.cuda.max_memory_allocated() / 2**20)
    torch.cuda.reset_peak_memory_stats()
  return row


def key_of(job: dict, arm: str, batch: int, mode: str) -> str:
  """Of a row."""
  return f'{job["pair"]} {arm} {batch} {mode}'


def main() -> None:
  """Reads the job and prints a JSON line for each row."""
  job = json.loads(pathlib.Path(sys.argv[1]).read_text())
  until = time.monotonic() + job['seconds']
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.manual_seed(0)
  if device == 'cuda':
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision('high')
  write = functools.partial(print, flush=True)
  name = torch.cuda.get_device_name() if device == 'cuda' else 'cpu'
  write(json.dumps({'key': 'torch', 'version': torch.__version__, 'on': name}))
  left = []
  for mode in job['modes']:
    for arm, batches in job['batches'].items():
      for batch in batches:
        key = key_of(job, arm, batch, mode)
        if key in job['done']:
          continue
        if time.monotonic() > until:
          left.append(key)
          continue
        write(json.dumps(measure(job, arm, batch, mode, device)))
        gc.collect()
        if device == 'cuda':
          torch.cuda.empty_cache()
        torch.compiler.reset()
  if left:
    write(json.dumps({'left_out': ', '.join(left)}))


if __name__ == '__main__':
  main()
