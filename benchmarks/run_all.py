"""Every benchmark in one command, into one file.

  python -m benchmarks.run_all --out docs/bench.json [--quick] [--only NAME]
  python -m benchmarks.run_all --out docs/bench.json --markdown

Each entry is a process of its own that measures both sides in one run; its
JSON lines are stored with the command, the seconds it took, processor and
versions. A finished entry of the same command is not repeated, so an
interrupted command goes on; `--again` measures anew. `--markdown` prints the
tables of docs/benchmarks.md from the file, targets beside the figures.

Needs `pip install tlkd_jax[benchmark]` (PyTorch's side and the plot), `--data`
naming the folder of trashnet.zip, for the corruptions a Python that has
`imagecorruptions` (`--reference-python`), for frozen features and new families
one that has timm (`--torch-python`), and for the allocators tcmalloc
(`libtcmalloc-minimal4`); an entry whose needs are missing is recorded as
failed, the others run. The expected seconds on two idle cores are beside each
entry below, 105 minutes in all. `--only` names four more entries: `families`,
`new_families`, `frozen_features` and `end_to_end_preloaded`. `accelerator` is
skipped where none is; its figures are in accelerator.json beside the file, this
one has the short ones.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from benchmarks import machine, train_step
from benchmarks.tables import TABLES, table
from tlkd_jax.runtime import devices
from tlkd_jax.runtime.atomic import replace_text
from tlkd_jax.runtime.trees import flatten


@dataclasses.dataclass(frozen=True)
class Entry:
  """A benchmark's arguments, whole and quick, and its expected seconds.

  With `extra` it runs only when it is named, with `card` only where JAX may
  find an accelerator.
  """

  command: str
  quick: str
  seconds: int
  extra: bool = False
  card: bool = False


ENTRIES = {
  'train_step': Entry(
    'train_step --model all --against torch --repeats 9',
    'train_step --model all --against torch --no-compile --repeats 5',
    690,
  ),
  'end_to_end': Entry(
    'end_to_end --data {data}/trashnet.zip --epochs 2',
    'end_to_end --data {data}/trashnet.zip --epochs 1 --quick',
    1580,
  ),
  'end_to_end_preloaded': Entry(
    'end_to_end --data {data}/trashnet.zip --epochs 2 --rounds 2'
    ' --preload libtcmalloc_minimal.so.4',
    'end_to_end --data {data}/trashnet.zip --epochs 1 --quick'
    ' --preload libtcmalloc_minimal.so.4',
    1100,
    extra=True,
  ),
  'loop_overhead': Entry(
    'loop_overhead', 'loop_overhead --image-sizes 64 --rounds 3', 270
  ),
  'many_seeds': Entry(
    'many_seeds',
    'many_seeds --image-sizes 64 --seeds 2 --rounds 3',
    400,
    extra=True,
  ),
  'allocators': Entry(
    'allocators', 'allocators --image-size 64 --steps 10', 240
  ),
  'startup': Entry('startup --whole', 'startup --rounds 1', 480),
  'convolutions': Entry('convolutions', 'convolutions --repeats 3', 230),
  'input_pipeline': Entry(
    'input_pipeline', 'input_pipeline --jpegs 1000 --small 5000', 240
  ),
  'growth': Entry('growth --plot {out}/growth.png', 'growth --quick', 2400),
  'scaling': Entry('scaling --measure', 'scaling --measure --steps 6', 350),
  'scaling_computed': Entry(
    'scaling --compute', 'scaling --compute --pair default --chips 1 8', 140
  ),
  'scaling_sharded': Entry(
    'scaling --compute --sharded --chips 8 64 256',
    'scaling --compute --sharded --pair default --chips 8 64 256',
    110,
    extra=True,
  ),
  'metrics': Entry('metrics', 'metrics --examples 2000', 30),
  'corruptions': Entry(
    'corruptions --reference-python {reference} --rounds 2',
    'corruptions --reference-python {reference} --rounds 1 --images 8',
    80,
  ),
  'families': Entry(
    'train_step --model families --against torch --no-compile --repeats 5'
    ' --parts forward step',
    'train_step --model mobilenet_v3_large --against torch --no-compile'
    ' --repeats 3 --parts forward step',
    900,
    extra=True,
  ),
  'new_families': Entry(
    'families --torch-python {torch} --part step',
    'families --torch-python {torch} --part step --quick --repeats 3',
    2400,
    extra=True,
  ),
  'frozen_features': Entry(
    'families --torch-python {torch} --part features',
    'families --torch-python {torch} --part features --quick --repeats 3',
    200,
    extra=True,
  ),
  'accelerator': Entry(
    'accelerator --out {out}/accelerator.json',
    'accelerator --out {out}/accelerator.json --minutes 9',
    1080,
    card=True,
  ),
}


@dataclasses.dataclass(frozen=True)
class Target:
  """A figure (dotted where nested) with its limit."""

  what: str
  entry: str
  row: dict[str, Any]
  field: str
  limit: float
  at_least: bool = False

  def is_met(self, value: float) -> bool:
    """Whether a measured value keeps the limit."""
    return value >= self.limit if self.at_least else value <= self.limit


def _step_targets() -> list[Target]:
  targets = []
  for model in train_step.MODELS:
    mobile = model in ('efficientnet_lite0', 'mobilenet_v2')
    limit = 0.9 if mobile else 1.1
    targets.append(
      Target(
        f'{model}: step / PyTorch step',
        'train_step',
        {'model': model},
        'step_ratio',
        limit,
      )
    )
  lite = {'model': 'efficientnet_lite0'}
  name = 'efficientnet_lite0: forward / PyTorch forward'
  return [*targets, Target(name, 'train_step', lite, 'forward_ratio', 0.85)]


TARGETS = [
  *_step_targets(),
  Target('TL epoch / PyTorch epoch', 'end_to_end', {}, 'tl_ratio', 0.9),
  Target('TL+KD epoch / PyTorch epoch', 'end_to_end', {}, 'tlkd_ratio', 0.7),
  Target('TL peak memory / PyTorch', 'end_to_end', {}, 'tl_memory', 1.0),
  Target('TL+KD peak memory / PyTorch', 'end_to_end', {}, 'tlkd_memory', 1.0),
  *(
    Target(
      f'loop / bare step, {size} px',
      'loop_overhead',
      {'image_size': size},
      'ratio',
      1.03,
    )
    for size in (64, 128)
  ),
  *(
    Target(what, 'startup', {'config': config}, f'{kind}_seconds', limit)
    for what, config, kind, limit in (
      ('TL, warm, to its first step, s', 'configs/tl.py', 'warm', 6.0),
      ('TL, cold, to its first step, s', 'configs/tl.py', 'cold', 15.0),
      ('TL+KD, smoke, cold, whole, s', 'configs/kd.py:smoke', 'cold', 30.0),
      ('quick start, cold, whole, s', 'configs/compare.py', 'cold', 150.0),
    )
  ),
  *(
    Target(
      f'batches / what a step consumes, {size} px',
      'input_pipeline',
      {},
      f'{name}.times_step',
      3.0,
      at_least=True,
    )
    for name, size in (('large', 224), ('small', 32))
  ),
  Target('largest exponent of growth', 'growth', {}, 'largest_exponent', 1.05),
  Target(
    'new families: largest step / PyTorch step',
    'new_families',
    {},
    'largest.step',
    1.3,
  ),
  Target(
    'frozen teachers: largest time of features / PyTorch',
    'frozen_features',
    {},
    'largest.features',
    1.1,
  ),
  Target(
    'bootstrap of all metrics, s', 'metrics', {}, 'bootstrap_seconds', 20.0
  ),
]


def run_entry(command: str) -> dict[str, Any]:
  """Runs `python -m benchmarks.COMMAND`; its rows, or the end of its error."""
  start = time.time()
  module, *arguments = command.split()
  cache = pathlib.Path.home() / '.cache' / 'tlkd_jax' / 'compiled'
  process = subprocess.run(
    [sys.executable, '-m', f'benchmarks.{module}', *arguments],
    capture_output=True,
    text=True,
    env={'JAX_COMPILATION_CACHE_DIR': str(cache)} | os.environ,
  )
  rows = [
    json.loads(line)
    for line in process.stdout.splitlines()
    if line.startswith('{')
  ]
  entry = {
    'command': f'python -m benchmarks.{command}',
    'seconds': round(time.time() - start, 1),
    'date': time.strftime('%Y-%m-%d'),
    'rows': rows,
  } | machine.versions()
  if process.returncode or not rows:
    entry['failed'] = process.stderr[-2000:]
  return entry


def store(path: pathlib.Path, results: dict) -> None:
  """Writes the file, whole or not at all."""
  replace_text(path, json.dumps(results, indent=1) + '\n')


def load(path: pathlib.Path) -> dict:
  """The file's entries, {} where there is none."""
  return json.loads(path.read_text()) if path.exists() else {}


