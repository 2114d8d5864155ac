"""Arms of the study that compares all methods: `configs/study.py:arms=methods`.

Each arm has the base's steps, batches and augmentation unless its own name says
otherwise; a loss brings its published weight, warm-up and hyper-parameters.
"""

from tlkd_jax import losses

_MIXUP = {'augment.mixup_alpha': 0.2}

# Weights of the transfer terms were not tuned: L2-SP's and BSS's are their
# papers' (arXiv 1802.01483; NeurIPS 2019), DELTA's is small because its loss is
# a sum over batch and positions, the others are one.
BASELINES: dict[str, tuple] = {
  'teacher': ('teacher', 'teacher', ()),
  'tl': ('tl', 'TL', ()),
  'linear_probe': (
    'tl',
    'linear probe',
    (),
    {'optimizer.train_only': 'head', 'optimizer.learning_rate': 1e-2},
  ),
  'label_smoothing': ('tl', 'label smoothing', (), {'label_smoothing': 0.1}),
  'ema': ('tl', 'EMA', (), {'ema_decay': 0.98}),
  'one_rate': (
    'tl',
    'no layer-wise decay',
    (),
    {'optimizer.layer_decay': 1.0},
  ),
  'mixup': ('tl', 'mixup', (), _MIXUP),
  'cutmix': ('tl', 'CutMix', (), {'augment.cutmix_alpha': 1.0}),
  'randaugment': (
    'tl',
    'RandAugment',
    (),
    {'augment.randaugment_ops': 2, 'augment.randaugment_magnitude': 5.0},
  ),
  'l2_sp': (
    'tl',
    'L2-SP',
    (),
    {'transfer.l2_sp': 0.1, 'transfer.l2_sp_head': 0.01},
  ),
  'delta': ('tl', 'DELTA', (), {'transfer.delta': 1e-4}),
  'bss': ('tl', 'BSS', (), {'transfer.bss': 1e-3}),
  'lwf': ('tl', 'LwF', (), {'transfer.lwf': 1.0}),
  'co_tuning': ('tl', 'Co-Tuning', (), {'transfer.co_tuning': 1.0}),
  'stoch_norm': ('tl', 'StochNorm', (), {'batch_norm': 'stochastic'}),
  'kd_l2_sp': (
    'kd',
    'TL+KD, L2-SP',
    ('teacher',),
    {'transfer.l2_sp': 0.1, 'transfer.l2_sp_head': 0.01},
  ),
  'born_again': ('kd', 'born again', ('tl',)),
}


def arms() -> dict[str, tuple]:
  """Arm -> (kind, label, teachers, changes): baselines, then every loss."""
  found = dict(BASELINES)
  for name, loss in losses.LOSSES.items():
    if loss.same_as or loss.guide != 'teacher':
      continue
    changes: dict = {'distillation.loss': name}
    if name == 'function_matching':
      changes |= {'distillation.hard_weight': 0.0, 'augment.mixup_alpha': 1.0}
    found[name] = ('kd', name, ('teacher',), changes)
  return found
