"""Distillation losses on feature maps and on the last representation.

Signature and conventions as in `losses/__init__.py`. A loss over several
stages is the sum over the stages. `stages` is explained in `losses/stages.py`,
`projector` (None: identity, for equal widths) in `losses/projectors.py`.
"""

import jax
import jax.numpy as jnp
import optax.losses

from tlkd_jax.losses import numerics
from tlkd_jax.losses.numerics import LOGIT_LIMIT, as_float32
from tlkd_jax.losses.projectors import linear, project, require_equal_width
from tlkd_jax.losses.stages import StagePair, embeddings, paired_stages


def fitnet_hint(
  student_outputs, teacher_outputs, labels, *, projector=None, stages=None
) -> jax.Array:
  """Mean over all elements of (r(f_s) - f_t)^2, r a 1x1 convolution.

  Romero et al., ICLR 2015, arXiv:1412.6550, equation 3, which has 1/2 |.|^2
  instead of the mean.
  """
  loss = jnp.float32(0.0)
  name = 'fitnet_hint'
  for stage, s, t in paired_stages(
    name, student_outputs, teacher_outputs, stages
  ):
    s = project(name, projector, stage, s, t)
    loss += jnp.mean(jnp.square(s - t))
  return loss


def fitnet_convreg(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  projector=None,
  stages=None,
  bn_eps=1e-5,
) -> jax.Array:
  """FitNet with the regressor 1x1 convolution, batch norm, ReLU.

  The form of RepDistiller and mdistiller. A ReLU cannot reach the negative
  values of a teacher map that was taken before an activation.
  """
  loss = jnp.float32(0.0)
  name = 'fitnet_convreg'
  for stage, s, t in paired_stages(
    name, student_outputs, teacher_outputs, stages
  ):
    s = jax.nn.relu(project(name, projector, stage, s, t, bn_eps))
    loss += jnp.mean(jnp.square(s - t))
  return loss


def attention_map(x: jax.Array, p: float) -> jax.Array:
  """Spatial attention mean_c |x|^p, flattened, of unit length per example.

  Args:
    x: [B, h, w, C] float32.
    p: Power, at least 1.

  Returns:
    [B, h * w] float32.
  """
  # The map has no scale: large maps are divided by their peak, so that the
  # power stays in range.
  peak = jnp.max(jnp.abs(x), axis=(1, 2, 3), keepdims=True)
  x = x / jax.lax.stop_gradient(jnp.maximum(peak, 1.0))
  power = int(p) if p == int(p) else p
  energy = jnp.mean(jnp.abs(x) ** power, axis=-1)
  return numerics.l2_normalize(energy.reshape(x.shape[0], -1))


def at(
  student_outputs, teacher_outputs, labels, *, p=2, stages=None
) -> jax.Array:
  """Attention transfer: mean of (q_s - q_t)^2 of the attention maps.

  Zagoruyko & Komodakis, ICLR 2017, arXiv:1612.03928, equation 2, with the mean
  of the authors' code for the norm of the paper.
  """
  loss = jnp.float32(0.0)
  for _, s, t in paired_stages('at', student_outputs, teacher_outputs, stages):
    gap = attention_map(s, p) - attention_map(t, p)
    loss += jnp.mean(jnp.square(gap))
  return loss


def ft(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  p1=2,
  p2=1,
  projector=None,
  stages=None,
) -> jax.Array:
  """Factor transfer: mean |q_s - q_t|^p2 of the normalised factors.

  Kim et al., NeurIPS 2018, arXiv:1802.04977, equation 3, on mean_c f^p1 as in
  RepDistiller. The factors are the maps themselves: the published paraphraser
  is an autoencoder trained beforehand and is not part of this loss.
  """
  loss = jnp.float32(0.0)
  for stage, s, t in paired_stages(
    'ft', student_outputs, teacher_outputs, stages
  ):
    if projector and stage in projector:
      s = linear(s, projector[stage])
    gap = jnp.abs(attention_map(s, p1) - attention_map(t, p1))
    loss += jnp.mean(gap if p2 == 1 else gap**p2)
  return loss


def vid(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  projector=None,
  stages=None,
  eps=1e-5,
  init_pred_var=5.0,
) -> jax.Array:
  """Variational information: mean of ((mu(f_s) - f_t)^2 / v + log v) / 2.

  mu is 1x1 - ReLU - 1x1 - ReLU - 1x1 without biases, v = softplus(log_scale) +
  eps per channel; both are in the projector. Without one, mu is the identity
  and v is `init_pred_var`. Ahn et al., CVPR 2019, arXiv:1904.05835, equation
  5. The minimum is log(v) / 2, which may be negative.
  """
  loss = jnp.float32(0.0)
  for stage, s, t in paired_stages(
    'vid', student_outputs, teacher_outputs, stages
  ):
    params = (projector or {}).get(stage)
    if params is None:
      require_equal_width('vid', stage, s, t)
      variance = jnp.full((1, 1, 1, 1), init_pred_var)
    else:
      for layer in ('layer0', 'layer1', 'layer2'):
        s = linear(s if layer == 'layer0' else jax.nn.relu(s), params[layer])
      variance = jax.nn.softplus(params['log_scale']) + eps
      variance = variance.reshape(1, 1, 1, -1)
    loss += 0.5 * jnp.mean(jnp.square(s - t) / variance + jnp.log(variance))
  return loss


