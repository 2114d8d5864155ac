"""PyTorch twins of some variants.

Same blocks, widths, depths and activations as ours, written as a PyTorch user
would. `TWINS` are for timing: strided convolutions pad symmetrically, which
spares PyTorch the extra padding operator that TensorFlow's SAME needs.
`InvertedNet` computes what our EfficientNet-Lite computes, from our weights.
"""

import functools
import math

import torch
from torch import nn
from torch.nn import functional as F


def conv_norm(cin, cout, kernel, stride=1, groups=1, activation=None):
  """Convolution, BatchNorm and activation as a list of modules."""
  layers = [
    nn.Conv2d(
      cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False
    ),
    nn.BatchNorm2d(cout),
  ]
  return [*layers, activation(inplace=True)] if activation else layers


class Inverted(nn.Module):
  """Expand, depthwise, project, with a residual where shapes allow."""

  def __init__(self, cin, cout, kernel, stride, expand):
    super().__init__()
    hidden = cin * expand
    parts = []
    if expand > 1:
      parts += conv_norm(cin, hidden, 1, activation=nn.ReLU6)
    parts += conv_norm(
      hidden, hidden, kernel, stride, groups=hidden, activation=nn.ReLU6
    )
    parts += conv_norm(hidden, cout, 1)
    self.body = nn.Sequential(*parts)
    self.residual = stride == 1 and cin == cout

  def forward(self, x):
    """x [B, C, H, W]."""
    return x + self.body(x) if self.residual else self.body(x)


class Mobile(nn.Module):
  """EfficientNet-Lite0 and MobileNetV2: (kernel, stride, expand, out, n)."""

  def __init__(self, rows, stem, neck, classes):
    super().__init__()
    parts = conv_norm(3, stem, 3, 2, activation=nn.ReLU6)
    channels = stem
    for kernel, stride, expand, out, repeats in rows:
      for i in range(repeats):
        first = stride if i == 0 else 1
        parts.append(Inverted(channels, out, kernel, first, expand))
        channels = out
    parts += conv_norm(channels, neck, 1, activation=nn.ReLU6)
    self.body = nn.Sequential(*parts)
    self.head = nn.Linear(neck, classes)

  def forward(self, x):
    """x [B, 3, H, W] -> logits."""
    return self.head(self.body(x).mean((2, 3)))


class BasicBlock(nn.Module):
  """ResNet's two 3x3 convolutions."""

  def __init__(self, cin, cout, stride):
    super().__init__()
    self.body = nn.Sequential(
      *conv_norm(cin, cout, 3, stride, activation=nn.ReLU),
      *conv_norm(cout, cout, 3),
    )
    same = stride == 1 and cin == cout
    self.skip = (
      nn.Identity() if same else nn.Sequential(*conv_norm(cin, cout, 1, stride))
    )

  def forward(self, x):
    """x [B, C, H, W]."""
    return F.relu(self.body(x) + self.skip(x), inplace=True)


