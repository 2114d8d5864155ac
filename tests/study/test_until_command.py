"""What the command refuses before anything is loaded."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--max_seeds=9'], '--max_seeds is read with --until=sure alone'),
    (['--until=sure', '--shard=1/2'], '--config.study.seeds=N'),
    (['--until=sure', '--max_seeds=99'], 'accepted: 5, the first look, to 20'),
  ],
)
def test_flags_that_do_not_go_together(arguments, message, tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'tlkd_jax.study', '--config=configs/study.py:smoke']
    + [f'--workdir={tmp_path / "study"}', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and message in done.stderr
  assert 'Traceback' not in done.stderr and not (tmp_path / 'study').exists()
