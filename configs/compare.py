"""Teacher, TL and TL+KD in one command, side by side.

python -m tlkd_jax.main --config configs/compare.py --workdir runs/compare
"""

from tlkd_jax import settings


def get_config(arg: str | None = None):
  """The compare configuration; `arg` as in settings.config_of."""
  return settings.config_of('compare', arg)
