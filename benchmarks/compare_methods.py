"""Table of a study of methods: each against plain TL, losers named.

  python -m tlkd_jax.study \\
    --config configs/study.py:dataset=folder:data/trashnet.zip,arms=methods \\
    --config.study.sizes=(20,) --config.study.seeds=3 --workdir runs/methods
  python -m benchmarks.compare_methods runs/methods

The study is resumed cell by cell by the same command, and may be split over
processes; the table is of what is finished. The best step of each run is chosen
on validation, test is read once. Differences are paired by seed.
"""

import argparse
import pathlib
import statistics

from tlkd_jax.study import results

_BASELINE = 'tl'


def table(rows: list[dict], baseline: str = _BASELINE) -> str:
  """Markdown: one line per method, the best difference first.

  Args:
    rows: of one data set and size, as results.collect gives them.
    baseline: the arm that differences refer to.

  Raises:
    ValueError: no finished cell of the baseline, or several data sets or sizes.
  """
  if len({(row['dataset'], row['size']) for row in rows}) > 1:
    raise ValueError('rows of one data set and one size are needed')
  tests: dict[str, dict[int, dict]] = {}
  for row in rows:
    if row['chosen'] and row['kind'] != 'teacher':
      tests.setdefault(row['arm'], {})[row['seed']] = row['test']
  if baseline not in tests:
    raise ValueError(f'no finished cell of the arm {baseline!r}')
  lines = {arm: _line(arm, own, tests[baseline]) for arm, own in tests.items()}
  order = sorted(lines, key=lambda arm: -lines[arm][0])
  lost = [a for a in order if a != baseline and lines[a][0] < 0]
  text = [
    f'| method | seeds | test top-1 | minus {baseline} | per seed | test NLL |',
    '| --- | --- | --- | --- | --- | --- |',
    *(lines[arm][1] for arm in order),
    '',
    f'Below plain TL in the mean: {", ".join(lost) or "none"}.',
  ]
  return '\n'.join(text)


def _line(arm: str, own: dict, reference: dict) -> tuple[float, str]:
  """(mean difference, its line); without a common seed it stands last."""
  common = sorted(own.keys() & reference.keys())
  differences = [own[s]['top1'] - reference[s]['top1'] for s in common]
  mean = statistics.fmean(differences) if common else float('-inf')
  cells = [
    arm,
    str(len(own)),
    f'{statistics.fmean(v["top1"] for v in own.values()):.4f}',
    f'{mean:+.4f}' if common else '-',
    ' '.join(f'{d:+.4f}' for d in differences),
    f'{statistics.fmean(v["nll"] for v in own.values()):.3f}',
  ]
  return mean, f'| {" | ".join(cells)} |'


def main() -> None:
  """Prints one table for each data set and size of a study."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('study', type=pathlib.Path, help='its --workdir')
  parser.add_argument('--metric', default='top1', help='that chose trials')
  arguments = parser.parse_args()
  rows = results.collect(arguments.study, arguments.metric)
  groups = sorted({(row['dataset'], row['size']) for row in rows})
  if not groups:
    parser.error(f'no finished cell in {arguments.study}')
  for group in groups:
    print(f'\n{group[0]}, {group[1]:g} training images per class\n')
    own = [row for row in rows if (row['dataset'], row['size']) == group]
    print(table(own))


if __name__ == '__main__':
  main()
