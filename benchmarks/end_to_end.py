"""An epoch of TL and of TL+KD, ours against a plain PyTorch loop.

  python -m benchmarks.end_to_end --data trashnet.zip [--quick]

Both sides fine-tune EfficientNet-Lite0 on the same folders of JPEGs at 128
pixels, batch 32, from the same weights (their equal outputs are asserted), with
AdamW, the same schedule, random resized crops and flips, frozen BatchNorm and
dropout; TL+KD under the same Lite2 teacher, fine-tuned here first. Ours is the
command line, with stored targets (`--targets cached`) for two views of each
image; theirs is benchmarks/torch_training.py. The sides alternate, each run in
a process of its own, so that neither has the other's idle threads beside it.
Our programs are compiled in the first round and come from the compilation cache
in the others; `by_round` has the epochs of each. `--preload LIBRARY` gives both
sides another allocator, as launch/local.sh does.

An epoch is training, validation and the checkpoint. The first two, which
compile, warm up and fill the disk cache, are left out on both sides, and with
them the computation of the targets. `setup_seconds` is the run's time beside
its epochs: data, models, the final test. Peak memory is the highest sum of the
proportional set sizes of the process and its children. Prints one JSON line.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile

import jax
import numpy as np

from benchmarks import machine
from tlkd_jax import models, settings
from tlkd_jax.runtime import allocator, sharding
from tlkd_jax.training import checkpoints, networks
from tlkd_jax.training.metric_writers import read_rows

SIZE, BATCH, SKIPPED = 128, 32, 2
STUDENT, TEACHER = 'efficientnet_lite0', 'efficientnet_lite2'
OPTIMIZER = {'learning_rate': 3e-4, 'weight_decay': 1e-4}


def unpack(archive: str, folder: pathlib.Path, limit: int) -> int:
  """Writes train, validation and test folders; returns the training images.

  Every seventh training image becomes validation. `limit` keeps so many images
  of each class and split, 0 all.
  """
  with zipfile.ZipFile(archive) as files:
    names = sorted(n for n in files.namelist() if n.endswith('.jpg'))
    counts: dict[tuple[str, str], int] = {}
    seen: dict[str, int] = {}
    for name in names:
      split, label, file = name.split('/')[-3:]
      if split == 'train':
        seen[label] = seen.get(label, 0) + 1
        split = 'validation' if seen[label] % 7 == 0 else 'train'
      key = (split, label)
      counts[key] = counts.get(key, 0) + 1
      if limit and counts[key] > limit:
        continue
      path = folder / split / label / file
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(files.read(name))
  return len(list((folder / 'train').rglob('*.jpg')))


def watched(command: list[str], preload: str) -> dict:
  """Runs a command to its end; its wall time and peak memory in MiB."""
  start = time.perf_counter()
  process = subprocess.Popen(
    command,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env=os.environ | ({'LD_PRELOAD': preload} if preload else {}),
  )
  peak, done = [0.0], threading.Event()

  def watch():
    while not done.wait(0.5):
      peak[0] = max(peak[0], machine.memory_mib(process.pid))

  thread = threading.Thread(target=watch)
  thread.start()
  output, _ = process.communicate()
  done.set()
  thread.join()
  # The loader goes on without a library that it does not find.
  if process.returncode or 'cannot be preloaded' in output:
    raise RuntimeError(f'{" ".join(command)}\n{output[-3000:]}')
  return {'wall': time.perf_counter() - start, 'peak_mib': peak[0]}


def command_line(arm: str, job: dict, workdir: pathlib.Path) -> list[str]:
  """`tlkd_jax.main` for one arm."""
  changes = {
    'image_size': SIZE,
    'batch_size': BATCH,
    'num_train_per_class': 0,
    'num_steps': job['steps'] * job['epochs'],
    'log_every_steps': job['steps'],
    'eval_every_steps': job['steps'],
    'ema_decay': 0.0,
    'label_smoothing': 0.0,
    'batch_norm': 'frozen',
    'data.cache_dir': job['cache'],
    'optimizer.layer_decay': 1.0,
    'optimizer.head_multiplier': 1.0,
  } | {f'optimizer.{k}': v for k, v in OPTIMIZER.items()}
  if arm == 'kd':
    changes['teacher.checkpoint'] = job['teacher_run']
    if job['targets'] == 'cached':
      changes |= {
        'targets.mode': 'cached',
        'targets.views': 2,
        'targets.dir': str(workdir / 'targets'),
      }
  return [
    *(sys.executable, '-m', 'tlkd_jax.main', f'--workdir={workdir}'),
    f'--compilation_cache={job["programs"]}',
    f'--config=configs/{arm}.py:dataset=folder:{job["data"]}',
    *(f'--config.{key}={value}' for key, value in changes.items()),
  ]


def ours(arm: str, job: dict, workdir: pathlib.Path) -> dict:
  """One run of ours."""
  result = watched(command_line(arm, job, workdir), job['preload'])
  rows = read_rows(workdir / 'metrics.jsonl')
  # Time up to the end of each epoch's last step.
  ends = [row['seconds'] for row in rows if row['split'] == 'train']
  summary = json.loads((workdir / 'summary.json').read_text())
  learner = summary['teacher' if arm == 'teacher' else 'student']
  return result | {
    'epoch_seconds': [ends[0], *np.diff(ends).tolist()],
    'test_top1': learner['test']['top1'],
  }


def theirs(arm: str, job: dict, workdir: pathlib.Path) -> dict:
  """One run of the PyTorch loop."""
  workdir.mkdir(parents=True)
  spec = models.MODELS[STUDENT]
  request = OPTIMIZER | {
    'data': job['data'],
    'image_size': SIZE,
    'batch_size': BATCH,
    'epochs': job['epochs'],
    'normalize': [spec.mean, spec.std],
    'workers': job['workers'],
    'student': job['student_weights'],
    'student_name': STUDENT,
    'teacher': job['teacher_weights'] if arm == 'kd' else None,
    'teacher_name': TEACHER,
    'workdir': str(workdir),
  }
  paths = workdir / 'job.json', workdir / 'result.json'
  paths[0].write_text(json.dumps(request))
  command = [sys.executable, '-m', 'benchmarks.torch_training']
  result = watched([*command, *map(str, paths)], job['preload'])
  return result | json.loads(paths[1].read_text())


def save_weights(path: pathlib.Path, model, params, model_state) -> None:
  """Weights by dotted path, and what the model makes of two noise images."""
  images = np.random.default_rng(0).standard_normal((2, SIZE, SIZE, 3))
  images = images.astype(np.float32)
  outputs = jax.jit(model.apply)(params, model_state, images)[0]
  arrays = {f'__{k}': np.asarray(outputs[k]) for k in ('logits', 'pre_logits')}
  flat, _ = jax.tree_util.tree_flatten_with_path(params)
  flat += jax.tree_util.tree_flatten_with_path(model_state)[0]
  for keys, value in flat:
    arrays['.'.join(str(k.key) for k in keys)] = np.asarray(value)
  np.savez(path, __images=images, **arrays)


def prepare(root: pathlib.Path, arguments) -> tuple[dict, dict]:
  """Data, a fine-tuned teacher, weights of both models for the other side."""
  data = root / 'data'
  number = unpack(arguments.data, data, 40 if arguments.quick else 0)
  job = {
    'data': str(data),
    'cache': str(root / 'cache'),
    'programs': str(root / 'programs'),
    'preload': arguments.preload,
    'steps': number // BATCH,
    'epochs': 2,
    'workers': arguments.workers,
    'targets': arguments.targets,
    'teacher_run': str(root / 'teacher'),
    'student_weights': str(root / 'student.npz'),
    'teacher_weights': str(root / 'teacher.npz'),
  }
  teacher = ours('teacher', job, root / 'teacher')
  classes = tuple(sorted(p.name for p in (data / 'train').iterdir()))
  config = settings.make('tl', student=STUDENT, teacher=TEACHER)
  student = networks.load(config, 'student', classes)
  save_weights(
    root / 'student.npz',
    student.network.model,
    student.params,
    student.model_state,
  )
  model = models.create_model(TEACHER, num_classes=len(classes))
  shapes = {
    'params': model.params_shape,
    'model_state': model.model_state_shape,
  }
  copied = sharding.replicated(sharding.make_mesh())
  best = checkpoints.read_model(
    root / 'teacher', checkpoints.abstract_like(shapes, copied)
  )
  save_weights(root / 'teacher.npz', model, best['params'], best['model_state'])
  job['epochs'] = arguments.epochs + SKIPPED
  return job, {'images': number, 'teacher_top1': teacher['test_top1']}


def summarize(runs: list[dict]) -> dict:
  """Medians of one side and arm over all rounds."""
  by_round = [run['epoch_seconds'][SKIPPED:] for run in runs]
  counted = sum(by_round, [])
  setup = [run['wall'] - sum(run['epoch_seconds']) for run in runs]
  return machine.summary('epoch', counted, 'seconds', 3) | {
    'by_round': [[round(s, 3) for s in epochs] for epochs in by_round],
    'setup_seconds': round(statistics.median(setup), 1),
    'peak_mib': round(max(run['peak_mib'] for run in runs)),
    'test_top1': round(statistics.mean(run['test_top1'] for run in runs), 4),
  }


def main() -> None:
  """Runs both sides in turn and prints the JSON line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--data', required=True, help='trashnet.zip')
  parser.add_argument('--targets', choices=('cached', 'online'))
  parser.add_argument('--workers', type=int, default=2, help='of DataLoader')
  parser.add_argument('--rounds', type=int)
  parser.add_argument('--epochs', type=int, default=2, help='counted, per run')
  parser.add_argument('--preload', default='', help='an allocator, both sides')
  parser.add_argument('--quick', action='store_true')
  parser.set_defaults(targets='cached')
  arguments = parser.parse_args()
  allocator.keep_freed_memory()
  rounds = arguments.rounds or (1 if arguments.quick else 3)
  runs: dict[str, list[dict]] = {}
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    job, facts = prepare(root, arguments)
    for number in range(rounds):
      for arm in ('tl', 'kd'):
        for name, side in (('ours', ours), ('torch', theirs)):
          workdir = root / f'{name}_{arm}_{number}'
          run = side(arm, job, workdir)
          runs.setdefault(f'{arm}_{name}', []).append(run)
          print(f'{workdir.name}: {run}', file=sys.stderr, flush=True)
          shutil.rmtree(workdir)
  row = {'benchmark': 'end_to_end', 'quick': arguments.quick} | facts
  row |= {'targets': arguments.targets, 'rounds': rounds}
  row |= {'preload': arguments.preload}
  row |= {key: summarize(value) for key, value in runs.items()}
  for arm in ('tl', 'kd'):
    mine, other = row[f'{arm}_ours'], row[f'{arm}_torch']
    name = 'tlkd' if arm == 'kd' else arm
    for ratio, field in (('ratio', 'epoch_seconds'), ('memory', 'peak_mib')):
      row[f'{name}_{ratio}'] = round(mine[field] / other[field], 3)
  print(json.dumps(row | machine.versions()))


if __name__ == '__main__':
  main()
