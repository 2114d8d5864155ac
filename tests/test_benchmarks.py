"""The parts of the benchmarks that can be wrong without anyone noticing."""

import argparse
import inspect
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import (
  checkouts,
  growth,
  growth_axes,
  machine,
  many_seeds,
  repeated_runs,
  roofline,
  run_all,
  scaling,
  startup,
  study_speed,
  tables,
  train_step,
  transfer_weights,
)
from tests import tiny
from tlkd_jax.runtime import sharding
from tlkd_jax.training import loop, signals

_DOCS = pathlib.Path(__file__).resolve().parent.parent / 'docs'


@pytest.fixture(autouse=True)
def tiny_models():
  with tiny.registered():
    yield


def test_train_step_without_torch():
  arguments = argparse.Namespace(
    image_size=32,
    batch_size=4,
    against=None,
    no_compile=True,
    repeats=2,
    parts=train_step.PARTS,
  )
  row = train_step.run('tiny', arguments)
  for part in train_step.PARTS:
    low, high = row[f'{part}_ours_min_max']
    assert 0 < low <= row[f'{part}_ours_ms'] <= high
  assert f'({low:.0f} to {high:.0f})' in tables.train_step([row])


def test_seeds_in_one_program_are_seeds_alone():
  one, *rest = many_seeds.make('tiny', 16, 4, 1)
  several, *stacked = many_seeds.make('tiny', 16, 4, 3)
  _, alone = one(*rest)
  _, all_of_them = several(*stacked)
  losses = np.asarray(all_of_them['loss'])
  np.testing.assert_allclose(losses[0], alone['loss'], rtol=1e-5)
  # Each has images of its own.
  assert losses.shape == (3,) and len(set(losses.tolist())) == 3
  row = {'image_size': 64, 'seeds': 2, 'ratio': 1.1}
  for name, rate in {'processes': 90.4, 'program': 99.0}.items():
    row |= machine.summary(name, [rate - 10, rate, rate + 5], 'images_s')
  assert '| 64 | 2 | 90 (80 to 95) | 99 (89 to 104) | 1.1 |' in (
    tables.many_seeds([row])
  )


def test_collectives_and_cost_of_a_step_on_four_devices(monkeypatch):
  pair = scaling.Pair('tiny', 'tiny_teacher', 16, 2, 5)
  monkeypatch.setitem(scaling.PAIRS, 'tiny', pair)
  one, four = (scaling.compute('tiny', n) for n in (1, 4))
  assert not one['collectives']
  # Each gradient of the student is summed over the devices, the teacher's
  # weights never; metrics and the clipped norm add a few scalars.
  reduced = four['collectives'].pop('all-reduce')
  assert not four['collectives']
  gradients = 4 * four['student_parameters']
  assert gradients <= reduced['bytes'] < gradients + 400
  assert four['flops_per_chip'] == pytest.approx(
    one['flops_per_chip'], rel=0.05
  )


def test_collectives_of_a_step_with_its_state_in_parts(monkeypatch):
  """Gradients are summed as before; each chip sends its part of the weights."""
  pair = scaling.Pair('tiny', 'tiny_teacher', 16, 2, 5)
  monkeypatch.setitem(scaling.PAIRS, 'tiny', pair)
  monkeypatch.setattr(sharding, '_LEAST', 1)
  row = scaling.compute('tiny', 4, sharded=True)
  weights = 4 * row['student_parameters']
  sent = row['collectives']
  summed = [sent.get('all-reduce'), sent.get('reduce-scatter')]
  assert any(summed) and sent['all-gather']['bytes'] > 0.9 * weights
  assert sent['all-gather']['bytes'] <= weights
  assert 2 * weights / 4 <= row['optimizer_bytes_per_chip'] < 2.4 * weights / 4
  text = tables.scaling_sharded([row])
  assert f'| {2 * weights / 1e6:.1f} |' in text and 'all-gather' in text


