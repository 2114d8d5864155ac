"""Fine-tunes the student without a teacher: the TL baseline.

python -m tlkd_jax.main --config configs/tl.py --workdir runs/tl
"""

from configs import base


def get_config(arg: str | None = None):
  """The tl configuration; `arg` as in configs/base.py."""
  return base.get_base(arg, arm='tl')
