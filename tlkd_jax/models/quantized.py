"""A network as int8 arithmetic computes it: 'NAME int8' of the variant NAME.

Its BatchNorms are folded and its branches fused. Each weight is on the grid of
its channel; each tensor that goes into or comes out of a layer, a block or a
gate is on a grid of its own, once: what a module gives is rounded unless a
module in it has just done that, and what a module takes is rounded where
nothing has, such as the image, or a mean. Logits stay as they are: a runtime
computes them from integers all the same.

Which tensors these are is found by one trace of the network, by identity. The
parameters have the paths of the folded network. The bounds of the tensors are
its state, in the place of statistics: a network reads them as they were and
gives those after, which follow the batches while `left` is above 0, so that a
step that keeps its new state learns them and an evaluation, which drops it,
does not.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core as jax_core

from tlkd_jax.models import folded
from tlkd_jax.models.families import vgg
from tlkd_jax.models.functional import Array
from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers import fake_quant
from tlkd_jax.models.layers.branches import Branches
from tlkd_jax.models.spec import ModelSpec

SUFFIX = ' int8'
# Of the state: tensor -> its bounds.
STATE = 'activations'
# Share of a batch in the bounds that follow the batches, as torch has it
# (MovingAverageMinMaxObserver).
MOMENTUM = 0.01
# A runtime computes these and the rounding after them as one.
_RECTIFIERS = ('relu', 'relu6')

_calibrating = jax.make_user_context(default_value=False)
_marking = jax.make_user_context(default_value=False)
# In a trace under `marking`, in the place of a tensor's rounding.
rounded_p = jax_core.Primitive('rounded')
rounded_p.def_abstract_eval(lambda x, *, scale, zero_point: x)


def calibrating():
  """Returns a context in which nothing is rounded and bounds are a batch's."""
  return _calibrating(True)


def marking():
  """Returns a context in which roundings are marks, for other formats.

  A tensor's is `rounded_p` with its scale and zero point; weights are as they
  are.
  """
  return _marking(True)


def name_of(variant: str) -> str:
  """What the int8 form of a variant is called."""
  return variant + SUFFIX


def variant_of(name: str) -> str | None:
  """The variant whose int8 form has a name; None of another name."""
  return name.removesuffix(SUFFIX) if name.endswith(SUFFIX) else None


class Bounds(nnx.Module):
  """Puts a tensor on the grid of its bounds, and follows them."""

  def __init__(self):
    self.bounds = nnx.BatchStat(jnp.zeros(2))
    self.left = nnx.BatchStat(jnp.zeros((), jnp.int32))

  def __call__(self, x: Array) -> Array:
    own = self.bounds[...]
    if _marking.value:
      with jax.ensure_compile_time_eval():
        scale, zero_point = map(float, fake_quant.grid(own))
      return rounded_p.bind(x, scale=scale, zero_point=int(zero_point))
    seen = jnp.stack([x.min(), x.max()]).astype(own.dtype)
    seen = jax.lax.stop_gradient(seen)
    if _calibrating.value:
      self.bounds.set_value(seen)
      return x
    # Until the network has run: its layers read the bounds as they were.
    self.seen = nnx.data(seen)
    return fake_quant.activation(x, own)

  def follow(self) -> None:
    """Moves the bounds by what was seen."""
    own, left = self.bounds[...], self.left[...]
    moved = own + MOMENTUM * (self.seen - own)
    self.bounds.set_value(jnp.where(left > 0, moved, own))
    self.left.set_value(jnp.maximum(left - 1, 0))
    del self.seen

  @property
  def scale(self) -> Array:
    """Of the grid, a scalar."""
    return fake_quant.grid(self.bounds[...])[0]


class Again(nnx.Module):
  """Puts a tensor on the grid that another reader of it follows."""

  def __init__(self, first: Bounds):
    self.first = first

  def __call__(self, x: Array) -> Array:
    if _marking.value or _calibrating.value:
      return x if _calibrating.value else self.first(x)
    return fake_quant.activation(x, self.first.bounds[...])