def test_collectives_are_counted_with_their_bytes():
  text = """
  %a = f32[2,3]{1,0} all-reduce(%x), replica_groups={}
  %b = (f32[4]{0}, bf16[5]{0}) all-reduce-start(%x, %y), channel_id=1
  %c = f32[8]{0} all-reduce-done(%b)
  %d = u32[] all-gather(%z), dimensions={0}
  """
  assert scaling.collectives(text) == {
    'all-reduce': {'count': 2, 'bytes': 24 + 16 + 10},
    'all-gather': {'count': 1, 'bytes': 4},
  }


def test_roofline_adds_the_ring_to_the_larger_bound(monkeypatch):
  monkeypatch.setitem(roofline.CHIPS, 'chip', (1, 1, 2, 8, 1))
  row = {
    'flops_per_chip': 1e12,
    'bytes_per_chip': 1e9,
    'batch_per_chip': 3,
    'chips': 4,
    'collectives': {'all-reduce': {'count': 1, 'bytes': 1e9}},
  }
  bound = roofline.roofline(row, 'chip')
  assert bound['bound'] == 'compute' and bound['busy'] == 1.0
  assert bound['link'] == pytest.approx(2 * 3 / 4 / 2)
  assert bound['images_per_second'] == pytest.approx(12 / 1.75)
  beyond = roofline.roofline(row | {'chips': 16}, 'chip')
  assert beyond['link'] == pytest.approx(2 * 15 / 16)


def test_a_sum_is_a_sum_of_parts_and_their_exchange(monkeypatch):
  """On a ring, whatever the chips: each sends as many bytes."""
  monkeypatch.setitem(roofline.CHIPS, 'chip', (1, 1, 2, 999, 1))
  row = {'flops_per_chip': 1e12, 'bytes_per_chip': 1e9, 'batch_per_chip': 3}
  for chips in (2, 8, 256):
    of_two = {
      'reduce-scatter': {'count': 1, 'bytes': 1e9 / chips},
      'all-gather': {'count': 1, 'bytes': 1e9},
    }
    links = [
      roofline.roofline(row | {'chips': chips, 'collectives': sent}, 'chip')
      for sent in ({'all-reduce': {'count': 1, 'bytes': 1e9}}, of_two)
    ]
    assert links[0]['link'] == pytest.approx(links[1]['link'])


@pytest.mark.parametrize('power', [0.5, 1.0, 2.0])
def test_exponent_of_a_power(power):
  sizes = [10, 20, 40, 80]
  assert growth.exponent(sizes, [3 * s**power for s in sizes]) == power


def test_marginal_exponent_ignores_a_constant_and_noise_below_it():
  sizes = [10, 20, 40, 80]
  for power in (1, 2):
    values = [1e6 + s**power for s in sizes]
    found = growth.marginal_exponent(sizes, values)
    assert found == pytest.approx(power, abs=0.02)
  assert growth.marginal_exponent(sizes, [9, 9, 8, 8]) is None


def test_growth_names_what_is_super_linear():
  points = [
    {'size': n, 'seconds': {'a': n, 'b': n**2}, 'peak_mib': 100 + n}
    for n in (8, 16, 32)
  ]
  result = growth.summarize('batch', points)
  assert result['super_linear'] == ['b']
  # In pixels, the side counts twice.
  result = growth.summarize('pixels', points)
  assert result['exponents']['b'] == 1.0 and not result['super_linear']


def test_bookkeeping_of_a_study_finishes_every_cell():
  assert min(growth.of_runs(5)['bookkeeping']) > 0


def test_axes_that_make_up_what_they_are_given(monkeypatch):
  monkeypatch.setattr(growth_axes, '_ROUNDS', 1)
  found = growth_axes.of_mapped(300)
  assert all(len(v) == 1 and v[0] > 0 for v in found.values())
  assert growth_axes.anonymous_mib() > 1
  assert min(growth_axes.of_page(20)['page']) > 0


def test_programs_are_compiled_before_a_command_is_measured():
  program = """if True:
    import os, pathlib, sys
    seen = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR']) / 'program'
    print('read' if seen.exists() else 'compiled', *sys.argv[1:])
    seen.touch()
  """
  command = [sys.executable, '-c', program]
  for _ in range(2):
    output = machine.run_compiled([*command, 'whole'], [*command, 'short'])
    assert output == 'read whole\n'
  with pytest.raises(subprocess.CalledProcessError):
    machine.run_compiled(command, [sys.executable, '-c', 'raise SystemExit(3)'])


