"""Does int8 keep what a student learned, taught and untaught alike?

  python -m benchmarks.int8_students --study STUDY --work FOLDER --dataset NAME

takes the best checkpoints of a study's cells (which it must have kept:
study.keep=best) and writes each as a float file, as a statically quantised one,
without a bound on the accuracy that this may cost, and as one that was
fine-tuned on with rounding (configs/qat.py, guided by the float student). The
control of the last is a float file after the same steps without rounding: what
fine-tuning on gives by itself. ONNX Runtime runs all on the test images; a row
a cell is in docs/study/int8.json, of which `python -m benchmarks.publish` makes
the page. It can be stopped and begun again; what was measured stays. It must be
run from the folder that the study was run from. Needs requirements-export.txt.
`--times` measures milliseconds as well, of the files of the first cell: time
does not depend on the values of weights. For an idle machine.
"""

import argparse
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from benchmarks import int8
from benchmarks.int8_tables import FORMS, METRICS
from tlkd_jax import export
from tlkd_jax.data import Dataset, Split
from tlkd_jax.evaluation import metrics, records
from tlkd_jax.export import onnx, run_data, student
from tlkd_jax.export.student import Student
from tlkd_jax.runtime import made as made_by
from tlkd_jax.runtime.atomic import replace_text

OUT = pathlib.Path(__file__).resolve().parent.parent / 'docs/study/int8.json'
# The fall in accuracy is what is measured.
_UNBOUNDED = export.Int8(max_accuracy_drop=1.0)
# The same student, guide, steps and rates, and no rounding.
_UNROUNDED = ('--config.quantize.mode=none', '--config.student.head=keep')


def cells(
  study: pathlib.Path, dataset: str, sizes: Iterable[str], arms: Iterable[str]
) -> list[pathlib.Path]:
  """The finished cells that kept their best checkpoint, seed after seed."""
  found = [
    folder
    for size, arm in itertools.product(sizes, arms)
    for folder in study.glob(f'cells/{dataset}/{size}/{arm}/seed*')
    if (folder / 'cell.json').exists()
    and any((folder / 'checkpoints' / 'best').glob('*/record'))
  ]
  return sorted(found, key=lambda folder: (folder.name, folder.parts))


def measure(
  cell: pathlib.Path, work: pathlib.Path, known: Mapping[str, Any]
) -> dict[str, Any]:
  """The row of one cell; what is known of it stays as it is."""
  size, arm, seed = cell.parts[-3:]
  own = work / size / arm / seed
  dataset = run_data.load(cell)
  loaded = student.load_student(cell)
  test = dataset.splits['test']
  forms = dict(known.get('forms', {}))
  row: dict[str, Any] = {
    'dataset': cell.parts[-4],
    'size': size,
    'arm': arm,
    'seed': int(seed.removeprefix('seed')),
    'model': loaded.model.name,
    'image_size': loaded.image_size,
    'test_images': len(test),
    'processor': made_by.processor(),
  }
  row = {**row, **known, 'forms': forms}
  with tempfile.TemporaryDirectory() as made:
    folder = pathlib.Path(made)
    exact = _write('float', cell, own, folder / 'exact.onnx')
    expected = run_data.predictions(loaded, test, onnx.load(exact))
    for form in FORMS:
      if form in forms:
        continue
      path = _write(form, cell, own, folder / f'{form}.onnx')
      logits = run_data.predictions(loaded, test, onnx.load(path))
      forms[form] = _scores(logits, expected, test, path)
  if 'qat_steps' not in row:
    config = json.loads((own / 'config.json').read_text())
    row |= {'qat_steps': config['num_steps']} | _simulated(own, dataset, row)
  return row


def times(
  cell: pathlib.Path, own: pathlib.Path, threads: int = 2
) -> list[dict[str, Any]]:
  """Rows of benchmarks/int8.py: each int8 form in turn with float."""
  rows = []
  with tempfile.TemporaryDirectory() as made:
    folder = pathlib.Path(made)
    exact = _write('float', cell, own, folder / 'float.onnx')
    for form in ('static', 'qat'):
      files = exact, _write(form, cell, own, folder / f'{form}.onnx')
      for batch in (1, 32):
        row = int8.measure(files, batch, threads, rounds=21)
        rows.append(
          {'form': form}
          | {k: v for k, v in row.items() if not k.endswith('_shares')}
        )
  return rows


