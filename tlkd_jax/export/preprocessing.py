"""An ONNX model that takes an image as it is decoded and says probabilities.

Short side, centre crop, normalisation and softmax stand in the graph, so that
who runs it needs neither Pillow nor numbers from a file beside it. onnxruntime
resizes uint8 images with Pillow's own integer arithmetic: of random images
about two values in a thousand differ, each by 1 of 255.
"""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tlkd_jax.data import transforms
from tlkd_jax.evaluation.predictions import softmax
from tlkd_jax.export import sessions
from tlkd_jax.export.student import Student, checked_probabilities
from tlkd_jax.training.descriptions import Description

IMAGE = 'image'
PROBABILITIES = 'probabilities'
NAMES = 'names'

# Of operators: Resize with antialiasing.
FIRST_OPSET = 18

# Of ONNX's modes those that are Pillow's filters; it has no box, no Lanczos,
# and its nearest neighbour rounds ties otherwise. Pillow's cubic has a = -0.5.
_MODES = {
  'bilinear': 'mode="linear"',
  'bicubic': 'mode="cubic", cubic_coeff_a=-0.5',
}

# Height and width of the images on which a written file is run.
_SIZES = ((90, 61), (61, 90), (7, 5), (340, 455), (9, 200), (800, 320))

_BEFORE = """
<ir_version: {ir}, opset_import: ["": {opset}]>
prepare (uint8[height, width, 3] {image}) => (float[1, 3, {size}, {size}] x)
<int64[1] zero = {{0}}, int64[2] two = {{2, 2}},
 int64[2] rows = {{0, 1}}, int64[2] grid = {{2, 3}}, int64[2] planes = {{1, 3}},
 int64[1] longest = {{{aspect}}}, int64[1] short = {{{short}}},
 int64[2] square = {{{size}, {size}}}>
{{
  sides = Shape <start=0, end=2> ({image})
  least = ReduceMin <keepdims=1> (sides)
  limit = Mul (least, longest)
  kept = Min (sides, limit)
  spare = Sub (sides, kept)
  half = Div (spare, two)
  odd = Mod (spare, two)
  uneven = Mod (half, two)
  up = Mul (odd, uneven)
  first = Add (half, up)
  last = Add (first, kept)
  strip = Slice ({image}, first, last, rows)
  chw = Transpose <perm=[2, 0, 1]> (strip)
  nchw = Unsqueeze (chw, zero)
  longer = Mul (kept, short)
  sizes = Div (longer, least)
  target = Concat <axis=0> (planes, sizes)
  resized = Resize <{mode}, antialias=1, exclude_outside=1,
    coordinate_transformation_mode="half_pixel"> (nchw, , , target)
  rest = Sub (sizes, square)
  middle = Div (rest, two)
  odd_rest = Mod (rest, two)
  uneven_middle = Mod (middle, two)
  round_up = Mul (odd_rest, uneven_middle)
  top = Add (middle, round_up)
  bottom = Add (top, square)
  cut = Slice (resized, top, bottom, grid)
  pixels = Cast <to=1> (cut)
  centred = Sub (pixels, mean)
  x = Div (centred, std)
}}
"""

_AFTER = """
<ir_version: {ir}, opset_import: ["": {opset}]>
finish (float[1, {classes}] logits) => (float[{classes}] {probabilities})
<int64[1] zero = {{0}}>
{{
  shares = Softmax <axis=-1> (logits)
  {probabilities} = Squeeze (shares, zero)
}}
"""


def check(interpolation: str, opset: int | None) -> None:
  """Raises ValueError where no graph can prepare images as a run does.

  Args:
    interpolation: of the run.
    opset: that is asked for; None is the default.
  """
  if interpolation not in _MODES:
    raise ValueError(
      f'--with-preprocessing: the run resizes images by {interpolation}, which '
      f'no operator of ONNX does as Pillow does; accepted: {", ".join(_MODES)}'
    )
  if opset is not None and opset < FIRST_OPSET:
    raise ValueError(
      f'--with-preprocessing with --opset {opset}: antialiased resizing came '
      f'with {FIRST_OPSET}; accepted: {FIRST_OPSET} or more'
    )


