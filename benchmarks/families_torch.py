"""PyTorch's side of benchmarks/families.py, in an environment of its own.

  python -m benchmarks.families_torch

Reads a request a line and answers with a line of JSON. It needs torch and timm
(and torchvision for its own models), and neither jax nor this package:

  {"name": NAME, "image_size": S, "batch_size": B, "part": "step" | "features"}
      makes both memory formats; {"parameters": N}, position embeddings left
      out, which timm makes for the size
  {"run": "eager" | "channels_last"}
      runs one once; {"ms": MILLISECONDS}
  {"versions": true}
      {"torch": ..., "timm": ...}
"""

import importlib.metadata
import json
import sys
import time

import torch
from torch.nn import functional as F

_FORMATS = {
  'eager': torch.contiguous_format,
  'channels_last': torch.channels_last,
}
_CLASSES = 1000


def create(name: str, image_size: int) -> torch.nn.Module:
  """timm's or torchvision's model of one of our names, random weights."""
  library, _, bare = name.partition('/')
  if library == 'torchvision':
    import torchvision

    return torchvision.models.get_model(bare, num_classes=_CLASSES)
  import timm

  try:
    return timm.create_model(
      bare, num_classes=_CLASSES, img_size=image_size, drop_rate=0.0
    )
  # Of convolutional networks, which take any size.
  except TypeError:
    return timm.create_model(bare, num_classes=_CLASSES, drop_rate=0.0)


def make(request: dict) -> tuple[dict, int]:
  """({format: function that runs it once}, parameters but of positions)."""
  size, batch = request['image_size'], request['batch_size']
  images = torch.randn(batch, 3, size, size)
  labels = torch.randint(_CLASSES, (batch,))
  sides, count = {}, 0
  for side, memory_format in _FORMATS.items():
    model = create(request['name'], size).to(memory_format=memory_format)
    count = sum(
      p.numel() for key, p in model.named_parameters() if key != 'pos_embed'
    )
    x = images.contiguous(memory_format=memory_format)
    build = {'step': make_step, 'features': make_features}[request['part']]
    sides[side] = build(model, x, labels)
  return sides, count


def make_step(model, x, labels):
  """Forward, backward and Nesterov SGD, BatchNorm in training mode."""
  optimizer = torch.optim.SGD(
    model.parameters(), 1e-3, momentum=0.9, nesterov=True, fused=True
  )

  def step():
    model.train()
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(model(x), labels).backward()
    optimizer.step()

  return step


def make_features(model, x, labels):
  """What the last layer reads, without a gradient."""
  del labels
  model.eval()

  @torch.inference_mode()
  def features():
    return model.forward_head(model.forward_features(x), pre_logits=True)

  return features


def versions() -> dict:
  """Of what is measured here."""
  found = {}
  for name in ('torch', 'torchvision', 'timm'):
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def main() -> None:
  """Answers until the input ends."""
  sides = {}
  for line in sys.stdin:
    request = json.loads(line)
    if 'versions' in request:
      answer = versions()
    elif 'run' in request:
      start = time.perf_counter()
      sides[request['run']]()
      answer = {'ms': 1e3 * (time.perf_counter() - start)}
    else:
      sides.clear()
      try:
        made, count = make(request)
        sides |= made
        answer = {'parameters': count}
      # Said to the other side, which goes on with the next model.
      except Exception as error:
        answer = {'failed': f'{type(error).__name__}: {error}'}
    print(json.dumps(answer), flush=True)


if __name__ == '__main__':
  main()
