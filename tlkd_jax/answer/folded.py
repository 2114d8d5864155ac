"""What an answer over folds rests on, in words."""

from collections.abc import Sequence

from tlkd_jax.answer.rows import Row


def remarks(counted: Sequence[tuple[int, Row]]) -> list[str]:
  """What a reader must know where the runs of an answer are of folds.

  Args:
    counted: (seed, row) of the runs.
  """
  folds = {row['folds'] for _, row in counted if row.get('folds')}
  if not folds:
    return []
  count = max(folds)
  tested: dict[int, int] = {}
  for seed in {seed for seed, _ in counted}:
    tested[seed % count] = tested.get(seed % count, 0) + 1
  text = (
    f'The images are cut into {count} folds: the run of seed i is tested on '
    f'fold i mod {count} and learns from the others. '
  )
  if len(tested) < count:
    some = f'{len(tested)} of the {count} folds'
    text += f'{some} {"is" if len(tested) == 1 else "are"} tested so far. '
  elif len(set(tested.values())) > 1:
    text += (
      f'Each image is tested {min(tested.values())} or '
      f'{max(tested.values())} times: seeds in a multiple of {count} would '
      'weigh all alike. '
    )
  text += (
    'Training sets of different folds share most of their images, so that the '
    'interval is that of Nadeau and Bengio (2003): the variance over S runs '
    f's^2 counts 1 / S + 1 / {count - 1} times, and more seeds make only the '
    'first part smaller. Intervals over seeds and p of the t test are so too, '
    'and verdicts need both p; the exact p alone does not hold that part.'
  )
  return [text]
