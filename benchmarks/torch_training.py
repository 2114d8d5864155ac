"""Fine-tuning as a PyTorch user would write it, the other side of end_to_end.

  python -m benchmarks.torch_training JOB.json RESULT.json

JPEGs through Pillow in DataLoader workers (the operations of torchvision's
transforms, without needing torchvision), channels_last, fused AdamW, the
teacher under no_grad in every step. `benchmarks.end_to_end`
writes the job and reads the result.
"""

import json
import math
import pathlib
import sys
import time

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks import torch_models
from tlkd_jax import models
from tlkd_jax.runtime import allocator


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


class Folder(Dataset):
  """JPEGs in class folders, cropped, normalised, [3, S, S] float32."""

  def __init__(self, root: pathlib.Path, job: dict, train: bool):
    self.classes = sorted(p.name for p in root.iterdir())
    self.files = sorted(root.rglob('*.jpg'))
    self.size, self.train = job['image_size'], train
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in job['normalize'])
    self.mean, self.std = mean, std

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, i: int):
    image = Image.open(self.files[i]).convert('RGB')
    if self.train:
      image = image.resize((self.size, self.size), 2, random_box(*image.size))
      if torch.rand(()) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    else:
      image = self._centre(image)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    label = self.classes.index(self.files[i].parent.name)
    return (pixels - self.mean) / self.std, label

  def _centre(self, image):
    short = round(self.size / 0.875)
    scale = short / min(image.size)
    image = image.resize([round(n * scale) for n in image.size], 3)
    left, top = ((n - self.size) // 2 for n in image.size)
    return image.crop((left, top, left + self.size, top + self.size))


def random_box(width: int, height: int) -> tuple[float, ...]:
  """The box of an Inception crop (Szegedy et al. 2015), area 0.35 to 1."""
  for _ in range(10):
    area = width * height * (0.35 + 0.65 * float(torch.rand(())))
    ratio = math.exp(math.log(3 / 4) * (1 - 2 * float(torch.rand(()))))
    w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
    if w <= width and h <= height:
      left = (width - w) * float(torch.rand(()))
      top = (height - h) * float(torch.rand(()))
      return left, top, left + w, top + h
  side = min(width, height)
  left, top = (width - side) / 2, (height - side) / 2
  return left, top, left + side, top + side


def loaders(job: dict) -> dict[str, DataLoader]:
  """Train, validation and test batches of the folder."""
  result = {}
  for split in ('train', 'validation', 'test'):
    train = split == 'train'
    result[split] = DataLoader(
      Folder(pathlib.Path(job['data']) / split, job, train),
      batch_size=job['batch_size'],
      shuffle=train,
      drop_last=train,
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
      loss = torch_models.loss_of(student(images), labels, guide)
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