class Conv(layers.Conv):
  """A convolution with an int8 kernel; `source` is the grid of its input."""

  source = None

  def convolve(self, x: Array, kernel: Array, bias: Array | None) -> Array:
    return super().convolve(x, *_weights(self.source, kernel, bias))


class Linear(layers.Linear):
  """The same of a linear layer."""

  source = None

  def multiply(self, x: Array, kernel: Array, bias: Array | None) -> Array:
    return super().multiply(x, *_weights(self.source, kernel, bias))


def _weights(source: Bounds | None, kernel: Array, bias: Array | None):
  if source is None or _calibrating.value or _marking.value:
    return kernel, bias
  return fake_quant.weights(kernel, bias, source.scale)


def refusal(original: Callable[..., nnx.Module]) -> str:
  """Why what a spec's `build` builds has no int8 form, in words; '' if it has.

  Its norms must fold: an int8 network has none.
  """
  module = nnx.eval_shape(lambda: original(2, rngs=layers.Rngs(None)))
  pairs = folded.pairs(module)
  gone = {norm for _, norm, _ in pairs}
  left = [
    path
    for path, child in folded.modules(module)
    if path not in gone
    and isinstance(child, layers.BatchNorm | layers.LayerNorm)
  ]
  if left:
    return (
      f'{len(left)} of its norms do not follow a convolution that they could '
      f'be folded into, such as {left[0]}'
    )
  convs = (layers.Conv, layers.Linear)
  odd = [
    path
    for path, child in folded.modules(module)
    if isinstance(child, convs) and type(child) not in convs
  ]
  return f'its layer {odd[0]} has weights of its own kind' if odd else ''


@functools.cache
def spec_of(single: ModelSpec) -> ModelSpec:
  """Of the int8 form of a variant in its form for inference."""
  return dataclasses.replace(
    single,
    build=functools.partial(_build, single),
    torch_modules=dict,
    torch_leaves=dict,
    weights=None,
  )


def _build(single: ModelSpec, num_classes: int, **options) -> nnx.Module:
  module = folded.build(single.build, num_classes, **options)
  size, channels = single.image_size, options.get('in_channels', 3)
  found = _rounding_modules(module, single.head)
  places = _find(module, found, (1, size, size, channels))
  bounds = {name: Bounds() for name in places.names}
  for path, (name, first) in places.taken.items():
    grid = bounds[name] if first else Again(bounds[name])
    found[path].takes = nnx.data(grid)
  for path, name in places.given.items():
    found[path].gives = nnx.data(bounds[name])
  for path, name in places.sources.items():
    if isinstance(found[path], Conv | Linear):
      found[path].source = nnx.data(bounds[name])
  # Its arrays are found here alone: of all paths to them this is the first.
  setattr(module, STATE, nnx.Dict(bounds))
  module.__class__ = _following(type(module))
  return module


def _rounding_modules(
  module: nnx.Module, heads: tuple[str, ...]
) -> dict[str, Any]:
  """Makes the modules below one such as round, in place; they by path."""
  found: dict[str, Any] = {
    path: child
    for path, child in folded.modules(module)
    if path and not isinstance(child, nnx.List | folded.Nothing)
  }
  silent = {f'{path}.{name}' for path in found for name in _fused(found[path])}
  # Logits, also of a head that is in a module of its own.
  for head in heads:
    parts = head.split('.')
    silent |= {'.'.join(parts[: n + 1]) for n in range(len(parts))}
  for path, child in found.items():
    child.__class__ = _rounding(_LAYERS.get(type(child), type(child)))
    child.silent = path in silent
  return found


@functools.cache
def _rounding(kind: type[nnx.Module]) -> type[nnx.Module]:
  """The same kind of module, that rounds what it takes and gives."""

  class Rounding(kind):
    takes = None
    gives = None
    silent = False
    # Of the trace that finds out where to round.
    noted = None

    def __call__(self, x, *others):
      if self.noted is not None:
        x = self.noted.take(x)
      x = x if self.takes is None else self.takes(x)
      y = super().__call__(x, *others)
      if self.noted is not None and not self.silent:
        self.noted.give(y)
      return y if self.gives is None else self.gives(y)

  Rounding.__name__ = f'Rounding{kind.__name__}'
  return Rounding


