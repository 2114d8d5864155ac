"""Fine-tuning as a PyTorch user would write it, the other side of end_to_end.

  python -m benchmarks.torch_training JOB.json RESULT.json

JPEGs through torchvision's transforms in DataLoader workers, channels_last,
fused AdamW, the teacher under no_grad in every step. `benchmarks.end_to_end`
writes the job and reads the result.
"""

import json
import math
import pathlib
import sys
import time

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks import torch_models
from tlkd_jax import allocator, models


def load_twin(path: str, name: str, classes: int) -> torch.nn.Module:
  """The twin of our model with our weights.

  Raises:
    AssertionError: its pooled features or logits are not ours.
  """
  design = models.create_model(name, num_classes=classes).spec.build.args[0]
  net = torch_models.InvertedNet(design, classes)
  with np.load(path) as archive:
    arrays = dict(archive)
  images = torch.from_numpy(arrays.pop('__images')).permute(0, 3, 1, 2)
  expected = {k: arrays.pop(f'__{k}') for k in ('pre_logits', 'logits')}
  net.load(arrays)
  net = net.to(memory_format=torch.channels_last).eval()
  with torch.no_grad():
    head, net.head = net.head, torch.nn.Identity()
    found = {'pre_logits': net(images)}
    net.head = head
    found['logits'] = head(found['pre_logits'])
  for key, value in expected.items():
    # A new head is zero on both sides.
    error = np.abs(found[key].numpy() - value).max() / max(value.std(), 1e-6)
    assert error < 1e-3, f'{name}: {key} of the two sides differ by {error}'
  return net


def loaders(job: dict) -> dict[str, DataLoader]:
  """Train, validation and test batches of the folder."""
  size, (mean, std) = job['image_size'], job['normalize']
  last = [
    transforms.ToTensor(),
    transforms.Normalize([m / 255 for m in mean], [s / 255 for s in std]),
  ]
  cubic = transforms.InterpolationMode.BICUBIC
  train = [
    transforms.RandomResizedCrop(size, scale=(0.35, 1.0)),
    transforms.RandomHorizontalFlip(),
  ]
  evaluate = [
    transforms.Resize(round(size / 0.875), cubic),
    transforms.CenterCrop(size),
  ]
  result = {}
  for split in ('train', 'validation', 'test'):
    steps = train if split == 'train' else evaluate
    result[split] = DataLoader(
      datasets.ImageFolder(
        pathlib.Path(job['data']) / split, transforms.Compose(steps + last)
      ),
      batch_size=job['batch_size'],
      shuffle=split == 'train',
      drop_last=split == 'train',
      num_workers=job['workers'],
      persistent_workers=split != 'test',
    )
  return result


@torch.no_grad()
def accuracy(model, batches) -> float:
  """Top-1."""
  model.eval()
  right = total = 0
  for images, labels in batches:
    images = images.contiguous(memory_format=torch.channels_last)
    right += int((model(images).argmax(1) == labels).sum())
    total += len(labels)
  return right / total


def make_optimizer(model, job: dict, num_steps: int):
  """AdamW and a linear warm-up into half a cosine."""
  kernels = [p for p in model.parameters() if p.ndim > 1]
  others = [p for p in model.parameters() if p.ndim <= 1]
  decay = job['weight_decay']
  optimizer = torch.optim.AdamW(
    [
      {'params': kernels, 'weight_decay': decay},
      {'params': others, 'weight_decay': 0.0},
    ],
    lr=job['learning_rate'],
    fused=True,
  )
  warmup = round(0.1 * num_steps)

  def factor(step):
    if step < warmup:
      return step / warmup
    done = (step - warmup) / max(num_steps - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

  return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def loss_of(logits, labels, guide, temperature: float = 2.0):
  """Cross-entropy, and the teacher's softened outputs where it has some."""
  loss = F.cross_entropy(logits, labels)
  if guide is None:
    return loss
  soft = F.kl_div(
    F.log_softmax(logits / temperature, 1),
    F.log_softmax(guide / temperature, 1),
    reduction='batchmean',
    log_target=True,
  )
  return loss + temperature**2 * soft


def fine_tune(job: dict) -> dict:
  """One run; seconds of each epoch (training, validation, checkpoint)."""
  torch.manual_seed(0)
  batches = loaders(job)
  classes = len(batches['train'].dataset.classes)
  student = load_twin(job['student'], job['student_name'], classes)
  teacher = None
  if job['teacher']:
    teacher = load_twin(job['teacher'], job['teacher_name'], classes)
  num_steps = job['epochs'] * len(batches['train'])
  optimizer, schedule = make_optimizer(student, job, num_steps)
  seconds, best = [], -1.0
  folder = pathlib.Path(job['workdir'])
  for _ in range(job['epochs']):
    start = time.perf_counter()
    torch_models.train_mode(student, norm_train=False)
    for images, labels in batches['train']:
      images = images.contiguous(memory_format=torch.channels_last)
      guide = None
      if teacher is not None:
        with torch.no_grad():
          guide = teacher(images)
      loss = loss_of(student(images), labels, guide)
      optimizer.zero_grad(set_to_none=True)
      loss.backward()
      torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
      optimizer.step()
      schedule.step()
    validated = accuracy(student, batches['validation'])
    state = {'model': student.state_dict(), 'optimizer': optimizer.state_dict()}
    torch.save(state, folder / 'latest.pt')
    if validated > best:
      best = validated
      torch.save(student.state_dict(), folder / 'best.pt')
    seconds.append(time.perf_counter() - start)
  student.load_state_dict(torch.load(folder / 'best.pt'))
  test = accuracy(student, batches['test'])
  return {
    'epoch_seconds': seconds,
    'test_top1': test,
    'versions': {'torch': torch.__version__},
  }


def main() -> None:
  """Reads the job, runs it, writes the result."""
  allocator.keep_freed_memory()
  job = json.loads(pathlib.Path(sys.argv[1]).read_text())
  pathlib.Path(sys.argv[2]).write_text(json.dumps(fine_tune(job)))


if __name__ == '__main__':
  main()
