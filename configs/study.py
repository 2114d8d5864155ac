"""Does the teacher help, by how much, how sure are we?

python -m tlkd_jax.study --config configs/study.py --workdir runs/study

`configs/study.py:dataset=folder:PATH` is a study of one's own images,
`configs/study.py:arms=grid` of temperature x soft_weight,
`configs/study.py:arms=methods` of all methods. Several data sets may share one
--workdir, by one command each.
"""

from tlkd_jax.study import designs


def get_config(arg: str | None = None):
  """The study's configuration; `arg` as in designs.config_of."""
  return designs.config_of(arg)
