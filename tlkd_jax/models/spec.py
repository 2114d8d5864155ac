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


def pointwise_leaf(key: str) -> TorchLeaf:
  """A linear layer's kernel that torch has as a 1x1 convolution's."""
  return TorchLeaf(
    key, lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]
  )


@dataclasses.dataclass(frozen=True)
class TextDesign:
  """Numbers of the tower of texts that an image tower was trained with.

  Attributes:
    width: length of a token.
    heads: attention heads.
    depth: number of blocks.
    embedding: length of the embeddings of texts and images.
    hidden: width of the blocks' hidden layer; None is four times `width`.
    activation: of the hidden layers, a key of layers.ACTIVATIONS.
    epsilon: of every LayerNorm.
    length: tokens of a text, padding included.
    vocabulary: tokens that there are.
    causal: as CLIP's: a token sees those before it alone, the one that ends the
      text is read, and projections, of images too, have no bias. As SigLIP's
      otherwise: all see all, the last one is read, which may be padding, and
      the projection, of texts alone, has a bias.
  """

  width: int
  heads: int
  depth: int
  embedding: int
  hidden: int | None = None
  activation: str = 'gelu'
  epsilon: float = 1e-5
  length: int = 77
  vocabulary: int = 49408
  causal: bool = True


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
    torch_constants: entries of the state dict that are no weights, such as
      indices -> what they are; written, and not missed when reading.
    old_keys: (regular expression, replacement) pairs that turn names in old
      files into the present ones, applied in order when reading.
    beside: regular expressions of what the library's files may hold beside this
      network, such as another tower; it is not read.
    head: path of the last linear layer(s); replaced for another class count.
    stem: path of the first convolution; adapted to other channel counts.
    more_stems: paths of further convolutions of the image itself, likewise.
    weights: where pretrained weights come from, for `hub.resolve`; None when
      the user must bring a file.
    stages: names of `features`, in order.
    multiple: of which the sides of its images are, in pixels: of its patches.
    fixed_size: no other image size than the native one is taken.
    rectified: the head is applied to each pixel, and its outputs go through a
      ReLU before their mean, so that logits are not linear in pre_logits.
    embeddings: names of the embeddings, keys of losses.stages.EMBEDDINGS.
    distilled: whether it has a distillation token with a head of its own.
    texts: of the tower of texts that it was trained with; None without one.
  """

  build: Callable[..., nnx.Module]
  image_size: int
  torch_modules: Callable[[], dict[str, str]]
  mean: tuple[float, float, float] = IMAGENET_MEAN
  std: tuple[float, float, float] = IMAGENET_STD
  interpolation: str = 'bicubic'
  crop: float = 0.875
  torch_leaves: Callable[[], dict[str, TorchLeaf]] = dict
  torch_constants: Callable[[], dict[str, np.ndarray]] = dict
  old_keys: tuple[tuple[str, str], ...] = ()
  beside: tuple[str, ...] = ()
  head: tuple[str, ...] = ('head',)
  stem: str = 'stem.conv'
  more_stems: tuple[str, ...] = ()
  weights: str | None = None
  stages: tuple[str, ...] = ('stage1', 'stage2', 'stage3', 'stage4')
  multiple: int = 1
  fixed_size: bool = False
  rectified: bool = False
  embeddings: tuple[str, ...] = ('pooled',)
  distilled: bool = False
  texts: TextDesign | None = None

  def side_near(self, wanted: int) -> int:
    """The side of its images that is nearest to a wanted one, in pixels."""
    if self.fixed_size:
      return self.image_size
    return self.multiple * max(1, round(wanted / self.multiple))

  @property
  def linear_head(self) -> bool:
    """Whether logits are one linear layer on pre_logits."""
    return len(self.head) == 1 and not self.rectified

  @property
  def heads_in_words(self) -> str:
    """How many heads it has, and of what kind, for messages."""
    return 'one with a ReLU behind' if self.rectified else str(len(self.head))
