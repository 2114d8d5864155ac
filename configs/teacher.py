"""Fine-tunes the teacher alone.

python -m tlkd_jax.main --config configs/teacher.py --workdir runs/teacher
"""

from tlkd_jax import settings


def get_config(arg: str | None = None):
  """The teacher configuration; `arg` as in settings.config_of."""
  return settings.config_of('teacher', arg)