class ResNet18(nn.Module):
  """He et al. 2016."""

  def __init__(self, classes):
    super().__init__()
    parts = [*conv_norm(3, 64, 7, 2, activation=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for out in (64, 128, 256, 512):
      stride = 1 if out == 64 else 2
      parts += [BasicBlock(channels, out, stride), BasicBlock(out, out, 1)]
      channels = out
    self.body = nn.Sequential(*parts)
    self.head = nn.Linear(512, classes)

  def forward(self, x):
    """x [B, 3, H, W] -> logits."""
    return self.head(self.body(x).mean((2, 3)))


class ChannelNorm(nn.LayerNorm):
  """LayerNorm over the channels of [B, C, H, W]."""

  def forward(self, x):
    """x [B, C, H, W]."""
    return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
  """7x7 depthwise, LayerNorm, 1x1, GELU, 1x1, layer scale."""

  def __init__(self, dim):
    super().__init__()
    self.depthwise = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
    self.norm = ChannelNorm(dim, eps=1e-6)
    self.mlp = nn.Sequential(
      nn.Conv2d(dim, 4 * dim, 1), nn.GELU(), nn.Conv2d(4 * dim, dim, 1)
    )
    self.gamma = nn.Parameter(torch.full((dim, 1, 1), 1e-6))

  def forward(self, x):
    """x [B, C, H, W]."""
    return x + self.gamma * self.mlp(self.norm(self.depthwise(x)))


class ConvNeXtAtto(nn.Module):
  """Widths 40, 80, 160, 320; depths 2, 2, 6, 2."""

  def __init__(self, classes):
    super().__init__()
    dims, depths = (40, 80, 160, 320), (2, 2, 6, 2)
    parts = [nn.Conv2d(3, dims[0], 4, 4), ChannelNorm(dims[0], eps=1e-6)]
    for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
      if i:
        parts += [
          ChannelNorm(dims[i - 1], eps=1e-6),
          nn.Conv2d(dims[i - 1], dim, 2, 2),
        ]
      parts += [ConvNeXtBlock(dim) for _ in range(depth)]
    self.body = nn.Sequential(*parts)
    self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
    self.head = nn.Linear(dims[-1], classes)

  def forward(self, x):
    """x [B, 3, H, W] -> logits."""
    return self.head(self.norm(self.body(x).mean((2, 3))))


class ViTBlock(nn.Module):
  """Pre-norm attention and MLP."""

  def __init__(self, dim, heads):
    super().__init__()
    self.heads = heads
    self.norm1 = nn.LayerNorm(dim, eps=1e-6)
    self.qkv = nn.Linear(dim, 3 * dim)
    self.proj = nn.Linear(dim, dim)
    self.norm2 = nn.LayerNorm(dim, eps=1e-6)
    self.mlp = nn.Sequential(
      nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
    )

  def forward(self, x):
    """x [B, N, D]."""
    b, n, d = x.shape
    qkv = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, d // self.heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v)
    x = x + self.proj(y.transpose(1, 2).reshape(b, n, d))
    return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
  """Patch 16, a class token; Dosovitskiy et al. 2021."""

  def __init__(self, dim, heads, depth, classes, size):
    super().__init__()
    self.patch = nn.Conv2d(3, dim, 16, 16)
    self.token = nn.Parameter(torch.zeros(1, 1, dim))
    self.position = nn.Parameter(torch.zeros(1, (size // 16) ** 2 + 1, dim))
    self.blocks = nn.Sequential(*(ViTBlock(dim, heads) for _ in range(depth)))
    self.norm = nn.LayerNorm(dim, eps=1e-6)
    self.head = nn.Linear(dim, classes)

  def forward(self, x):
    """x [B, 3, H, W] -> logits."""
    x = self.patch(x).flatten(2).transpose(1, 2)
    x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
    return self.head(self.norm(self.blocks(x + self.position))[:, 0])


_LITE0 = (
  (3, 1, 1, 16, 1),
  (3, 2, 6, 24, 2),
  (5, 2, 6, 40, 2),
  (3, 2, 6, 80, 3),
  (5, 1, 6, 112, 3),
  (5, 2, 6, 192, 4),
  (3, 1, 6, 320, 1),
)
_MOBILENET_V2 = (
  (3, 1, 1, 16, 1),
  (3, 2, 6, 24, 2),
  (3, 2, 6, 32, 3),
  (3, 2, 6, 64, 4),
  (3, 1, 6, 96, 3),
  (3, 2, 6, 160, 3),
  (3, 1, 6, 320, 1),
)

# Our name -> twin(classes, image size).
TWINS = {
  'efficientnet_lite0': lambda k, _: Mobile(_LITE0, 32, 1280, k),
  'mobilenet_v2': lambda k, _: Mobile(_MOBILENET_V2, 32, 1280, k),
  'resnet18': lambda k, _: ResNet18(k),
  'convnext_atto': lambda k, _: ConvNeXtAtto(k),
  'vit_tiny_patch16_224': lambda k, size: ViT(192, 3, 12, k, size),
}


class SameConv(nn.Conv2d):
  """Pads as TensorFlow's SAME, by what the input's size asks for."""

  def forward(self, x):
    """x [B, C, H, W]."""
    pads = []
    for size, kernel, stride in zip(
      x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
    ):
      total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
      pads += [total // 2, total - total // 2]
    return super().forward(F.pad(x, pads) if any(pads) else x)


class InvertedNet(nn.Module):
  """Our InvertedResidualNet of a design without squeeze-excite and fusing."""

  def __init__(self, design, classes):
    super().__init__()
    self.design, self.units = design, nn.ModuleDict()

    def unit(name, cin, cout, kernel, stride=1, groups=1, act=True):
      strided = stride > 1 and design.padding == 'same'
      conv = (SameConv if strided else nn.Conv2d)(
        cin,
        cout,
        kernel,
        stride,
        0 if strided else kernel // 2,
        groups=groups,
        bias=False,
      )
      norm = nn.BatchNorm2d(cout, design.epsilon, design.momentum)
      parts = [conv, norm, *([nn.ReLU6(inplace=True)] if act else [])]
      self.units[name.replace('.', '_')] = nn.Sequential(*parts)

    unit('stem', 3, design.stem, 3, 2)
    for s, stage in enumerate(design.stages):
      for b, block in enumerate(stage):
        path, width = f'blocks.{s}.{b}', block.hidden
        if 'expand' in block.parts:
          unit(f'{path}.expand', block.in_channels, width, 1)
        spatial = block.kernel_size, block.stride
        unit(f'{path}.depthwise', width, width, *spatial, groups=width)
        unit(f'{path}.project', width, block.out_channels, 1, act=False)
    unit('neck', design.stages[-1][-1].out_channels, design.neck, 1)
    self.dropout = nn.Dropout(design.dropout)
    self.head = nn.Linear(design.neck, classes)

  def forward(self, x):
    """x [B, 3, H, W] -> logits."""
    x = self.units['stem'](x)
    for s, stage in enumerate(self.design.stages):
      for b, block in enumerate(stage):
        y = x
        for part in block.parts:
          y = self.units[f'blocks_{s}_{b}_{part}'](y)
        same = block.stride == 1 and block.in_channels == block.out_channels
        x = x + y if same else y
    x = self.units['neck'](x).mean((2, 3))
    return self.head(self.dropout(x))

  def load(self, arrays):
    """Takes our weights: {dotted path: array}, every entry of both sides."""
    ours = {path: torch.from_numpy(v.copy()) for path, v in arrays.items()}
    state = {
      'head.weight': ours.pop('head.kernel').T,
      'head.bias': ours.pop('head.bias'),
    }
    names = {'scale': 'weight', 'bias': 'bias'}
    names |= {'mean': 'running_mean', 'var': 'running_var'}
    for path, value in ours.items():
      unit, kind, leaf = path.rsplit('.', 2)
      prefix = f'units.{unit.replace(".", "_")}'
      if kind == 'conv':
        state[f'{prefix}.0.weight'] = value.permute(3, 2, 0, 1)
      else:
        state[f'{prefix}.1.{names[leaf]}'] = value
    missing, extra = self.load_state_dict(state, strict=False)
    missing = [k for k in missing if not k.endswith('num_batches_tracked')]
    if missing or extra:
      raise ValueError(f'weights that do not fit: {missing}, {extra}')


def make_side(
  name, image_size, images, labels, learning_rate, *, compiled=False
):
  """{part: function that runs it once} over a twin or torchvision's model.

  Images are float [B, S, S, 3] numpy. A step is forward, backward and Nesterov
  SGD, with BatchNorm in train mode or frozen; memory format is channels_last;
  `compiled` puts the model through torch.compile.
  """
  model = _create(name, image_size).to(memory_format=torch.channels_last)
  for module in model.modules():
    if type(module).__name__ in ('Dropout', 'StochasticDepth'):
      module.p = 0.0
  x = torch.from_numpy(images).permute(0, 3, 1, 2)
  x = x.contiguous(memory_format=torch.channels_last)
  y = torch.from_numpy(labels).long()
  optimizer = torch.optim.SGD(
    model.parameters(), learning_rate, momentum=0.9, nesterov=True, fused=True
  )
  network = torch.compile(model) if compiled else model

  @torch.no_grad()
  def forward():
    model.eval()
    return network(x)

  def step(norm_train):
    train_mode(model, norm_train)
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(network(x), y).backward()
    optimizer.step()

  return {
    'forward': forward,
    'step': functools.partial(step, True),
    'frozen_step': functools.partial(step, False),
  }


def _create(name, image_size):
  if name in TWINS:
    return TWINS[name](1000, image_size)
  import torchvision

  return torchvision.models.get_model(name)


def train_mode(model, norm_train):
  """Training mode, in which BatchNorm may keep its running statistics."""
  model.train()
  if not norm_train:
    for module in model.modules():
      if isinstance(module, nn.BatchNorm2d):
        module.eval()


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
