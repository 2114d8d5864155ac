"""Fine-tunes the teacher alone.

python -m tlkd_jax.main --config configs/teacher.py --workdir runs/teacher
"""

from configs import base


def get_config(arg: str | None = None):
  """The teacher configuration; `arg` as in configs/base.py."""
  return base.get_base(arg, arm='teacher')