def test_every_benchmark_has_its_tables():
  assert list(tables.TABLES) and set(tables.TABLES) == set(run_all.ENTRIES)


def test_pages_show_the_tables_of_the_stored_figures():
  results = run_all.load(_DOCS / 'bench.json')
  usual = {
    name for name, e in run_all.ENTRIES.items() if not (e.extra or e.card)
  }
  assert usual <= set(results)
  pages = ''.join(
    (_DOCS / f'{n}.md').read_text() for n in ('benchmarks', 'scaling')
  )
  shown = set(pages.splitlines())
  parts = [run_all.target_table(results)]
  parts += [tables.TABLES[name](e['rows']) for name, e in results.items()]
  for line in '\n'.join(parts).splitlines():
    assert not line or line in shown


def test_run_all_goes_on_where_it_stopped(monkeypatch, tmp_path, capsys):
  commands = []

  def fake(command):
    commands.append(command)
    rows = [{'model': 'efficientnet_lite0', 'step_ratio': 0.8}]
    entry = {'command': f'python -m benchmarks.{command}', 'seconds': 1.0}
    entry |= {'date': '2026-01-01', 'rows': rows, 'versions': {}}
    return entry | {'cpu': 'x', 'cores': 1}

  monkeypatch.setattr(run_all, 'run_entry', fake)
  out = tmp_path / 'bench.json'
  base = ['run_all', '--out', str(out), '--only', 'train_step']
  for extra, count in (([], 1), ([], 1), (['--again'], 2), (['--quick'], 3)):
    monkeypatch.setattr('sys.argv', [*base, *extra])
    run_all.main()
    assert len(commands) == count
  assert list(json.loads(out.read_text())) == ['train_step']
  capsys.readouterr()
  monkeypatch.setattr('sys.argv', [*base, '--markdown'])
  run_all.main()
  text = capsys.readouterr().out
  assert (
    '| efficientnet_lite0: step / PyTorch step | ≤ 0.9 | 0.8 | yes |' in text
  )
  assert '| TL epoch / PyTorch epoch | ≤ 0.9 | not measured |  |' in text


def test_targets_of_nested_figures_and_from_below():
  row = {'large': {'times_step': 2.9}, 'small': {'times_step': 3.0}}
  table = run_all.target_table({'input_pipeline': {'rows': [row]}})
  assert 'consumes, 224 px | ≥ 3.0 | 2.9 | no |' in table
  assert 'consumes, 32 px | ≥ 3.0 | 3.0 | yes |' in table


def test_an_entry_keeps_its_rows_and_its_error():
  entry = run_all.run_entry('run_all --out')
  assert entry['rows'] == [] and '--out' in entry['failed']
  assert entry['cores'] and entry['versions']['jax'] == jax.__version__


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('tl', {}),
    ('bss=1e-5', {'bss': 1e-5}),
    ('lwf=0.4 source_scale=0.2', {'lwf': 0.4, 'source_scale': 0.2}),
  ],
)
def test_weights_of_a_try(text, expected):
  assert transfer_weights.weights_of(text) == expected


@pytest.mark.parametrize('text', ['lfw=1', 'lwf=1 bss', 'TL', 'bss', 'bss=x'])
def test_a_try_of_no_term_is_refused(text):
  with pytest.raises(argparse.ArgumentTypeError, match='NAME=NUMBER of delta'):
    transfer_weights.weights_of(text)


def test_a_start_ends_where_the_loop_asks_whether_to_stop(monkeypatch):
  """The names that the program of the process takes over are there."""
  asked = signals.StopRequest.requested
  monkeypatch.setattr(signals.StopRequest, 'requested', asked)
  monkeypatch.setattr('tlkd_jax.main.run', lambda: None)
  ended = []
  monkeypatch.setattr('os._exit', ended.append)
  exec(startup._TO_FIRST_STEP, {})
  assert ended == []
  signals.StopRequest().requested(1)
  assert ended == [0]
  assert 'stop.requested(number)' in inspect.getsource(loop)


