"""The learnable parts of distillation losses: parameters and application.

A projector is a dict: stage name (or 'pre_logits') to the parameters of that
stage. Builders have the signature `(key, student_shapes, teacher_shapes,
*, stages=None, **hyperparameters) -> params`; the shapes are dicts of
jax.ShapeDtypeStruct with the structure of the model outputs. They take the
hyperparameters of their loss and use those that concern shapes. A projector
is used in training only; normalisation therefore uses the batch's statistics
(of the global batch) and keeps no running ones.
"""

from typing import Any

import jax
import jax.numpy as jnp

from tlkd_jax.losses.numerics import as_float32, matmul
from tlkd_jax.losses.stages import embedding_outputs, stage_names

_kernel_init = jax.nn.initializers.he_normal()


def linear_init(
  key: jax.Array,
  features_in: int,
  features_out: int,
  *,
  kernel_size: int = 1,
  bias: bool = True,
  norm: bool = False,
) -> dict:
  """Parameters of one convolution for `linear`, float32.

  Args:
    key: PRNG key.
    features_in: Input channels.
    features_out: Output channels.
    kernel_size: 1 gives a [in, out] kernel, 3 a [3, 3, in, out] one.
    bias: Whether there is a bias.
    norm: Whether batch normalisation follows.

  Returns:
    Dict with 'kernel' and, as asked, 'bias', 'bn_scale', 'bn_bias'.
  """
  shape = (features_in, features_out)
  if kernel_size > 1:
    shape = (kernel_size, kernel_size, *shape)
  params = {'kernel': _kernel_init(key, shape, jnp.float32)}
  if bias:
    params['bias'] = jnp.zeros(features_out)
  if norm:
    params['bn_scale'] = jnp.ones(features_out)
    params['bn_bias'] = jnp.zeros(features_out)
  return params


def linear(x: jax.Array, params: dict, bn_eps: float = 1e-5) -> jax.Array:
  """1x1 (or SAME k x k) convolution, then batch statistics if there are any.

  Args:
    x: [..., C] float32; [B, h, w, C] for a k x k kernel.
    params: As `linear_init` makes them; a 1x1 kernel may also be HWIO.
    bn_eps: Added to the (biased) batch variance.

  Returns:
    [..., D] float32.
  """
  kernel = params['kernel']
  if kernel.ndim == 4 and kernel.shape[:2] == (1, 1):
    kernel = kernel[0, 0]
  if kernel.ndim == 2:
    y = matmul(x.reshape(-1, x.shape[-1]), kernel)
    y = y.reshape(*x.shape[:-1], kernel.shape[-1])
  else:
    y = jax.lax.conv_general_dilated(
      x,
      kernel,
      window_strides=(1, 1),
      padding='SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      precision=jax.lax.Precision.HIGHEST,
    )
  if 'bias' in params:
    y = y + _along_channels(params['bias'], y)
  y = as_float32(y)
  if 'bn_scale' not in params:
    return y
  axes = tuple(range(y.ndim - 1))
  centered = y - jnp.mean(y, axis=axes, keepdims=True)
  variance = jnp.mean(jnp.square(centered), axis=axes, keepdims=True)
  normalized = centered * jax.lax.rsqrt(variance + bn_eps)
  scale = _along_channels(params['bn_scale'], y)
  return normalized * scale + _along_channels(params['bn_bias'], y)


def _along_channels(vector, like):
  return vector.reshape((1,) * (like.ndim - 1) + (-1,))


def project(
  loss_name: str,
  projector: dict | None,
  stage: str,
  student: jax.Array,
  teacher: jax.Array,
  bn_eps: float = 1e-5,
) -> jax.Array:
  """The student's features in the teacher's width.

  Args:
    loss_name: For the error message.
    projector: None, or stage name to `linear` parameters; a stage without
      parameters is left as it is.
    stage: Name of the stage.
    student: [..., C].
    teacher: [..., D].
    bn_eps: For `linear`.

  Returns:
    [..., D] float32.

  Raises:
    ValueError: The widths differ and there are no parameters.
  """
  params = (projector or {}).get(stage)
  if params is not None:
    return linear(student, params, bn_eps)
  require_equal_width(loss_name, stage, student, teacher)
  return student


