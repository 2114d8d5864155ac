"""The launchers, with stand-ins for srun, scontrol and gcloud on PATH.

The stand-ins start two real local processes, told who they are by Slurm's
variables, from which jax.distributed finds its coordinator.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests import tiny
from tests.workdirs import arrays, wait_for_step
from tlkd_jax import arms
from tlkd_jax.runtime import sharding
from tlkd_jax.training.metric_writers import read_rows

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Runs the tiny models where the launcher asks for the package's own.
PYTHON = r"""#!/usr/bin/env bash
if [ "$2" = venv ]; then
  mkdir -p "$3/bin"
  ln -s "$0" "$3/bin/python"
  ln -s "$(type -P true)" "$3/bin/pip"
  exit
fi
if [ "$2" = tlkd_jax.main ]; then
  if [ -n "${TOLD:-}" ]; then
    printf '%s\n' "${@:3}" > "$TOLD/$SLURM_PROCID.told"
    exit "$CODE"
  fi
  set -- -m tests.tiny "${@:3}"
fi
exec "$REAL_PYTHON" "$@"
"""

TWO = """
two() {
  export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2
  started=()
  for i in 0 1; do
    (
      export SLURM_PROCID=$i SLURM_LOCALID=$i
      cd "$(home "$i")"
      exec "$@"
    ) > "$LOGS/$i.out" 2> "$LOGS/$i.err" &
    started+=($!)
  done
  for pid in "${started[@]}"; do wait "$pid"; done
}
"""

SRUN = f"""#!/usr/bin/env bash
set -eu
echo "srun $*" >> "$LOGS/calls"
home() {{ pwd; }}
{TWO}
two "$@"
"""

SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$LOGS/calls"
"""

GCLOUD = f"""#!/usr/bin/env bash
set -eu
echo "gcloud $*" >> "$LOGS/calls"
home() {{ echo "$WORKERS/$1"; }}
{TWO}
what=$4
shift 4
case $what in
  create) mkdir -p "$WORKERS/0" "$WORKERS/1" ;;
  ssh) two bash -c "${{@: -1}}" ;;
  scp)
    if [ "$1" = --recurse ]; then
      cp -r "${{2#*:}}" "$3"
    else
      for i in 0 1; do cp "$1" "$WORKERS/$i/${{2#*:}}"; done
    fi
    ;;
esac
"""


def free_job() -> int:
  """A job number for which the port that JAX derives from it is free."""
  for job in range(os.getpid() % 4096, 4096):
    with socket.socket() as listener:
      try:
        listener.bind(('127.0.0.1', job + 61440))
        return job
      except OSError:
        continue
  raise AssertionError('no free port')


@pytest.fixture
def place(tmp_path):
  """A folder with stand-ins, and the environment in which they are found."""
  commands = tmp_path / 'bin'
  commands.mkdir()
  for name, text in {
    'srun': SRUN,
    'scontrol': SCONTROL,
    'gcloud': GCLOUD,
    'python': PYTHON,
    'python3.11': PYTHON,
  }.items():
    (commands / name).write_text(text)
    (commands / name).chmod(0o755)
  (tmp_path / 'logs').mkdir()
  environment = os.environ | {
    'PATH': f'{commands}:{os.environ["PATH"]}',
    'REAL_PYTHON': sys.executable,
    'LOGS': str(tmp_path / 'logs'),
    'WORKERS': str(tmp_path / 'workers'),
    'SLURM_JOB_ID': str(free_job()),
    'SLURM_SUBMIT_DIR': str(ROOT),
    'XLA_FLAGS': (
      f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=1'
    ),
  }
  for name in ('PYTHON', 'SLURM_ARRAY_TASK_ID', 'KEEP', 'SETUP', 'REMOTE'):
    environment.pop(name, None)
  return tmp_path, environment


def launch(script, *arguments, env, code: int = 0):
  result = subprocess.run(
    ['bash', str(ROOT / 'launch' / script), *map(str, arguments)],
    env=env,
    capture_output=True,
    text=True,
    timeout=600,
  )
  logs = [p.read_text() for p in pathlib.Path(env['LOGS']).glob('*.err')]
  assert result.returncode == code, result.stderr + '\n'.join(logs)
  return result


def calls(folder) -> list[str]:
  path = folder / 'logs' / 'calls'
  return path.read_text().splitlines() if path.exists() else []


def start_two(start_main, *arguments):
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    port = listener.getsockname()[1]
  return [
    start_main(
      *arguments,
      '--distributed',
      f'--coordinator=127.0.0.1:{port}',
      '--num_processes=2',
      f'--process_id={process_id}',
    )
    for process_id in (0, 1)
  ]


def finish(processes):
  """Waits for processes that must end well."""
  for process in processes:
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert 'Traceback' not in error