def mgd(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  projector=None,
  stages=None,
  alpha_mgd=7e-5,
  lambda_mgd=0.15,
  key=None,
  mask_uniform=None,
) -> jax.Array:
  """Masked generation: alpha |gen(align(f_s) * mask) - f_t|^2 / B.

  Yang et al., ECCV 2022, arXiv:2205.01529, equation 5. As in the authors'
  classification code whole channels are masked, each with probability
  `lambda_mgd` per example (the paper's text masks positions).

  Args:
    student_outputs: Model outputs.
    teacher_outputs: Model outputs.
    labels: Unused.
    projector: `projectors.generator(...)`.
    stages: See `losses/stages.py`.
    alpha_mgd: Weight of the sum of squares.
    lambda_mgd: Fraction of channels to mask.
    key: PRNG key of the mask.
    mask_uniform: [B, C] uniform numbers to use in place of `key`; for one
      stage.

  Returns:
    Scalar float32.

  Raises:
    ValueError: Neither `key` nor `mask_uniform` is given, or the widths differ
      and there is no projector.
  """
  if key is None and mask_uniform is None:
    raise ValueError('mgd: the mask is random; pass key= (or mask_uniform=)')
  loss = jnp.float32(0.0)
  pairs = paired_stages('mgd', student_outputs, teacher_outputs, stages)
  for i, (stage, s, t) in enumerate(pairs):
    params = (projector or {}).get(stage, {})
    s = project('mgd', {stage: params.get('align')}, stage, s, t)
    batch_size, width = s.shape[0], s.shape[-1]
    uniform = mask_uniform
    if uniform is None:
      uniform = jax.random.uniform(
        jax.random.fold_in(key, i), (batch_size, width)
      )
    keep = jnp.asarray(uniform >= lambda_mgd, jnp.float32)
    s = s * keep.reshape(batch_size, 1, 1, width)
    if 'layer0' in params:
      s = linear(jax.nn.relu(linear(s, params['layer0'])), params['layer1'])
    loss += alpha_mgd * jnp.sum(jnp.square(s - t)) / batch_size
  return loss


def cosine(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  embedding='pooled',
  projector=None,
) -> jax.Array:
  """Mean of 1 - cos(r(e_s), e_t), r a linear map.

  The loss that AM-RADIO (Ranzinger et al., CVPR 2024, arXiv:2312.06709) has of
  a foundation model's summary vector, with a linear map for its adaptor. It has
  no scale, so that e_t needs no normalisation.

  Args:
    student_outputs: Model outputs.
    teacher_outputs: Model outputs.
    labels: Unused.
    embedding: Which of the teacher's, a key of `stages.EMBEDDINGS`.
    projector: `projectors.embedding_map(...)`.

  Returns:
    Scalar float32.
  """
  s, t = embeddings('cosine', student_outputs, teacher_outputs, embedding)
  s = project('cosine', projector, 'pre_logits', s, t)
  products = numerics.l2_normalize(s) * numerics.l2_normalize(t)
  return 1.0 - jnp.mean(jnp.sum(products, axis=-1))


def smooth_l1(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  smooth_l1_beta=1.0,
  embedding='pooled',
  projector=None,
) -> jax.Array:
  """Mean over all elements of the Huber loss of r(e_s) - e_t, r linear.

  d^2 / (2 beta) where |d| < beta, else |d| - beta / 2: Girshick, ICCV 2015,
  arXiv:1504.08083, equation 3 (beta 1). AM-RADIO (arXiv:2312.06709) sums it
  with `cosine`, 0.1 of it and 0.9 of that, on patches; Theia (Shang et al.,
  CoRL 2024, arXiv:2407.20179) likewise.

  Args:
    student_outputs: Model outputs.
    teacher_outputs: Model outputs.
    labels: Unused.
    smooth_l1_beta: Where the square ends, above 0.
    embedding: Which of the teacher's, a key of `stages.EMBEDDINGS`.
    projector: `projectors.embedding_map(...)`.

  Returns:
    Scalar float32.
  """
  s, t = embeddings('smooth_l1', student_outputs, teacher_outputs, embedding)
  s = project('smooth_l1', projector, 'pre_logits', s, t)
  huber = optax.losses.huber_loss(s, t, delta=smooth_l1_beta)
  return jnp.mean(huber) / smooth_l1_beta


