"""Distillation and transfer losses."""

from tlkd_jax.losses import logits

DISTILLATION_LOSSES = {
  'kd': logits.kd,
  'kd_logit_std': logits.kd_logit_std,
  'dkd': logits.dkd,
  'dkd_binary': logits.dkd,
  'dkd_logit_std': logits.dkd_logit_std,
  'dist': logits.dist,
  'nkd': logits.nkd,
  'wsld': logits.wsld,
  'logit_mse': logits.logit_mse,
  'mlkd': logits.mlkd,
  'mlkd_cc_bc': logits.mlkd,
  'function_matching': logits.function_matching,
  'function_matching_mixup': logits.function_matching,
  'ce_label_smoothing': logits.ce_label_smoothing,
  'bv_distances': logits.bv_distances,
}
