"""Teacher, TL and TL+KD in one command, side by side.

python -m tlkd_jax.main --config configs/compare.py --workdir runs/compare
"""

from configs import base


def get_config(arg: str | None = None):
  """The compare configuration; `arg` as in configs/base.py."""
  return base.get_base(arg, arm='compare')
