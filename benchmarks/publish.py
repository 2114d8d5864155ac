"""The pages of docs/study from the rows beside them.

  python -m benchmarks.publish                      # every page again
  python -m benchmarks.publish --study STUDY --name confirm
  python -m benchmarks.publish --into STUDY --name confirm

The second takes a study's results.json, plan.json and noise.json into one file,
docs/study/NAME.json, which is small enough to commit, and writes its page,
docs/study/NAME.md. What an earlier version of a cell lacks is made up from the
predictions in STUDY/cells, where they are. A study that still runs may be read.
The third makes a study of what was taken in, which the study's command goes on
with: records alone, without weights, so that no further arm finds its teachers.
No number of a page is copied by hand; tests hold the pages to the rows.
"""

import argparse
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

from benchmarks import compare_methods
from benchmarks.int8_tables import int8
from benchmarks.study_tables import (
  label_worth,
  looks,
  six_seeds,
  tuning,
)
from tlkd_jax.answer import conclusions, plan
from tlkd_jax.evaluation import records
from tlkd_jax.report import markdown
from tlkd_jax.runtime.atomic import replace_text
from tlkd_jax.study import noise, pages, results

ROOT = pathlib.Path(__file__).resolve().parent.parent / 'docs' / 'study'
_TREATMENT, _REFERENCE = 'kd', 'tl'
_METRICS = ('top1', 'macro_f1', 'nll', 'brier', 'ece', 'aurc')
# What a row has beside its cell's record.
_OF_STUDY = frozenset(('folder', 'chosen', 'trials'))
_MADE = (
  '*Made from {files} by `python -m benchmarks.publish`; do not edit. What it '
  'means is in [results.md](../results.md).*\n\n'
)


def load(name: str, root: pathlib.Path = ROOT) -> Any:
  """What docs/study/NAME.json holds."""
  return json.loads((root / f'{name}.json').read_text())


def of_study(stored: dict[str, Any]) -> str:
  """The page of a study that was taken in, as STUDY/report.md."""
  rows = results.with_answers(pathlib.Path('nowhere'), stored['rows'])
  stated = plan.from_json(stored['plan']) if stored['plan'] else None
  words = dict(stated.words) if stated else {}
  conclusion = conclusions.draw(
    rows,
    words.get('treatment', _TREATMENT),
    words.get('reference', _REFERENCE),
    ('top1', *stated.metrics) if stated else _METRICS,
    stated,
  )
  sections = pages.make_sections(rows, conclusion, stored['noise'])
  seeds = sorted({row['seed'] for row in rows if row['chosen']})
  subtitle = (
    f'{sum(row["chosen"] for row in rows)} runs; seeds '
    f'{", ".join(map(str, seeds))}'
  )
  return markdown.page(pages.TITLE, subtitle, sections)


def take(study: pathlib.Path) -> dict[str, Any]:
  """A study's rows, plan and reruns.

  Raises:
    FileNotFoundError: it has no results.json.
    ValueError: a file is damaged.
  """
  rows = json.loads((study / 'results.json').read_text())
  stated = plan.read(study)
  return {
    'plan': plan.as_json(stated) if stated else None,
    'noise': noise.collect(study, write=False),
    'rows': results.completed(study, rows),
  }


def dumps(stored: dict[str, Any]) -> str:
  """What `take` took, one row a line."""
  parts = []
  for key in ('noise', 'rows'):
    lines = ',\n'.join(records.dumps(r, sort_keys=True) for r in stored[key])
    parts.append(f'"{key}": [\n{lines}\n]')
  stated = records.dumps(stored['plan'], sort_keys=True)
  return '{\n"plan": ' + ',\n'.join([stated, *parts]) + '\n}\n'