@functools.cache
def _following(kind: type[nnx.Module]) -> type[nnx.Module]:
  """The same kind of network, whose bounds follow what it has seen."""

  class Following(kind):
    def __call__(self, x, mode):
      outputs = super().__call__(x, mode)
      if not (_marking.value or _calibrating.value):
        for bounds in vars(self)[STATE].values():
          bounds.follow()
      return outputs

  Following.__name__ = f'Following{kind.__name__}'
  return Following


_LAYERS: dict[type[nnx.Module], type[nnx.Module]] = {
  layers.Conv: Conv,
  layers.Linear: Linear,
}


def _fused(module: nnx.Module) -> list[str]:
  """Layers of a module behind which it has a ReLU at once."""
  if isinstance(module, vgg.ConvBlock):
    return ['conv']
  if isinstance(module, layers.ConvNorm):
    return ['conv'] if module.activation in _RECTIFIERS else []
  if isinstance(module, Branches):
    plain = module.squeeze is None and module.activation in _RECTIFIERS
    return ['conv'] if plain else []
  if isinstance(module, layers.SqueezeExcite):
    return ['reduce'] if module.activation in _RECTIFIERS else []
  return []


@dataclasses.dataclass
class _Places:
  """Which tensors are rounded, and where; filled by a trace.

  Attributes:
    names: of all bounds.
    taken: path of a module -> (bounds of what it takes, whether it is the first
      to take it).
    given: path of a module -> bounds of what it gives.
    sources: path of a layer with weights -> bounds of its input.
    known: id of a rounded tensor -> (the tensor, its bounds).
    raw: id of a tensor that is rounded by who takes it -> likewise.
  """

  names: list[str] = dataclasses.field(default_factory=list)
  taken: dict[str, tuple[str, bool]] = dataclasses.field(default_factory=dict)
  given: dict[str, str] = dataclasses.field(default_factory=dict)
  sources: dict[str, str] = dataclasses.field(default_factory=dict)
  known: dict[int, tuple] = dataclasses.field(default_factory=dict)
  raw: dict[int, tuple] = dataclasses.field(default_factory=dict)

  def take(self, path: str, x: Any) -> Any:
    """What the module at a path gets for x, a tensor that is rounded."""
    if not _is_tensor(x):
      return x
    if id(x) not in self.known:
      first = id(x) not in self.raw
      if first:
        self.raw[id(x)] = x, self._name(path, 'input')
      name = self.raw[id(x)][1]
      self.taken[path] = name, first
      # Another tensor: x itself is not rounded for others.
      x = jnp.copy(x)
      self.known[id(x)] = x, name
    self.sources[path] = self.known[id(x)][1]
    return x

  def give(self, path: str, y: Any) -> None:
    """Notes that y comes out of the module at a path."""
    if _is_tensor(y) and id(y) not in self.known:
      self.given[path] = self._name(path, 'output')
      self.known[id(y)] = y, self.given[path]

  def _name(self, path: str, end: str) -> str:
    self.names.append(f'{path.replace(".", "/")}/{end}')
    return self.names[-1]


def _is_tensor(value: Any) -> bool:
  return isinstance(value, jax.Array) and value.ndim > 1


@dataclasses.dataclass(frozen=True)
class _Noted:
  """The places of one module."""

  places: _Places
  path: str

  def take(self, x: Any) -> Any:
    return self.places.take(self.path, x)

  def give(self, y: Any) -> None:
    self.places.give(self.path, y)


def _find(
  module: nnx.Module, found: dict[str, Any], shape: tuple[int, ...]
) -> _Places:
  """Where the tensors of a network are rounded."""
  places = _Places()
  for path, child in found.items():
    child.noted = _Noted(places, path)
  jax.eval_shape(lambda: module(jnp.zeros(shape), layers.EVAL))
  for child in found.values():
    del child.noted
  return places
