"""Grad-CAM: which part of an image speaks for a class.

Selvaraju et al. 2017, arXiv 1610.02391: maps of a late layer, weighted by the
spatial mean of the gradient of the class logit, summed and cut at zero.

A model returns its stages beside the logits but takes no change to them, so the
forward pass is traced and its equations run again with one value replaced;
that works for every family and leaves the models alone. Where convolutions of
the same grid follow the last stage (EfficientNet, MobileNet), their last
result, the one that is pooled, is taken: before them the values are linear and
most maps would be cut away. A transformer's stage is a grid of its patch
tokens. Its last block's tokens no longer reach a logit read from the class
token; then the last stage that does reach it is taken.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax.extend import core

Array = jax.Array
# What turns tokens into a grid; all linear, so a gradient passes unchanged.
_VIEWS = frozenset(('reshape', 'slice', 'squeeze', 'transpose', 'copy'))


def stage_gradient(
  forward: Callable[[Array], tuple[Array, Array]], images: Array, labels: Array
) -> tuple[Array, Array]:
  """Maps of a stage's grid and the gradient of the class logits by them.

  The maps are the last values of the stage's height and width on the way to the
  logits through which all of the stage's influence passes: the stage itself, or
  what convolutions after it make of it.

  Args:
    forward: images -> (logits [B, K], a stage [B, h, w, c] on the way there).
      Images must not influence each other.
    images: float [B, H, W, 3].
    labels: int [B], the class asked for.

  Returns:
    (maps, gradient), both float32 [B, h, w, c]; the gradient is 0 where the
    stage does not reach the logits.
  """
  closed = jax.make_jaxpr(forward)(images)
  variable, view = _last_maps(closed.jaxpr)
  (value,) = _function(closed, closed.jaxpr.invars, variable)(images)
  rest = _function(closed, [*closed.jaxpr.invars, variable])

  def total(value):
    (logits,) = rest(images, value)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    return own.astype(jnp.float32).sum()

  gradient = jax.grad(total)(value)
  maps, gradient = view(value), view(gradient)
  return maps.astype(jnp.float32), gradient.astype(jnp.float32)


def class_activation(maps: Array, gradient: Array) -> Array:
  """Grad-CAM of [B, h, w, c] maps and gradients, float32 [B, h, w] >= 0.

  Not normalised: divide by the maximum to draw it.
  """
  weights = gradient.mean(axis=(1, 2))
  return jax.nn.relu(jnp.einsum('bhwc,bc->bhw', maps, weights))


def _last_maps(jaxpr):
  """The variable to replace, and its view as maps [B, h, w, c].

  The last one of the stage's grid through which all of the stage's influence
  on the logits passes. If there is none but the stage, and that is a mere view
  of another value, as a grid of tokens is, then that value, viewed alike.
  """
  logits, stage = jaxpr.outvars
  grid = stage.aval.shape[:3]
  alike = [
    out
    for equation in jaxpr.eqns
    for out in equation.outvars
    if len(equation.outvars) == 1
    and len(out.aval.shape) == 4
    and out.aval.shape[:3] == grid
  ]
  if logits in _reached(jaxpr, stage):
    for out in reversed(alike[alike.index(stage) + 1 :]):
      if logits not in _reached(jaxpr, stage, without=out):
        return out, lambda value: value
  return _source(jaxpr, stage)


def _reached(jaxpr, start, without=None) -> set:
  """What depends on `start`, but not through `without`."""
  reached = {start}
  for equation in jaxpr.eqns:
    inputs = {v for v in equation.invars if isinstance(v, core.Var)}
    if reached & inputs:
      reached |= {v for v in equation.outvars if v is not without}
  return reached


def _source(jaxpr, variable):
  """The value that a stage is a mere view of, and the view as a function."""
  producers = {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}
  chain = []
  while variable in producers and producers[variable].primitive.name in _VIEWS:
    chain.append(producers[variable])
    variable = producers[variable].invars[0]

  def view(value):
    for equation in reversed(chain):
      value = equation.primitive.bind(value, **equation.params)
    return value

  return variable, view


def _function(closed, invars, out=None):
  """A traced function from `invars` to `out`, or to its first output."""
  jaxpr, given = closed.jaxpr, set(invars)
  for equation in jaxpr.eqns:
    if given & set(equation.outvars) and len(equation.outvars) > 1:
      raise ValueError(
        f'the stage is one of several results of {equation.primitive.name}; '
        'Grad-CAM cannot replace it alone'
      )
  changed = jaxpr.replace(
    invars=list(invars),
    outvars=[jaxpr.outvars[0] if out is None else out],
    eqns=[e for e in jaxpr.eqns if not given & set(e.outvars)],
  )
  return core.jaxpr_as_fun(core.ClosedJaxpr(changed, closed.consts))


def resize(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Bilinear resize of maps [N, h, w] to [N, *size], float32."""
  maps = np.asarray(maps, np.float32)
  shape = (len(maps), *size)
  return np.asarray(jax.image.resize(jnp.asarray(maps), shape, 'linear'))


def compare_maps(
  x: np.ndarray, y: np.ndarray, share: float = 0.2
) -> dict[str, np.ndarray]:
  """How alike two models' maps of the same images are, image by image.

  The smaller grid is resized to the larger one.

  Args:
    x: [N, h, w], not negative.
    y: [N, h', w'].
    share: of the pixels that counts as a map's focus.

  Returns:
    `rank_correlation` (Spearman's) and `iou` (intersection over union of the
    `share` largest pixels, ties in reading order), float64 [N]; both NaN where
    either map is constant, as where no region speaks for the class.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if len(x) != len(y):
    raise ValueError(f'maps of {len(x)} and of {len(y)} images')
  constant = [np.ptp(m.reshape(len(m), -1), axis=1) == 0 for m in (x, y)]
  size = tuple(int(n) for n in np.maximum(x.shape[1:], y.shape[1:]))
  # Compared on at least a 7 x 7 grid: 20 % of fewer pixels is no region.
  size = (max(size[0], 7), max(size[1], 7))
  x, y = (
    (m if m.shape[1:] == size else resize(m, size)).reshape(len(m), -1)
    for m in (x, y)
  )
  result = {
    name: np.full(len(x), np.nan) for name in ('rank_correlation', 'iou')
  }
  count = max(1, round(share * x.shape[1]))
  for i in np.flatnonzero(~(constant[0] | constant[1])):
    ranks = [scipy.stats.rankdata(m[i]) for m in (x, y)]
    result['rank_correlation'][i] = np.corrcoef(*ranks)[0, 1]
    top = [
      set(np.argsort(-m[i], kind='stable')[:count].tolist()) for m in (x, y)
    ]
    result['iou'][i] = len(top[0] & top[1]) / len(top[0] | top[1])
  return result