@pytest.mark.usefixtures('tiny_models')
def test_slurm_resumes_two_processes_which_equal_one(
  place, start_main, cache_dir, compare_run, session_dir, tmp_path
):
  """TL+KD on stored targets with BatchNorm statistics of the global batch.

  The one is this process. One of the two is asked to stop, both save and end,
  and both resume, by the launcher. What is left of a difference is the order
  of the sums over the batch: 1e-5.
  """
  given = {
    'num_steps': 60,
    'log_every_steps': 10,
    'eval_every_steps': 10,
    'batch_norm': 'train',
    'targets__mode': 'cached',
    'targets__views': 2,
    'targets__dtype': 'float32',
    'targets__dir': str(tmp_path / 'targets'),
    'teacher__checkpoint': str(compare_run / 'teacher'),
  }
  config = tiny.make_config('kd', cache_dir, **given)
  arms.run(config, tmp_path / 'one', sharding.make_mesh(1))

  named, *changes = tiny.arguments('kd', cache_dir, **given)
  workdir = tmp_path / 'two'
  command = [named, *changes, f'--workdir={workdir}']
  processes = start_two(start_main, *command)
  wait_for_step(workdir, processes[1], 10)
  processes[1].send_signal(signal.SIGTERM)
  finish(processes)
  stopped = int(arrays(workdir)['step'])
  assert stopped < 60 and not (workdir / 'summary.json').exists()

  folder, env = place
  named = named.removeprefix('--config=')
  cache = f'--compilation_cache={session_dir / "compiled"}'
  launch('slurm.sbatch', named, workdir, *changes, cache, env=env)
  (call,) = calls(folder)
  assert call.startswith('srun python -m tlkd_jax.main --distributed')
  lead, other = ((folder / 'logs' / f'{i}.out').read_text() for i in (0, 1))
  assert 'TL+KD' in lead and 'TL+KD' not in other
  errors = [(folder / 'logs' / f'{i}.err').read_text() for i in (0, 1)]
  assert 'Traceback' not in ''.join(errors)

  for kind in ('latest', 'best'):
    a, b = arrays(tmp_path / 'one', kind), arrays(tmp_path / 'two', kind)
    assert a.keys() == b.keys() and len(a) > 10
    for name in a:
      np.testing.assert_allclose(a[name], b[name], atol=1e-5, err_msg=name)
  rows = [
    [(row['step'], row['split']) for row in read_rows(path)]
    for path in tmp_path.glob('*/metrics.jsonl')
  ]
  assert rows[0] == rows[1] and len(rows[0]) == 12
  summaries = [
    json.loads((tmp_path / name / 'summary.json').read_text())
    for name in ('one', 'two')
  ]
  a, b = (s['student']['test'] for s in summaries)
  assert a['count'] == b['count'] == 40
  assert a['nll'] == pytest.approx(b['nll'], abs=1e-5)


@pytest.mark.parametrize('done', ['', 'summary.json', 'kd/summary.json'])
def test_slurm_requeues_what_is_not_finished(place, done):
  folder, env = place
  (folder / 'bin' / 'srun').write_text('#!/bin/sh\n')
  if done:
    path = folder / 'run' / done
    path.parent.mkdir(parents=True)
    path.touch()
  launch('slurm.sbatch', 'c.py', folder / 'run', env=env)
  expected = [] if done else [f'scontrol requeue {env["SLURM_JOB_ID"]}']
  assert calls(folder) == expected


def test_slurm_does_not_requeue_a_mistake(place):
  folder, env = place
  (folder / 'bin' / 'srun').write_text('#!/bin/sh\nexit 2\n')
  launch('slurm.sbatch', 'c.py', folder / 'run', env=env, code=2)
  assert not calls(folder)


def test_slurm_array_is_a_study_in_parts(place):
  folder, env = place
  (folder / 'bin' / 'srun').write_text(f'#!/bin/sh\necho "$@" > {folder}/x\n')
  env |= {'SLURM_ARRAY_TASK_ID': '3', 'SLURM_ARRAY_TASK_COUNT': '8'}
  launch('slurm.sbatch', 'configs/study.py', 'S', '--jobs=2', env=env)
  assert (folder / 'x').read_text().split() == (
    'python -m tlkd_jax.study --config configs/study.py --workdir S '
    '--shard 3/8 --jobs=2'
  ).split()


def test_tpu_slice_runs_on_all_workers_and_fetches(place):
  """Every worker is told the same; test_slurm... runs what they are told."""
  folder, env = place
  remote = folder / 'bucket' / 'run'
  remote.mkdir(parents=True)
  (remote / 'summary.json').write_text('{}')
  env |= {'REMOTE': str(remote), 'SETUP': 'touch mounted'}
  env |= {'TOLD': str(folder), 'CODE': '0'}
  workdir = folder / 'fetched' / 'run'
  changes = ['--config.seed=2', '--config.study.sizes=(1, 2)']
  arguments = ['--run', 'name', 'zone', 'v4-16', 'c.py', workdir, *changes]
  launch('tpu_vm.sh', *arguments, env=env)
  assert (workdir / 'summary.json').read_text() == '{}'
  assert all((folder / 'workers' / i / 'mounted').exists() for i in '01')
  expected = ['--config', 'c.py', '--workdir', str(remote), '--distributed']
  for worker in '01':
    told = (folder / f'{worker}.told').read_text().splitlines()
    assert sorted(told) == sorted(expected + changes)
  verbs = [call.split()[4] for call in calls(folder)]
  assert verbs == ['create', 'scp', 'ssh', 'ssh', 'ssh', 'scp', 'delete']