def give_back(stored: dict[str, Any], study: pathlib.Path) -> int:
  """A study as `take` took it: the plan, and a record a cell.

  What one seed lacks of the arms of a place is made whole by the study's
  command, which needs the teacher's weights: of such a seed nothing is given.

  Returns:
    How many cells.
  """
  places: dict[tuple, dict[int, list[dict[str, Any]]]] = {}
  for row in stored['rows']:
    seeds = places.setdefault((row['dataset'], row['size']), {})
    seeds.setdefault(row['seed'], []).append(row)
  count = 0
  for seeds in places.values():
    arms = {row['arm'] for rows in seeds.values() for row in rows}
    for rows in seeds.values():
      if {row['arm'] for row in rows} != arms:
        continue
      for row in rows:
        record = {k: v for k, v in row.items() if k not in _OF_STUDY}
        records.write_json(study / row['folder'] / 'cell.json', record)
        count += 1
  if stored['plan']:
    records.write_json(study / plan.FILE, stored['plan'])
  return count


def _methods(rows: list[dict]) -> str:
  return (
    '# All methods on TrashNet, 20 images a class, 64 px, three seeds\n\n'
    f'{compare_methods.table(rows)}\n'
  )


# Page -> (files that it is made from, how).
PAGES: dict[str, tuple[tuple[str, ...], Callable[..., str]]] = {
  'tuning': (('tuning_rows',), tuning),
  'results': (('results', 'grid'), six_seeds),
  'methods': (('methods',), _methods),
  'sequential': (('sequential',), looks),
  'label_worth': (('label_worth',), label_worth),
  'int8': (('int8',), int8),
}


def page(name: str, root: pathlib.Path = ROOT) -> str:
  """A page of docs/study, made again."""
  files, make = PAGES.get(name, ((name,), of_study))
  text = make(*(load(file, root) for file in files))
  title, _, rest = text.partition('\n\n')
  links = ' and '.join(f'[{file}.json]({file}.json)' for file in files)
  return f'{title}\n\n{_MADE.format(files=links)}{rest}'


def names(root: pathlib.Path = ROOT) -> list[str]:
  """Pages that there are: PAGES, and the studies that were taken in."""
  taken = [
    path.stem
    for path in sorted(root.glob('*.json'))
    if isinstance(stored := load(path.stem, root), dict)
    and {'plan', 'noise', 'rows'} <= stored.keys()
  ]
  return [*PAGES, *taken]


def _taken(parser, name: str, root: pathlib.Path) -> dict[str, Any]:
  taken = [found for found in names(root) if found not in PAGES]
  if name not in taken:
    parser.error(f'--name is {name!r}; accepted: {", ".join(taken)}')
  return load(name, root)


def main() -> None:
  """Takes a study in, or writes every page."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--study', type=pathlib.Path, help='its --workdir')
  parser.add_argument('--into', type=pathlib.Path, help='a new --workdir')
  parser.add_argument('--name', help='of its page')
  parser.add_argument('--out', type=pathlib.Path, default=ROOT)
  arguments = parser.parse_args()
  given = [arguments.study, arguments.into]
  if (given.count(None) == 2) != (arguments.name is None):
    parser.error('--study or --into and --name go together')
  if arguments.into is not None:
    if given.count(None) == 0 or (arguments.into / 'cells').exists():
      parser.error('--into makes a new study, without --study')
    stored = _taken(parser, arguments.name, arguments.out)
    count = give_back(stored, arguments.into)
    print(f'{arguments.into}: {count} of {len(stored["rows"])} cells')
    return
  arguments.out.mkdir(parents=True, exist_ok=True)
  wanted = names(arguments.out) if arguments.study is None else []
  if arguments.study is not None:
    if arguments.name in {f for files, _ in PAGES.values() for f in files}:
      parser.error(f'--name {arguments.name} is of other rows; take another')
    if not re.fullmatch(r'\w+', arguments.name):
      parser.error(f'--name is {arguments.name!r}; accepted: a word')
    if not (arguments.study / 'results.json').exists():
      parser.error(f'{arguments.study} has no results.json: no study is there')
    try:
      taken = dumps(take(arguments.study))
    except ValueError as error:
      parser.error(str(error))
    replace_text(arguments.out / f'{arguments.name}.json', taken)
    wanted = [arguments.name]
  for name in wanted:
    replace_text(arguments.out / f'{name}.md', page(name, arguments.out))
    print(arguments.out / f'{name}.md')


if __name__ == '__main__':
  main()