def _last_representation(name, student_outputs, teacher_outputs, stages):
  sides = student_outputs, teacher_outputs
  if stages is None and all('pre_logits' in side for side in sides):
    return StagePair('pre_logits', *embeddings(name, *sides))
  return paired_stages(name, *sides, stages)[-1]


def _spatial_mean(x):
  return jnp.mean(x, axis=(1, 2)) if x.ndim == 4 else x


def srrl(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  alpha=1.0,
  beta=5.0,
  projector=None,
  stages=None,
  teacher_head=None,
  student_logits_via_teacher_head=None,
) -> jax.Array:
  """Softmax-regression representation learning.

  alpha mean (g(f_s) - g(f_t))^2 + beta mean (h(g(f_s)) - z_t)^2, with g the
  spatial mean and h the teacher's linear head. Yang et al., ICLR 2021, section
  3; weights of cls_KD.

  Args:
    student_outputs: Model outputs; `pre_logits` is compared if both networks
      give it and `stages` is None, else the last of the stages.
    teacher_outputs: Model outputs, with `logits`.
    labels: Unused.
    alpha: Weight of the feature term.
    beta: Weight of the logit term.
    projector: `projectors.representation(...)`.
    stages: See `losses/stages.py`.
    teacher_head: {'kernel': [D, K], 'bias': [K]}, frozen.
    student_logits_via_teacher_head: [B, K], in place of `teacher_head`.

  Returns:
    Scalar float32.

  Raises:
    ValueError: Neither head nor logits are given.
  """
  stage, s, t = _last_representation(
    'srrl', student_outputs, teacher_outputs, stages
  )
  params = (projector or {}).get(stage)
  if params is None:
    require_equal_width('srrl', stage, s, t)
  else:
    s = jax.nn.relu(linear(s, params))
  s, t = _spatial_mean(s), _spatial_mean(t)
  if student_logits_via_teacher_head is not None:
    logits = as_float32(student_logits_via_teacher_head)
  elif teacher_head is not None:
    logits = linear(s, jax.lax.stop_gradient(teacher_head))
  else:
    raise ValueError("srrl: pass teacher_head={'kernel': [D, K], 'bias': [K]}")
  target = jax.lax.stop_gradient(as_float32(teacher_outputs['logits']))
  feature_term = jnp.mean(jnp.square(s - t))
  return alpha * feature_term + beta * jnp.mean(jnp.square(logits - target))


def _simkd_projection(projector, stage, s, t):
  params = (projector or {}).get(stage)
  if params is None:
    require_equal_width('simkd', stage, s, t)
    return s
  for layer in ('layer0', 'layer1', 'layer2'):
    s = jax.nn.relu(linear(s, params[layer]))
  return s


def simkd(
  student_outputs, teacher_outputs, labels, *, projector=None, stages=None
) -> jax.Array:
  """Mean of (p(f_s) - f_t)^2 on the last representation.

  Chen et al., CVPR 2022, arXiv:2203.14001, equation 3. The published student
  is its backbone, the projector p and the teacher's head together; this loss
  alone leaves the student's own head to the cross-entropy. `pre_logits` is
  compared unless `stages` names a map.
  """
  stage, s, t = _last_representation(
    'simkd', student_outputs, teacher_outputs, stages
  )
  s = _simkd_projection(projector, stage, s, t)
  return jnp.mean(jnp.square(s - t))


def srd(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  exponent=4.0,
  temperature=4.0,
  embedding='pooled',
  projector=None,
) -> jax.Array:
  """2 log(sum |f_s - f_t|^exponent) + KL at the temperature, without T^2.

  Miles & Mikolajczyk, AAAI 2024, arXiv:2303.11098, on embeddings; the form,
  including the missing T^2, is that of the published code. The logarithm has
  no lower bound: it is cut where the largest difference is below 1e-10, with
  zero gradient there.
  """
  s, t = embeddings('srd', student_outputs, teacher_outputs, embedding)
  s = project('srd', projector, 'pre_logits', s, t)
  gap = jnp.abs(s - t)
  peak = jax.lax.stop_gradient(jnp.max(gap))
  visible = peak > 1e-10
  scale = jnp.where(visible, peak, 1e-10)
  relative = jnp.where(visible, gap / scale, 0.0)
  total = jnp.where(visible, jnp.sum(relative**exponent), 1.0)
  feature_term = 2.0 * (exponent * jnp.log(scale) + jnp.log(total))
  student = as_float32(student_outputs['logits'], LOGIT_LIMIT)
  teacher = as_float32(teacher_outputs['logits'], LOGIT_LIMIT)
  kl = numerics.kl_divergence(
    student / temperature, jax.lax.stop_gradient(teacher) / temperature
  )
  return feature_term + jnp.mean(kl)