@pytest.mark.parametrize('keep', [False, True])
def test_tpu_is_deleted_after_a_failure(place, keep):
  folder, env = place
  env |= {'KEEP': '1'} if keep else {}
  env |= {'TOLD': str(folder), 'CODE': '2'}
  arguments = ['--run', 'n', 'z', 'v4-8', 'configs/none.py', folder / 'run']
  launch('tpu_vm.sh', *arguments, env=env, code=2)
  verbs = [call.split()[4] for call in calls(folder)]
  assert verbs == ['create', 'scp', 'ssh', 'ssh'] + ['delete'] * (not keep)


def test_tpu_is_a_dry_run_unless_told(place):
  folder, env = place
  arguments = ['n', 'z', 'v4-8', 'configs/tl.py', 'runs/x', '--config.seed=2']
  out = launch('tpu_vm.sh', *arguments, env=env).stdout
  assert not calls(folder)
  lines = out.splitlines()
  assert len(lines) == 7 and lines[-1].startswith('gcloud compute tpus')
  assert '--config.seed=2' in lines[3].replace('\\', '')
  assert '--distributed' not in out
  plain = launch('tpu_vm.sh', *arguments[:-1], env=env).stdout
  assert plain.splitlines()[3].rstrip().endswith(r'--workdir\ runs/x')


def test_tpu_slice_needs_a_shared_file_system(place):
  _, env = place
  arguments = ['n', 'z', 'v4-32', 'configs/tl.py', 'runs/x']
  error = launch('tpu_vm.sh', *arguments, env=env, code=2).stderr
  assert 'v4-32 has several workers; set REMOTE' in error


def test_local_passes_everything_on(place):
  folder, env = place
  echo = folder / 'bin' / 'echo_python'
  echo.write_text('#!/bin/sh\npwd\necho "$@"\n')
  echo.chmod(0o755)
  env |= {'PYTHON': str(echo)}
  out = launch('local.sh', 'c.py', 'runs/x', '--config.seed=2', env=env).stdout
  assert out.splitlines() == [
    str(ROOT),
    '-m tlkd_jax.main --config c.py --workdir runs/x --config.seed=2',
  ]


@pytest.mark.parametrize('there', [True, False])
def test_local_takes_tcmalloc_where_it_is(place, there):
  folder, env = place
  # Not a library, so that the loader says what it was asked for.
  line = '\tlibtcmalloc_minimal.so.4 (libc6,x86-64) => /nowhere/tcmalloc.so'
  stand_in = folder / 'bin' / 'ldconfig'
  stand_in.write_text(f"#!/bin/sh\nprintf '%s\\n' '{line if there else ''}'\n")
  stand_in.chmod(0o755)
  echo = folder / 'bin' / 'echo_python'
  echo.write_text('#!/bin/sh\necho "preloads [$LD_PRELOAD]"\n')
  echo.chmod(0o755)
  env = {k: v for k, v in env.items() if k != 'LD_PRELOAD'}
  env['PYTHON'] = str(echo)
  out = launch('local.sh', 'c.py', 'runs/x', env=env).stdout
  expected = '/nowhere/tcmalloc.so' if there else ''
  assert out.splitlines() == [f'preloads [{expected}]']


@pytest.mark.parametrize('script', ['local.sh', 'slurm.sbatch', 'tpu_vm.sh'])
def test_usage(script, place):
  error = launch(script, 'one', env=place[1], code=2).stderr
  assert error.startswith('usage: ')


def _cells() -> list[str]:
  path = ROOT / 'launch' / 'colab.ipynb'
  notebook = json.loads(path.read_text())
  assert all(not cell.get('outputs') for cell in notebook['cells'])
  return [
    ''.join(cell['source'])
    for cell in notebook['cells']
    if cell['cell_type'] == 'code'
  ]


def test_notebook_is_plain_python():
  """No shell lines: any Python runs it."""
  for number, text in enumerate(_cells()):
    compile(text, f'cell {number}', 'exec')


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(tmp_path):
  """Its code cells in one process, with the smoke configuration."""
  checkout = tmp_path / 'checkout'
  shutil.copytree(
    ROOT, checkout, ignore=shutil.ignore_patterns('.git', 'runs', '.venv')
  )
  script = tmp_path / 'notebook.py'
  script.write_text('\n\n'.join(_cells()))
  result = subprocess.run(
    [sys.executable, str(script)],
    cwd=checkout,
    env=os.environ
    | {
      'TLKD_SKIP_INSTALL': '1',
      'TLKD_SMOKE': '1',
      'JAX_PLATFORMS': 'cpu',
      # A notebook finds modules in the folder it runs in.
      'PYTHONPATH': str(checkout),
    },
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert result.returncode == 0, result.stderr
  assert 'TL+KD' in result.stdout and 'image 4: ' in result.stdout
  assert (checkout / 'runs/colab/kd/summary.json').exists()
  assert (checkout / 'report/index.html').exists()