def test_starts_of_two_checkouts_take_turns(monkeypatch, tmp_path):
  started = []

  def fake(start, checkout, cache):
    compiled = cache / 'program'
    warm = compiled.exists()
    compiled.touch()
    started.append((checkout.name, 'warm' if warm else 'cold'))
    return (3.0 if warm else 12.0) * (2 if checkout.name == 'old' else 1), 1.0

  monkeypatch.setattr(startup, 'time_process', fake)
  checkouts = {'': tmp_path / 'new', 'against_': tmp_path / 'old'}
  row = startup.measure(startup.STARTS[0], checkouts, 2, again=True)
  assert (
    started == [(c, k) for c in ('new', 'old') for k in ('cold', 'warm')] * 2
  )
  assert (row['cold_seconds'], row['warm_seconds']) == (12.0, 3.0)
  assert (row['against_cold_seconds'], row['cold_ratio']) == (24.0, 0.5)
  assert row['warm_cpu_min_max'] == [1.0, 1.0]
  once = startup.measure(startup.QUICK_START, {'': tmp_path / 'new'}, 1, False)
  assert 'warm_seconds' not in once
  assert '| its end | 12.0 (12.0 to 12.0) |  |' in tables.startup([once])


def test_runs_that_follow_are_told_from_the_first(tmp_path, monkeypatch):
  started = []

  def fake(checkout, folder, count):
    started.append((checkout.name, count))
    scale = 2 if checkout.name == 'old' else 1
    return [[8.0 * scale, 4.0]] + [[scale, 0.5]] * (count - 1)

  monkeypatch.setattr(repeated_runs, 'run_several', fake)
  both = {'': tmp_path / 'new', 'against': tmp_path / 'old'}
  this, other = repeated_runs.measure(both, runs=3, rounds=2)
  assert started == [(c, n) for n in (1, 3, 3) for c in ('new', 'old')]
  assert (this['checkout'], other['checkout']) == ('this', 'against')
  assert this['first_wall_seconds'] == 8.0 and other['later_wall_seconds'] == 2
  assert this['later_cpu_seconds'] == 0.5


def test_studies_of_two_checkouts_take_turns(tmp_path, monkeypatch):
  started = []

  def fake(checkout, folder, data, seeds):
    started.append((checkout.name, folder.name, seeds))
    return 30.0 * seeds if checkout.name == 'old' else 10.0 * seeds

  monkeypatch.setattr(study_speed, 'run_study', fake)
  both = {'': tmp_path / 'new', 'against': tmp_path / 'old'}
  this, other = study_speed.measure(both, tmp_path / 'x.zip', 4, 1)
  assert started == [
    (*place, seeds)
    for seeds in (1, 4)
    for place in (('new', 'here'), ('old', 'against'))
  ]
  assert (this['seconds'], other['seconds']) == (40.0, 120.0)
  assert other['checkout'] == 'against' and other['each'] == [120.0]


def test_a_study_that_fails_says_why(tmp_path):
  with pytest.raises(RuntimeError, match='nowhere'):
    study_speed.run_study(
      checkouts._HERE, tmp_path, tmp_path / 'nowhere.zip', 1
    )


def test_a_start_that_fails_says_why(tmp_path):
  start = startup.Start('nowhere.py', to_the_end=True)
  with pytest.raises(RuntimeError, match=r'nowhere\.py: no such file'):
    startup.time_process(start, startup._HERE, tmp_path)


def test_a_record_names_no_python_of_one_machine(monkeypatch, tmp_path):
  asked = []

  def fake(command):
    asked.append(command)
    return {'command': command, 'seconds': 1.0, 'rows': []}

  monkeypatch.setattr(run_all, 'run_entry', fake)
  out = tmp_path / 'bench.json'
  line = ['run_all', '--out', str(out), '--only', 'frozen_features']
  for python in ('/one/python', '/other/python'):
    monkeypatch.setattr('sys.argv', [*line, '--torch-python', python])
    run_all.main()
  assert asked == ['families --torch-python /one/python --part features']
  told = run_all.load(out)['frozen_features']['command']
  assert told == (
    'python -m benchmarks.families --torch-python PYTHON --part features'
  )
