"""Fine-tunes the student under a fine-tuned teacher: TL+KD.

python -m tlkd_jax.main --config configs/kd.py --workdir runs/kd
"""

from configs import base


def get_config(arg: str | None = None):
  """The kd configuration; `arg` as in configs/base.py."""
  return base.get_base(arg, arm='kd')
