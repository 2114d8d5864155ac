"""Fine-tunes the student under a fine-tuned teacher: TL+KD.

python -m tlkd_jax.main --config configs/kd.py --workdir runs/kd
"""

from tlkd_jax import settings


def get_config(arg: str | None = None):
  """The kd configuration; `arg` as in settings.config_of."""
  return settings.config_of('kd', arg)