def add(
  content: bytes,
  description: Description,
  mean: Sequence[float],
  std: Sequence[float],
) -> bytes:
  """Puts preprocessing before an ONNX classifier, and softmax after it.

  Args:
    content: a serialised model, `images` float32 [batch, 3, S, S] -> `logits`
      float32 [batch, K], of opset 18 or more.
    description: of the run: size, crop, interpolation, names of K classes.
    mean: of 3 channels, in 0..255.
    std: likewise.

  Returns:
    A serialised model: `image` uint8 [height, width, 3], RGB and upright, of
    any size -> `probabilities` float32 [K] and `names` string [K].
  """
  import onnx
  from onnx import compose, helper, numpy_helper

  model = onnx.load_model_from_string(content)
  names = list(description.class_names)
  (opset,) = (
    entry.version for entry in model.opset_import if entry.domain == ''
  )
  about = {'ir': model.ir_version, 'opset': opset, 'image': IMAGE}
  size = description.image_size
  before = onnx.parser.parse_model(
    _BEFORE.format(
      **about,
      size=size,
      short=transforms.resize_size(size, description.crop),
      aspect=transforms.MAX_ASPECT,
      mode=_MODES[description.interpolation],
    )
  )
  for name, values in (('mean', mean), ('std', std)):
    array = np.asarray(values, np.float32).reshape(1, 3, 1, 1)
    before.graph.initializer.append(numpy_helper.from_array(array, name))
  after = onnx.parser.parse_model(
    _AFTER.format(**about, classes=len(names), probabilities=PROBABILITIES)
  )
  shown = [name.encode('utf-8', 'backslashreplace') for name in names]
  after.graph.node.append(
    helper.make_node('Constant', [], [NAMES], value_strings=shown)
  )
  after.graph.output.append(
    helper.make_tensor_value_info(NAMES, onnx.TensorProto.STRING, [len(names)])
  )
  for part in (before, after):
    # Those of the operators of other domains, which a part does not use.
    del part.opset_import[:]
    part.opset_import.extend(model.opset_import)
  (taken,), (given,) = model.graph.input, model.graph.output
  whole = compose.merge_models(
    _prefixed(before, 'prepare_', IMAGE), model, [('prepare_x', taken.name)]
  )
  whole = compose.merge_models(
    whole,
    _prefixed(after, 'finish_', PROBABILITIES, NAMES),
    [(given.name, 'finish_logits')],
  )
  whole.ir_version = model.ir_version
  return whole.SerializeToString()


def _prefixed(model: Any, prefix: str, *kept: str) -> Any:
  """A model whose names are those of no other, but for the ones to be kept."""
  from onnx import compose

  model = compose.add_prefix(model, prefix)
  names = {f'{prefix}{name}': name for name in kept}
  graph = model.graph
  for value in (*graph.input, *graph.output):
    value.name = names.get(value.name, value.name)
  for node in graph.node:
    for values in (node.input, node.output):
      values[:] = [names.get(name, name) for name in values]
  return model


def load(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
  """The file's model: uint8 [H, W, 3] -> probabilities [K], on the CPU."""
  session = sessions.session(path)
  return lambda image: session.run([PROBABILITIES], {IMAGE: image})[0]


def checked(student: Student, path: pathlib.Path, out: pathlib.Path) -> str:
  """Compares a written model with the package's own answers to images.

  Args:
    student: the reference.
    path: what was written.
    out: the file's name to be, for messages.

  Returns:
    How they compare, for the user.

  Raises:
    RuntimeError: probabilities differ by more than is stated.
  """
  run = load(path)
  images = [_sample(number) for number in range(len(_SIZES))]
  squares = np.stack([square(student.description, each) for each in images])
  expected = softmax(student.logits_of(squares))
  found = np.stack([run(image) for image in images])
  return checked_probabilities(found, expected, out)


def square(description: Description, image: np.ndarray) -> np.ndarray:
  """uint8 [H, W, 3] -> uint8 [S, S, 3], as in the run's evaluation."""
  return transforms.to_square(
    Image.fromarray(image),
    short_side=transforms.resize_size(description.image_size, description.crop),
    size=description.image_size,
    interpolation=description.interpolation,
  )


def _sample(number: int) -> np.ndarray:
  """Waves and noise, uint8 [H, W, 3], of the size of this number."""
  height, width = _SIZES[number]
  rng = np.random.default_rng(number)
  y, x = np.mgrid[:height, :width] / max(height, width)
  y, x = y[..., None], x[..., None]
  waves = np.sin(rng.uniform(3, 20, 3) * x + rng.uniform(3, 20, 3) * y)
  noise = rng.normal(scale=12, size=(height, width, 3))
  return np.clip(127.5 + 90 * waves + noise, 0, 255).astype(np.uint8)


def takes() -> dict[str, Any]:
  """What the model takes, for the JSON beside it."""
  return {
    'name': IMAGE,
    'dtype': 'uint8',
    'layout': 'HWC',
    'shape': ['height', 'width', 3],
    'values': 'RGB, 0 to 255, upright, any height and width',
  }


def gives(names: Sequence[str]) -> dict[str, Any]:
  """What the model gives, likewise."""
  return {PROBABILITIES: ['float32', len(names)], NAMES: ['string', len(names)]}


def names_of(metadata: dict[str, str]) -> list[str] | None:
  """The names of classes in a file's metadata; None where it has none."""
  return json.loads(metadata[NAMES]) if NAMES in metadata else None