def _write(
  form: str, cell: pathlib.Path, own: pathlib.Path, path: pathlib.Path
) -> pathlib.Path:
  """The file of one form; `own` and its neighbour hold what was fine-tuned."""
  if form == 'float':
    export.export_run(cell, 'onnx', path, fold_norm=True)
  elif form == 'static':
    export.export_run(cell, 'onnx', path, quantize=_UNBOUNDED)
  elif form == 'qat':
    if not (own / 'summary.json').exists():
      _fine_tune(cell, own)
    export.export_run(own, 'onnx', path)
  else:
    plain = own.with_name(f'{own.name}_float')
    _fine_tune(cell, plain, *_UNROUNDED)
    export.export_run(plain, 'onnx', path, fold_norm=True)
  return path


def _scores(
  logits: np.ndarray, expected: np.ndarray, split: Split, path: pathlib.Path
) -> dict[str, float]:
  found = metrics.compute_metrics(logits, split.labels)
  same = float(np.mean(logits.argmax(-1) == expected.argmax(-1)))
  return {name: found[name] for name in METRICS} | {
    'agreement': same,
    'bytes': path.stat().st_size,
  }


def _simulated(
  rounded: pathlib.Path, dataset: Dataset, row: dict[str, Any]
) -> dict[str, float]:
  """What the fine-tuned student has in JAX, beside its file's accuracy."""
  loaded: Student = student.load_student(rounded)
  test = dataset.splits['test']

  import jax

  apply = jax.jit(loaded.model.apply)

  def run(images):
    outputs, _ = apply(loaded.params, loaded.model_state, images)
    return outputs['logits']

  logits = run_data.predictions(loaded, test, run)
  return {'qat_in_jax_top1': metrics.top1(logits, test.labels)}


def _fine_tune(
  cell: pathlib.Path, workdir: pathlib.Path, *options: str
) -> None:
  command = [
    *(sys.executable, '-m', 'tlkd_jax.main'),
    *('--config', f'{_ROOT}/configs/qat.py:checkpoint={cell}'),
    *('--workdir', str(workdir)),
    *options,
  ]
  subprocess.run(command, check=True, capture_output=True, text=True)


_ROOT = pathlib.Path(__file__).resolve().parent.parent


def _key(cell: pathlib.Path) -> tuple[str, str, str, int]:
  dataset, size, arm, seed = cell.parts[-4:]
  return dataset, size, arm, int(seed.removeprefix('seed'))


def dumps(rows: list[dict[str, Any]]) -> str:
  """One row a line."""
  lines = ',\n'.join(records.dumps(row, sort_keys=True) for row in rows)
  return f'[\n{lines}\n]\n'


def main() -> None:
  """Measures what was not measured yet."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--study', type=pathlib.Path, required=True)
  parser.add_argument('--work', type=pathlib.Path, required=True)
  parser.add_argument('--dataset', required=True, help='below STUDY/cells')
  parser.add_argument('--sizes', nargs='+', default=['10', '50', 'all'])
  parser.add_argument('--arms', nargs='+', default=['tl', 'kd', 'kd_sham'])
  parser.add_argument('--times', action='store_true', help='milliseconds too')
  parser.add_argument('--limit', type=int, help='at most so many cells now')
  parser.add_argument('--out', type=pathlib.Path, default=OUT)
  flags = parser.parse_args()
  out = flags.out.resolve()
  rows = json.loads(out.read_text()) if out.exists() else []
  known = {(r['dataset'], r['size'], r['arm'], r['seed']): r for r in rows}
  found = cells(flags.study.resolve(), flags.dataset, flags.sizes, flags.arms)
  waiting = {cell: known.get(_key(cell), {}) for cell in found}
  waiting = {
    cell: row
    for cell, row in waiting.items()
    if set(row.get('forms', {})) != set(FORMS)
  }
  for number, cell in enumerate(list(waiting)[: flags.limit], 1):
    row = measure(cell, flags.work.resolve(), waiting[cell])
    known[_key(cell)] = row
    replace_text(out, dumps(list(known.values())))
    forms = row['forms']
    said = ', '.join(f'{form} {forms[form]["top1"]:.4f}' for form in FORMS)
    print(f'{number}/{len(waiting)} {cell}: {said}', flush=True)
  if flags.times and found:
    size, arm, seed = found[0].parts[-3:]
    own = flags.work.resolve() / size / arm / seed
    known[_key(found[0])]['times'] = times(found[0], own)
    replace_text(out, dumps(list(known.values())))


if __name__ == '__main__':
  main()
