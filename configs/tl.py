"""Fine-tunes the student without a teacher: the TL baseline.

python -m tlkd_jax.main --config configs/tl.py --workdir runs/tl
"""

from tlkd_jax import settings


def get_config(arg: str | None = None):
  """The tl configuration; `arg` as in settings.config_of."""
  return settings.config_of('tl', arg)
