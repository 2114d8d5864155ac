"""Four very small models, so that tests compile fast, and runs of them.

`python -m tests.tiny ARGUMENTS` is `python -m tlkd_jax.main ARGUMENTS` with
these models beside the package's own.
"""

import contextlib

from tlkd_jax import models, settings
from tlkd_jax.models.families import inverted, vit, vit_keys
from tlkd_jax.models.families.inverted import Design, Row
from tlkd_jax.runtime import interrupts
from tlkd_jax.runtime.trees import flatten


def _design(width: int) -> Design:
  stage = {'kernel_size': 3, 'expand': 1, 'repeats': 1, 'fused': True}
  rows = (
    (Row(stride=1, channels=8, **stage),),
    (Row(stride=2, channels=width, **stage),),
  )
  return Design(
    stages=inverted.scale(rows, 8),
    stem=8,
    neck=16,
    dropout=0.2,
    activation='relu6',
    momentum=0.1,
  )


SPECS = {
  'tiny': inverted.spec(
    _design(8),
    inverted.timm_modules,
    image_size=32,
    mean=(127.0,) * 3,
    std=(128.0,) * 3,
  ),
  'tiny_teacher': inverted.spec(
    _design(16), inverted.timm_modules, image_size=32
  ),
  # A grid of 4 x 4 patches, without and with a distillation token.
  'tiny_vit': vit_keys.spec(vit.Design(8, 2, depth=4, patch=4, image_size=16)),
  'tiny_deit': vit_keys.spec(
    vit.Design(8, 2, depth=4, patch=4, image_size=16, distilled=True)
  ),
}


@contextlib.contextmanager
def registered():
  """The models are in MODELS while this is open, also inside another."""
  added = SPECS.keys() - models.MODELS.keys()
  models.MODELS.update(SPECS)
  try:
    yield
  finally:
    for name in added:
      del models.MODELS[name]


def make_config(
  arm: str, cache_dir=None, loss: str = 'kd', **changes
) -> settings.Settings:
  """A few steps of the tiny models on digits.

  Args:
    arm: as in the configuration.
    cache_dir: of the prepared digits.
    loss: as in the argument of a configuration file.
    **changes: keys to set, with '__' for the dot.
  """
  with registered():
    return settings.with_values(_smoke(arm, loss), _values(cache_dir, changes))


def _values(cache_dir, changes: dict) -> dict:
  values = {
    'image_size': 16,
    'eval_every_steps': 3,
    'teacher.name': 'tiny_teacher',
    'student.weights': 'scratch',
    'teacher.weights': 'scratch',
    'ema_decay': 0.0,
    'label_smoothing': 0.0,
    'augment.crop': 'centre',
    'optimizer.name': 'sgd',
    'optimizer.learning_rate': 1e-2,
    'optimizer.weight_decay': 1e-4,
    'optimizer.clip_norm': 1.0,
    'optimizer.head_multiplier': 1.0,
    'optimizer.layer_decay': 1.0,
  }
  if cache_dir is not None:
    values['data.cache_dir'] = str(cache_dir)
  return values | {k.replace('__', '.'): v for k, v in changes.items()}


def arguments(arm: str, cache_dir, **changes) -> list[str]:
  """Command-line arguments of `make_config(arm, cache_dir, **changes)`.

  The values need not be such as the settings accept.
  """
  default = flatten(settings.to_dict(_smoke(arm)))
  return [f'--config=configs/{arm}.py:smoke,student=tiny'] + [
    f'--config.{key}={value}'
    for key, value in _values(cache_dir, changes).items()
    if key not in default or value != default[key]
  ]


def _smoke(arm: str, loss: str = 'kd') -> settings.Settings:
  with registered():
    return settings.make(arm, student='tiny', loss=loss, smoke=True)


if __name__ == '__main__':
  interrupts.end_at_once()
  from tlkd_jax import main

  with registered():
    main.run()
