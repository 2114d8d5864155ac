"""Fine-tunes a finished student further, rounding as its int8 file will.

python -m tlkd_jax.main --config configs/qat.py:checkpoint=RUN --workdir qat

RUN is the workdir of a TL or TL+KD run, whose configuration is taken over, with
a tenth of its steps and of its learning rate. `guide=student` (the default) is
taught by the student of RUN itself, in float; `guide=teacher` by RUN's teacher,
as RUN was; `guide=none` by the labels alone.
"""

from tlkd_jax.training import quantization


def get_config(arg: str | None = None):
  """The configuration; `arg` as in quantization.config_of."""
  return quantization.config_of(arg)