def require_equal_width(loss_name, stage, student, teacher):
  """Raises ValueError if the last axes differ."""
  if student.shape[-1] != teacher.shape[-1]:
    raise ValueError(
      f'{loss_name}: {stage} has {student.shape[-1]} channels in the student '
      f'and {teacher.shape[-1]} in the teacher; pass projector='
      f'LOSSES[{loss_name!r}].projector(key, student_shapes, teacher_shapes)'
    )


def _stage_widths(student_shapes, teacher_shapes, stages):
  student = student_shapes.get('features', {})
  teacher = teacher_shapes.get('features', {})
  names = stage_names('projector', student, teacher, stages)
  return [(s, student[s].shape[-1], teacher[t].shape[-1]) for s, t in names]


def _each_stage(key, widths, make):
  keys = jax.random.split(key, len(widths))
  return {
    name: make(k, c_in, c_out)
    for k, (name, c_in, c_out) in zip(keys, widths, strict=True)
  }


def hint(
  key, student_shapes, teacher_shapes, *, stages=None, **hyperparameters
) -> dict:
  """A 1x1 convolution with bias for every stage (FitNet's regressor)."""
  widths = _stage_widths(student_shapes, teacher_shapes, stages)
  return _each_stage(key, widths, linear_init)


def normalized_hint(
  key, student_shapes, teacher_shapes, *, stages=None, **hyperparameters
) -> dict:
  """A 1x1 convolution with batch normalisation for every stage."""
  widths = _stage_widths(student_shapes, teacher_shapes, stages)
  return _each_stage(
    key, widths, lambda k, i, o: linear_init(k, i, o, bias=False, norm=True)
  )


def width_adapter(
  key, student_shapes, teacher_shapes, *, stages=None, **hyperparameters
) -> dict:
  """A 1x1 convolution for those stages alone whose widths differ."""
  widths = _stage_widths(student_shapes, teacher_shapes, stages)
  return _each_stage(key, [w for w in widths if w[1] != w[2]], linear_init)


def embedding_adapter(
  key, student_shapes, teacher_shapes, *, embedding='pooled', **hyperparameters
) -> dict:
  """A linear map of `pre_logits`, empty if the widths are equal."""
  sides = student_shapes, teacher_shapes
  s, t = embedding_outputs('projector', *sides, embedding)
  if s.shape[-1] == t.shape[-1]:
    return {}
  return embedding_map(key, *sides, embedding=embedding)


def embedding_map(
  key, student_shapes, teacher_shapes, *, embedding='pooled', **hyperparameters
) -> dict:
  """A linear map of `pre_logits` to the teacher's embedding.

  At equal widths too: axes of networks that were trained apart have nothing in
  common.
  """
  s, t = embedding_outputs(
    'projector', student_shapes, teacher_shapes, embedding
  )
  return {'pre_logits': linear_init(key, s.shape[-1], t.shape[-1])}


def variational(
  key,
  student_shapes,
  teacher_shapes,
  *,
  stages=None,
  eps=1e-5,
  init_pred_var=5.0,
  **hyperparameters,
) -> dict:
  """VID: three 1x1 convolutions and one log-scale per teacher channel."""

  def make(k, c_in, c_out):
    k0, k1, k2 = jax.random.split(k, 3)
    params: dict[str, Any] = {
      'layer0': linear_init(k0, c_in, c_out, bias=False),
      'layer1': linear_init(k1, c_out, c_out, bias=False),
      'layer2': linear_init(k2, c_out, c_out, bias=False),
    }
    log_scale = jnp.log(jnp.expm1(init_pred_var - eps))
    params['log_scale'] = jnp.full(c_out, log_scale, jnp.float32)
    return params

  widths = _stage_widths(student_shapes, teacher_shapes, stages)
  return _each_stage(key, widths, make)


