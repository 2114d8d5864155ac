"""The configuration inside the package: frozen, typed, checked at the door.

    config = settings.from_config(file.get_config())
    config.optimizer.learning_rate
    settings.with_values(config, {'arm': 'tl', 'optimizer.train_only': 'head'})

Each key stands once, in its section's dataclass, with its default, its meaning
and what it accepts. Files, the command line and config.json have the same keys
in ml_collections and JSON, which are made from these classes.
"""

from tlkd_jax.settings.distillation import Distillation, ExtraLoss
from tlkd_jax.settings.door import (
  from_config,
  to_config_dict,
  to_dict,
  to_json,
  with_values,
)
from tlkd_jax.settings.make import config_of, loss_values, make, parse_arg
from tlkd_jax.settings.networks import Student, Teacher
from tlkd_jax.settings.quantize import Quantize
from tlkd_jax.settings.rules import WrongSettings
from tlkd_jax.settings.sections import (
  Augment,
  Data,
  Optimizer,
  Targets,
  Transfer,
)
from tlkd_jax.settings.study import Study, StudyArm, StudyDataset
from tlkd_jax.settings.top import Settings

__all__ = [
  'Augment',
  'Data',
  'Distillation',
  'ExtraLoss',
  'Optimizer',
  'Quantize',
  'Settings',
  'Student',
  'Study',
  'StudyArm',
  'StudyDataset',
  'Targets',
  'Teacher',
  'Transfer',
  'WrongSettings',
  'config_of',
  'from_config',
  'loss_values',
  'make',
  'parse_arg',
  'to_config_dict',
  'to_dict',
  'to_json',
  'with_values',
]