def target_table(results: dict) -> str:
  """Every target beside what was measured."""
  lines = []
  for target in TARGETS:
    rows = results.get(target.entry, {}).get('rows', [])
    found = [r for r in rows if target.row.items() <= r.items()]
    found = [r for r in found if target.field in flatten(r)]
    value = flatten(found[0]).get(target.field) if found else None
    met = '' if value is None else ('yes' if target.is_met(value) else 'no')
    shown = 'not measured' if value is None else value
    limit = f'{"≥" if target.at_least else "≤"} {target.limit}'
    lines.append([target.what, limit, shown, met])
  return table(['what', 'target', 'measured', 'met'], lines)


def markdown(results: dict) -> str:
  """The tables of docs/benchmarks.md and docs/scaling.md."""
  parts = [target_table(results)]
  for name, entry in results.items():
    head = f'### {name}\n\n`{entry["command"]}`, {entry["date"]}'
    versions = ', '.join(f'{k} {v}' for k, v in entry['versions'].items())
    head += f', {entry["seconds"]:.0f} s, {entry["cpu"]} x {entry["cores"]}, '
    parts.append(head + versions)
    if 'failed' in entry:
      parts.append('failed:\n\n' + entry['failed'])
    else:
      parts.append(TABLES[name](entry['rows']))
  return '\n\n'.join(parts) + '\n'


