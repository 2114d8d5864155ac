"""What the package knows of one model variant, as data."""

import dataclasses
from collections.abc import Callable

import numpy as np
from flax import nnx

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclasses.dataclass(frozen=True)
class TorchLeaf:
  """One state-dict entry whose layout no general rule covers.

  Attributes:
    key: the whole torch key.
    to_flax: torch array -> our array.
    to_torch: our array -> torch array.
    zero_if_absent: whether files lack it where it is zero.
  """

  key: str
  to_flax: Callable[[np.ndarray], np.ndarray]
  to_torch: Callable[[np.ndarray], np.ndarray]
  zero_if_absent: bool = False


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """How to build a variant, prepare its images and name its torch weights.

  Attributes:
    build: build(num_classes, *, in_channels, dropout, drop_path, rngs) -> the
      NNX module; `dropout` None means the published rate.
    image_size: native side in pixels.
    mean: per channel, of images in 0..255.
    std: per channel, of images in 0..255.
    interpolation: 'bilinear' or 'bicubic', of the published preprocessing.
    crop: crop side / resized short side of the published preprocessing.
    torch_modules: path of a submodule ('stem.conv') -> torch prefix
      ('conv_stem'), for every submodule that owns parameters.
    torch_leaves: path of a parameter -> its exceptional torch entry.
    old_keys: (regular expression, replacement) pairs that turn names in old
      files into the present ones, applied in order when reading.
    beside: regular expressions of what the library's files may hold beside this
      network, such as another tower; it is not read.
    head: path of the last linear layer(s); replaced for another class count.
    stem: path of the first convolution; adapted to other channel counts.
    weights: where pretrained weights come from, for `hub.resolve`; None when
      the user must bring a file.
    stages: names of `features`, in order.
    embeddings: names of the embeddings, keys of losses.stages.EMBEDDINGS.
    distilled: whether it has a distillation token with a head of its own.
  """

  build: Callable[..., nnx.Module]
  image_size: int
  torch_modules: Callable[[], dict[str, str]]
  mean: tuple[float, float, float] = IMAGENET_MEAN
  std: tuple[float, float, float] = IMAGENET_STD
  interpolation: str = 'bicubic'
  crop: float = 0.875
  torch_leaves: Callable[[], dict[str, TorchLeaf]] = dict
  old_keys: tuple[tuple[str, str], ...] = ()
  beside: tuple[str, ...] = ()
  head: tuple[str, ...] = ('head',)
  stem: str = 'stem.conv'
  weights: str | None = None
  stages: tuple[str, ...] = ('stage1', 'stage2', 'stage3', 'stage4')
  embeddings: tuple[str, ...] = ('pooled',)
  distilled: bool = False