def generator(
  key, student_shapes, teacher_shapes, *, stages=None, **hyperparameters
) -> dict:
  """MGD: 1x1 alignment, then 3x3 - ReLU - 3x3."""

  def make(k, c_in, c_out):
    k0, k1, k2 = jax.random.split(k, 3)
    return {
      'align': linear_init(k0, c_in, c_out),
      'layer0': linear_init(k1, c_out, c_out, kernel_size=3),
      'layer1': linear_init(k2, c_out, c_out, kernel_size=3),
    }

  widths = _stage_widths(student_shapes, teacher_shapes, stages)
  return _each_stage(key, widths, make)


def fusion(
  key, student_shapes, teacher_shapes, *, stages=None, **hyperparameters
) -> dict:
  """ReviewKD: attention-based fusion, deep to shallow.

  The middle width is the deepest student stage's, 512 at most, as in
  mdistiller's ReviewKD.py.
  """
  widths = _stage_widths(student_shapes, teacher_shapes, stages)
  middle = min(512, widths[-1][1])

  def make(k, c_in, c_out):
    k0, k1, k2 = jax.random.split(k, 3)
    return {
      'reduce': linear_init(k0, c_in, middle, bias=False, norm=True),
      'attention': linear_init(k1, 2 * middle, 2),
      'expand': linear_init(
        k2, middle, c_out, kernel_size=3, bias=False, norm=True
      ),
    }

  params = _each_stage(key, widths, make)
  del params[widths[-1][0]]['attention']
  return params


def last_width(student_shapes, teacher_shapes, stages) -> tuple[str, int, int]:
  """Name and widths of the representation before the head.

  `pre_logits` unless a stage is named or a network has none.
  """
  sides = student_shapes, teacher_shapes
  if stages is None and all('pre_logits' in side for side in sides):
    widths = [side['pre_logits'].shape[-1] for side in sides]
    return 'pre_logits', *widths
  return _stage_widths(student_shapes, teacher_shapes, stages)[-1]


def representation(
  key, student_shapes, teacher_shapes, *, stages=None, **hyperparameters
) -> dict:
  """SRRL: linear map with batch normalisation of the last representation."""
  name, c_in, c_out = last_width(student_shapes, teacher_shapes, stages)
  return {name: linear_init(key, c_in, c_out, bias=False, norm=True)}


def bottleneck(
  key, student_shapes, teacher_shapes, *, stages=None, **hyperparameters
) -> dict:
  """SimKD: 1x1, 3x3 and 1x1 convolutions, each normalised; factor two.

  On `pre_logits`, which has no neighbours, the middle one is 1x1 too.
  """
  name, c_in, c_out = last_width(student_shapes, teacher_shapes, stages)
  middle = max(c_out // 2, 1)
  k0, k1, k2 = jax.random.split(key, 3)
  size = 1 if name == 'pre_logits' else 3
  plain = dict(bias=False, norm=True)
  return {
    name: {
      'layer0': linear_init(k0, c_in, middle, **plain),
      'layer1': linear_init(k1, middle, middle, kernel_size=size, **plain),
      'layer2': linear_init(k2, middle, c_out, **plain),
    }
  }


def contrastive(
  key,
  student_shapes,
  teacher_shapes,
  *,
  embedding='pooled',
  feat_dim=128,
  **hyperparameters,
) -> dict:
  """CRD: linear maps of both networks' embeddings."""
  student_key, teacher_key = jax.random.split(key)
  s, t = embedding_outputs(
    'projector', student_shapes, teacher_shapes, embedding
  )
  return {
    'student': linear_init(student_key, s.shape[-1], feat_dim),
    'teacher': linear_init(teacher_key, t.shape[-1], feat_dim),
  }