def main() -> None:
  """Runs what is missing, or prints the tables."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--data', default='../shared/data')
  parser.add_argument('--reference-python', default=sys.executable)
  parser.add_argument('--torch-python', default=sys.executable)
  parser.add_argument('--only', choices=ENTRIES, action='append')
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--again', action='store_true')
  parser.add_argument('--markdown', action='store_true')
  arguments = parser.parse_args()
  results = load(arguments.out)
  if arguments.markdown:
    print(markdown(results))
    return
  arguments.out.parent.mkdir(parents=True, exist_ok=True)
  usual = [name for name, entry in ENTRIES.items() if not entry.extra]
  for name in arguments.only or usual:
    entry = ENTRIES[name]
    if entry.card and not devices.has_card():
      print(f'{name}: skipped, no accelerator is here')
      continue
    template = entry.quick if arguments.quick else entry.command
    template = functools.partial(
      template.format, data=arguments.data, out=arguments.out.parent
    )
    command = template(
      reference=arguments.reference_python, torch=arguments.torch_python
    )
    # Where another Python lies belongs to this machine, not to the record.
    told = template(reference='PYTHON', torch='PYTHON')
    told = f'python -m benchmarks.{told}'
    old = results.get(name, {})
    same = old.get('command') == told
    if same and 'failed' not in old and not arguments.again:
      print(f'{name}: there already')
      continue
    print(f'{name}: about {entry.seconds} s', flush=True)
    results[name] = run_entry(command) | {'command': told}
    store(arguments.out, results)
    verdict = 'failed' if 'failed' in results[name] else 'done'
    print(f'{name}: {verdict} in {results[name]["seconds"]} s', flush=True)


if __name__ == '__main__':
  main()
