"""Two processes in turn, and what is asked of the one that has PyTorch."""

import argparse
import json
import subprocess
import sys

import pytest

from benchmarks import families, run_all, tables
from tests import tiny
from tlkd_jax import models
from tlkd_jax.models.weights import pretrained

# In the place of PyTorch's side: a quarter of a second for each of its formats.
OTHER = """
import json, sys
for line in sys.stdin:
  request = json.loads(line)
  if 'run' in request:
    answer = {'ms': {'eager': 500.0, 'channels_last': 250.0}[request['run']]}
  elif request['name'] == 'unknown':
    answer = {'failed': 'RuntimeError: Unknown model'}
  else:
    answer = {'parameters': COUNT}
  print(json.dumps(answer), flush=True)
"""
ARGUMENTS = argparse.Namespace(batch_size=2, repeats=2)


def command(count: int) -> list[str]:
  return [sys.executable, '-c', OTHER.replace('COUNT', str(count))]


@pytest.mark.parametrize('part', families.PARTS)
def test_a_row_has_both_sides(part):
  with tiny.registered():
    shape = models.create_model('tiny').params_shape
    with families.started(command(pretrained.count_params(shape))) as other:
      row = families.run('tiny', 16, part, other, ARGUMENTS)
  assert row['eager_ms'] == 500.0 and row['channels_last_ms'] == 250.0
  assert row['ratio'] == round(row['ours_ms'] / 250.0, 3)
  rated = row.get('channels_last_images_per_second')
  assert rated == (8.0 if part == 'features' else None)
  told = tables.families([row, {'largest': {part: 1.0}}])
  assert '| tiny | 16 |' in told and '| 250 (250 to 250) |' in told


def test_what_the_other_side_cannot_make_is_a_row():
  with tiny.registered(), families.started(command(5)) as other:
    unknown = families.run('unknown', 16, 'step', other, ARGUMENTS)
    assert unknown['failed'] == 'RuntimeError: Unknown model'
    # Another network under the same name is not measured.
    another = families.run('tiny', 16, 'step', other, ARGUMENTS)
    assert another['failed'].startswith('5 parameters there, ')
  assert 'failed: 5 parameters there' in tables.families([another])


def test_an_end_of_the_other_side_is_said():
  with families.started([sys.executable, '-c', 'pass']) as other:
    with pytest.raises(RuntimeError, match='side ended at .*versions'):
      other.ask(versions=True)


def test_every_model_takes_its_size():
  for part, sizes in families.PARTS.items():
    for name, size in sizes.items():
      spec = models.MODELS[name]
      assert spec.side_near(size) == size, name
      assert part == 'step' or spec.linear_head
  quick = {part: set(names) for part, names in families._QUICK.items()}
  assert all(quick[part] <= set(families.PARTS[part]) for part in quick)


@pytest.mark.parametrize('entry', ['new_families', 'frozen_features'])
def test_run_all_asks_for_what_there_is(entry):
  for text in (run_all.ENTRIES[entry].command, run_all.ENTRIES[entry].quick):
    assert text.format(torch=sys.executable).split()[0] == 'families'


def test_a_part_that_there_is_not_is_refused():
  result = subprocess.run(
    [sys.executable, '-m', 'benchmarks.families', '--part', 'none'],
    capture_output=True,
    text=True,
  )
  assert result.returncode == 2 and "'step', 'features'" in result.stderr


def test_targets_are_of_the_last_line():
  rows = [{'model': 'x'}, {'largest': {'step': 1.31}}]
  told = run_all.target_table({'new_families': {'rows': rows}})
  assert (
    '| new families: largest step / PyTorch step | ≤ 1.3 | 1.31 | no |'
    in (told)
  )
  assert json.dumps(rows)


def test_a_form_that_dies_is_left_out():
  """As PyTorch does of MobileOne's step in channels_last: by a signal."""
  abort = "if request.get('run') == FORM: import os; os.abort()"
  dying = OTHER.replace("  if 'run'", f"  {abort}\n  if 'run'")
  with tiny.registered():
    shape = models.create_model('tiny').params_shape
    count = str(pretrained.count_params(shape))
    code = dying.replace('COUNT', count).replace('FORM', "'channels_last'")
    with families.started([sys.executable, '-c', code]) as other:
      row = families.run('tiny', 16, 'features', other, ARGUMENTS)
  assert row['died'] == ['channels_last'] and 'channels_last_ms' not in row
  assert row['ratio'] == round(row['ours_ms'] / 500.0, 3)
  assert '| died | ' in tables.families([row])
