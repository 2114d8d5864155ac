"""The command that measures accelerators, by a card's record and tiny steps."""

import argparse
import copy
import dataclasses
import json
import os
import sys
import time

import jax
import numpy as np
import pytest

from benchmarks import roofline, run_all
from benchmarks.accelerator import (
  __main__ as command,
)
from benchmarks.accelerator import (
  cards,
  checks,
  depthwise,
  parts,
  programs,
  record,
  tables,
)
from benchmarks.scaling import Pair
from tests import tiny
from tlkd_jax.models import describe
from tlkd_jax.runtime import sharding

PAIR = Pair('tiny', 'tiny_teacher', 16, 4, 5)
H100 = 'NVIDIA H100 80GB HBM3'


@pytest.fixture(autouse=True)
def tiny_models():
  with tiny.registered():
    yield


@pytest.mark.parametrize(
  ('kind', 'name'),
  [
    (H100, 'H100 SXM'),
    ('NVIDIA H100', 'H100 SXM'),
    ('NVIDIA H100 PCIe', 'H100 PCIe'),
    ('NVIDIA H200', 'H200'),
    ('NVIDIA A100-SXM4-80GB', 'A100 SXM'),
    ('NVIDIA A100-SXM4-40GB', 'A100 SXM 40 GB'),
    ('NVIDIA A100 80GB PCIe', 'A100 PCIe'),
    ('NVIDIA A100-PCIE-40GB', 'A100 PCIe 40 GB'),
    ('Tesla T4', 'T4'),
    ('NVIDIA L4', 'L4'),
    ('Tesla V100-SXM2-16GB', 'V100 SXM'),
    ('Tesla V100-PCIE-32GB', 'V100 PCIe'),
    ('TPU v2', 'TPU v2'),
    ('TPU v3', 'TPU v3'),
    ('TPU v4', 'TPU v4'),
    ('TPU v5 lite', 'TPU v5e'),
    ('TPU v5', 'TPU v5p'),
    ('TPU v5p', 'TPU v5p'),
    ('TPU v6 lite', 'TPU v6e'),
    ('NVIDIA L40S', None),
    ('NVIDIA H100 80GB HBM3 MIG 1g.10gb', None),
    ('NVIDIA A100-SXM4-40GB MIG 1g.5gb', None),
    ('NVIDIA H200 NVL', None),
    ('cpu', None),
  ],
)
def test_a_card_is_known_by_its_name(kind, name):
  card = cards.find(kind)
  assert (card and card.name) == name


def test_peaks_are_those_of_the_computed_rooflines():
  peaks = {card.name: (card.tflops, card.gbs) for card in cards.CARDS}
  for name, (tflops, gbs, *_) in roofline.CHIPS.items():
    assert peaks[name] == (tflops, gbs)


def test_utilisation_and_bound_by_hand():
  card = cards.Card('card', 'card', 2.0, 500.0, 'nobody')
  assert cards.utilisation(1e12, 2.0, card) == pytest.approx(0.25)
  assert cards.utilisation(1e12, 2.0, None) is None
  assert cards.bound(4e12, 5e11, card) == (2.0, 'compute')
  assert cards.bound(1e12, 1e12, card) == (2.0, 'memory')


def test_operations_of_the_arms():
  student, teacher = (
    describe.describe(name, 16, num_classes=5) for name in PAIR[:2]
  )
  assert student.macs > 0 and teacher.macs > student.macs
  expected = {
    'tl': 6 * student.macs,
    'online': 6 * student.macs + 2 * teacher.macs,
    'stored': 6 * student.macs,
    'probed': 2 * teacher.macs,
  }
  assert list(expected) == list(programs.ARMS)
  for arm, flop in expected.items():
    assert programs.model_flop(PAIR, arm) == flop


def given(seconds=1000.0, done=(), **changes):
  pairs = {'default': Pair('tiny', 'tiny_teacher', 16, 64, 5)}
  sizes = dataclasses.replace(
    parts.SMALL, **({'pairs': pairs, 'largest': 1024} | changes)
  )
  rows = {row['key']: row for row in done}
  return parts.Given(sizes, time.monotonic() + seconds, rows)


def fake_measure(fits, best):
  """measure of cards whose fastest batch, and largest, are these."""

  def measure(name, pair, arm, batch, sizes, mesh):
    row = {'key': f'{name} {arm} {batch}', 'arm': arm, 'batch': batch}
    if batch > fits:
      return row | {'out_of_memory': 'RESOURCE_EXHAUSTED'}
    return row | {'ms': 1.0, 'images_per_second': -abs(batch - best)}

  return measure


def test_a_sweep_doubles_to_the_limit_and_goes_on(monkeypatch):
  monkeypatch.setattr(parts, 'measure', fake_measure(256, 128))
  rows = list(parts.of_speed('default', given()))
  first = ['tl 64', 'online 64', 'stored 64', 'probed 64']
  swept = ['online 128', 'online 256', 'online 512']
  last = ['tl 128', 'stored 128', 'probed 128']
  keys = [f'default {key}' for key in first + swept + last]
  assert [row['key'] for row in rows] == keys
  assert 'out_of_memory' in rows[6]
  # What is there is not measured again, and counts.
  again = list(parts.of_speed('default', given(done=rows[:6])))
  assert [row['key'] for row in again] == keys[6:]
  # Nothing is started when the time is spent.
  late = list(parts.of_speed('default', given(-1.0, done=rows[:6])))
  assert late == [{'left_out': ', '.join([keys[6], *keys[7:]])}]
  assert not list(parts.of_speed('default', given(-1.0, done=rows)))


def test_a_first_batch_that_does_not_fit_is_halved(monkeypatch):
  monkeypatch.setattr(parts, 'measure', fake_measure(20, 16))
  keys = [row['key'] for row in parts.of_speed('default', given())]
  assert keys[4:] == [
    *('default online 32', 'default online 16'),
    *('default tl 16', 'default stored 16', 'default probed 16'),
  ]
  monkeypatch.setattr(parts, 'measure', fake_measure(0, 0))
  keys = [row['key'] for row in parts.of_speed('default', given())]
  assert keys[-1] == 'default online 8'


@pytest.mark.parametrize(
  ('said', 'is_it'),
  [
    (
      'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes',
      True,
    ),
    (
      'INTERNAL: Failed to allocate: CUDA_ERROR_OUT_OF_MEMORY out of memory',
      True,
    ),
    ('Ran Out Of Memory in memory space hbm', True),
    ('INTERNAL: Failed to capture a gpu graph', False),
  ],
)
def test_what_does_not_fit_and_what_breaks_are_rows(monkeypatch, said, is_it):
  def broken(*_):
    raise jax.errors.JaxRuntimeError(said)

  monkeypatch.setattr(parts, '_measured', broken)
  arguments = 'default', PAIR, 'tl', 4, parts.SMALL, None
  row = parts.measure(*arguments)
  kind = 'out_of_memory' if is_it else 'broken'
  assert row[kind] == f'JaxRuntimeError: {said}' and 'ms' not in row
  assert (
    tables.line(row) == f'default tl 4: {kind.replace("_", " ")}, {row[kind]}'
  )
  # What is too large is no fault, and is there; what broke is tried again.
  part = {'rows': [row], 'left_out': []}
  found = {'parts': {'speed default': part}}
  assert record.is_finished(part) is is_it
  assert bool(record.failed_checks(found)) is not is_it


@pytest.mark.parametrize('arm', ['stored', 'probed'])
def test_a_step_is_timed_on_the_device_alone(monkeypatch, arm):
  card = cards.Card('cpu', 'cpu', 1.0, 1.0, 'nobody')
  monkeypatch.setattr(cards, 'CARDS', (card,))
  row = parts.measure(
    'default', PAIR, arm, 4, parts.SMALL, sharding.make_mesh(1)
  )
  low, high = row['ms_min_max']
  assert 0 < low <= row['ms'] <= high and row['send_ms'] > 0
  assert row['rounds'] * row['steps'] >= 3 and row['finite']
  flop = 4 * programs.model_flop(PAIR, arm)
  assert row['mfu'] == pytest.approx(flop / row['ms'] / 1e9, rel=0.05, abs=1e-4)
  # Two counts of one program: XLA's has what is no multiplication too.
  assert row['xla_flop_given'] > 0.5 * flop
  json.dumps(row)


def test_weights_by_rule_are_the_same_everywhere():
  shapes = {
    'conv': {'kernel': jax.ShapeDtypeStruct((3, 3, 4, 500), np.float32)},
    'norm': {'scale': jax.ShapeDtypeStruct((500,), np.float32)},
  }
  found, again = (programs.by_rule(shapes, 3) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, found, again)
  kernel = found['conv']['kernel']
  assert kernel.std() * 6 == pytest.approx(0.5, rel=0.05)
  assert 0.5 <= found['norm']['scale'].min() < found['norm']['scale'].max()


def test_checks_hold_here():
  rows = checks.of_model('tiny', 16) + checks.of_updates(PAIR)
  rows += checks.of_resuming(PAIR) + checks.of_devices(PAIR)
  assert [row for row in rows if not row['ok']] == []
  names = {row['check'] for row in rows}
  assert {'logits, bfloat16', 'gradients, float32'} < names
  assert {'resumed, bit for bit', 'losses of more devices'} < names


def test_a_device_that_computes_otherwise_is_found(monkeypatch):
  def wrong(x, kernel, stride, padding, groups):
    return convolve(x, 1.001 * kernel, stride, padding, groups)

  from tlkd_jax.models.layers import convolutions

  convolve = convolutions._conv_lax
  monkeypatch.setattr(convolutions, '_conv_lax', wrong)
  rows = checks.of_model('tiny', 16)
  failed = {row['check'] for row in rows if not row['ok']}
  assert {'logits, float32', 'gradients, float32'} <= failed


@pytest.mark.parametrize(
  ('found', 'ok'), [(1e-4, True), (1e-3, False), (float('nan'), False)]
)
def test_a_check_holds_within_its_bound(found, ok):
  assert checks.row('logits, float32', 'x', found)['ok'] is ok
  # Of the whole, not of each leaf.
  apart = checks.apart({'a': np.ones(4), 'b': 0.0}, {'a': np.ones(4), 'b': 3.0})
  assert apart == pytest.approx(3 / 13**0.5)


def test_a_check_that_breaks_has_failed_and_the_next_one_runs(monkeypatch):
  def broken():
    raise ValueError('no such thing')

  fine = [checks.row('augmentation', 'x', 0.0)]
  rows = list(
    parts._checked(given(), {'bad': broken, 'good': lambda: list(fine)})
  )
  assert rows[0]['ok'] is False and 'no such thing' in rows[0]['of']
  assert [row['key'] for row in rows[1:]] == [
    *('checked: bad', 'augmentation: x', 'checked: good'),
  ]
  assert tables.line(rows[0]).startswith('FAILED: bad')


def test_forms_of_a_depthwise_convolution_agree():
  case = 'depthwise3 stride 2 lite0 stage 2'
  row = depthwise.measure(case, 'float32', 1, share=16, rounds=1)
  for part in ('forward', 'gradients'):
    assert row[f'{part}_apart'] < 1e-5
    middle = {form: row[f'{part}_{form}_ms'] for form in depthwise.FORMS}
    assert row[f'{part}_fastest'] == min(middle, key=middle.get)


def test_images_are_sent():
  assert parts.send(1, rounds=2)['send_gb_per_second'] > 0


def test_time_is_shared_by_what_is_left():
  names = list(command.SHARES)
  assert sum(command.SHARES.values()) == pytest.approx(1.0)
  assert set(names) == (set(parts.RUN) - {'device'}) | {
    f'torch {pair}' for pair in command.PAIRS
  }
  assert command.seconds_of('checks', names, 1000.0) == pytest.approx(180.0)
  assert command.seconds_of('loop', ['loop'], 60.0) == 60.0
  assert command.seconds_of('loop', ['loop'], -1.0) == 0.0


@pytest.mark.parametrize(
  ('name', 'small', 'base', 'expected'),
  [
    ('checks', False, {'JAX_PLATFORMS': 'cuda'}, ('cuda,cpu', None)),
    ('checks', False, {'JAX_PLATFORMS': 'cuda,cpu'}, ('cuda,cpu', None)),
    ('checks', False, {}, (None, None)),
    ('determinism', False, {}, (None, command._DETERMINISTIC)),
    (
      'determinism',
      False,
      {'XLA_FLAGS': '--a'},
      (None, f'--a {command._DETERMINISTIC}'),
    ),
    ('loop', True, {'JAX_PLATFORMS': 'cuda'}, ('cpu', command._SMALL_FLAGS)),
  ],
)
def test_variables_of_a_process(name, small, base, expected):
  found = command.environment(name, small, base)
  assert (found.get('JAX_PLATFORMS'), found.get('XLA_FLAGS')) == expected
  kept = command.environment(name, small, {'JAX_COMPILATION_CACHE_DIR': 'x'})
  assert kept['JAX_COMPILATION_CACHE_DIR'] == 'x'


@pytest.mark.parametrize(
  ('program', 'rows', 'said'),
  [
    ('print(\'{"key": 1}\'); print("{noise"); print("more")', [1], None),
    ('print(\'{"key": 1}\', flush=True); raise SystemExit(3)', [1], 'with 3'),
    (
      'print(\'{"key": 1}\', flush=True); import time; time.sleep(60)',
      [1],
      'stopped after',
    ),
  ],
)
def test_rows_come_as_they_are_measured(program, rows, said):
  found = []
  seconds = 3 if 'sleep' in program else 60
  result = command.run_process(
    [sys.executable, '-c', program], dict(os.environ), seconds, found.append
  )
  assert [row['key'] for row in found] == rows
  assert result is None if said is None else said in result


def arguments(out, **changes):
  return argparse.Namespace(
    **({'out': out, 'small': False, 'minutes': 18.0, 'torch': None} | changes),
    **{'only': ['checks', 'loop'], 'again': False},
  )


@pytest.fixture
def on_card(monkeypatch):
  """A card is here; its parts say what the list of the test says."""
  said: dict[str, tuple[list[dict], str | None]] = {}
  started = []

  def run_process(line, env, seconds, take):
    name = line[line.index('benchmarks.accelerator.child') + 1]
    started.append(name)
    rows, error = said[name]
    for row in rows:
      take(copy.deepcopy(row))
    return error

  device = {'key': 'device', 'platform': 'gpu', 'kind': H100, 'devices': 1}
  said['device'] = [device], None
  monkeypatch.setattr(command, 'run_process', run_process)
  return said, started


def loop_row(ratio=1.01):
  row = {'key': 'loop 64', 'image_size': 64, 'batch_size': 32}
  for name in ('loop', 'bare'):
    row |= {f'{name}_ms': 2.0, f'{name}_min_max': [1.0, 3.0]}
  return row | {'ratio': ratio, 'ratio_min_max': [1.0, 1.02]}


def test_what_failed_is_kept_and_only_what_is_missing_is_repeated(
  on_card, tmp_path, monkeypatch, capsys
):
  said, started = on_card
  out = tmp_path / 'a.json'
  bad = checks.row('logits, float32', 'resnet18', 0.5)
  said['checks'] = [bad], None
  said['loop'] = [{'left_out': 'loop 64'}], 'ended with 1: broken\nat last'
  assert command.run(arguments(out)) == 1
  text = capsys.readouterr().out
  assert 'FAILED: logits, float32: resnet18, 0.5 of 0.0003' in text
  found = record.load(out)
  assert found['card']['name'] == 'H100 SXM'
  assert record.failed_checks(found) == [bad]
  assert 'broken' in found['parts']['loop']['failed']
  # Again: the checks are there, the loop is not.
  said['loop'] = [loop_row()], None
  started.clear()
  assert command.run(arguments(out)) == 1
  assert started == ['device', 'loop']
  found = record.load(out)
  assert 'failed' not in found['parts']['loop']
  assert found['parts']['loop']['left_out'] == []
  # Of other code nothing is kept.
  said['checks'] = [checks.row('logits, float32', 'resnet18', 1e-6)], None
  monkeypatch.setattr(record, 'code', lambda: 'other')
  started.clear()
  assert command.run(arguments(out)) == 0
  assert started == ['device', 'checks', 'loop']
  last = capsys.readouterr().out.splitlines()[-1]
  assert json.loads(last)['checks_hold'] == 1


def test_a_rehearsal_leaves_the_record_of_a_card(on_card, tmp_path):
  said, _ = on_card
  out = tmp_path / 'a.json'
  said['checks'], said['loop'] = ([], None), ([loop_row()], None)
  command.run(arguments(out))
  before = out.read_text()
  with pytest.raises(SystemExit, match=f'record of {H100}; name another'):
    command.run(arguments(out, small=True))
  assert out.read_text() == before
  (tmp_path / 'other.json').write_text('{"parts": {}}')
  with pytest.raises(ValueError, match='no file of benchmarks.accelerator'):
    record.load(tmp_path / 'other.json')


def test_code_is_known_without_git(tmp_path):
  (tmp_path / 'benchmarks').mkdir()
  (tmp_path / 'tlkd_jax' / 'models').mkdir(parents=True)
  assert record.commit(tmp_path) is None
  file = tmp_path / 'tlkd_jax' / 'models' / 'a.py'
  file.write_text('a = 1\n')
  (tmp_path / 'benchmarks' / 'tables.py').write_text('b = 1\n')
  first = record.code(tmp_path)
  (tmp_path / 'benchmarks' / 'tables.py').write_text('b = 2\n')
  assert record.code(tmp_path) == first
  file.write_text('a = 2\n')
  assert record.code(tmp_path) != first


def speed_row(arm, batch, ms, **more):
  row = {'key': f'resnet {arm} {batch}', 'pair': 'resnet', 'arm': arm}
  row |= {'batch': batch, 'image_size': 224, 'classes': 1000}
  row |= {'student': 'resnet50', 'teacher': 'resnet152'}
  if ms is None:
    return row | {'out_of_memory': 'RESOURCE_EXHAUSTED'}
  row |= {'ms': ms, 'ms_min_max': [ms - 1, ms + 1], 'rounds': 9, 'steps': 5}
  row |= {'send_ms': 2.0, 'compile_s': 30.0, 'temporary_mib': 900}
  row |= {'images_per_second': 1e3 * batch / ms, 'model_flop': 3e12}
  row |= {'xla_flop': 2e12, 'xla_flop_given': 3.1e12, 'xla_bytes': 6.7e10}
  return row | {'mfu': 0.4} | more


def a_record():
  speed = [
    speed_row('tl', 64, 10.0),
    speed_row('online', 64, 20.0),
    speed_row('online', 128, None),
  ]
  torch = [
    {'key': 'torch', 'version': '2', 'on': H100},
    {'key': 'resnet tl 64 eager', 'ms': 12.0, 'ms_min_max': [11.0, 13.0]},
    {'key': 'resnet tl 64 compiled', 'ms': 8.0, 'ms_min_max': [7.0, 9.0]},
    {'key': 'resnet online 64 compiled', 'broken': 'no compiler'},
  ]
  part = {'seconds': 1.0, 'left_out': []}
  return {
    'benchmark': 'accelerator',
    'identity': {'code': 'x', 'device': H100, 'devices': 1, 'small': False},
    'date': '2026-01-01',
    'machine': {'kind': H100, 'devices': 1, 'cpu': 'EPYC', 'cores': 16}
    | {'platform': 'gpu', 'versions': {'jax': '1'}, 'driver': None},
    'card': cards.find(H100)._asdict(),
    'parts': {
      'checks': part | {'rows': [checks.row('augmentation', 'x', 0.01)]},
      'speed resnet': part | {'rows': speed, 'left_out': ['resnet tl 128']},
      'torch resnet': part | {'rows': torch},
      'torch vit': part | {'rows': [], 'skipped': 'PyTorch not at hand'},
      'loop': part | {'rows': [loop_row()]},
    },
  }


def test_tables_of_a_record():
  found = a_record()
  text = tables.markdown(found)
  for line in (
    '| augmentation | 1 of 1 | 0.01 | 0.05 | x |',
    '| losses of more devices | not measured |  |  |  |',
    '| resnet152 -> resnet50 | TL | 64 | 10.00 (9.00 to 11.00) | 9 x 5 | 6,400 '
    '| 40% | 2.0 | 30.0 | 900 |',
    '| resnet152 -> resnet50 | TL+KD, teacher in the step | 128 '
    '| out of memory |  |  |  |  |  |  |',
    '| resnet | TL | 64 | 10.00 (9.00 to 11.00) | 12.00 (11.00 to 13.00) '
    '| 8.00 (7.00 to 9.00) | 1.25 |',
    '| resnet | TL+KD, teacher in the step | 64 | 20.00 (19.00 to 21.00) '
    '| not measured | broken |  |',
    '| 64 | 32 | 2.00 (1.00 to 3.00) | 2.00 (1.00 to 3.00) '
    '| 1.01 (1.0 to 1.02) |',
    '- speed resnet: left out resnet tl 128',
    '- torch vit: PyTorch not at hand',
  ):
    assert line in text
  # 67 GB at 3,350 GB/s are 20 ms; as computed for docs/scaling.md, 130.51 / 2.
  assert '| 67.00 | 20.00 (memory) | 20.00 | 1.00 | 19.48 |' in text
  figures = tables.short(found)
  assert figures['resnet tl']['ratio_to_torch'] == 1.25
  assert figures['resnet online']['ratio_to_torch'] is None
  assert '| resnet: TL | 6,400 images/s at 64, MFU 40.0%' in (
    tables.short_table([figures])
  )
  assert tables.markdown({}) == 'Nothing was measured yet.'


def test_pytorch_is_asked_at_our_first_and_best_batch():
  found = a_record()
  found['parts']['speed resnet']['rows'].append(speed_row('online', 96, 25.0))
  job = command.torch_job(found, 'resnet', 60.0, small=False)
  assert job['batches'] == {'tl': [64, 96], 'online': [64, 96]}
  assert job['modes'] == ['eager', 'compiled'] and job['classes'] == 1000
  assert 'resnet tl 64 eager' in job['done']
  assert command.torch_job(found, 'vit', 60.0, small=False) == {}
  for python, asked, why in (
    (None, job, 'PyTorch not at hand'),
    ('python', {}, 'no step of ours was measured'),
    ('python', job, None),
  ):
    assert command.why_skipped('torch resnet', found, python, asked) == why


def test_the_entry_is_skipped_where_no_accelerator_is(
  monkeypatch, tmp_path, capsys
):
  monkeypatch.setattr(run_all.devices, 'has_card', lambda: False)
  monkeypatch.setattr(run_all, 'run_entry', lambda _: pytest.fail('it ran'))
  out = tmp_path / 'bench.json'
  line = ['run_all', '--out', str(out), '--only', 'accelerator']
  monkeypatch.setattr('sys.argv', line)
  run_all.main()
  said = capsys.readouterr().out
  assert said == 'accelerator: skipped, no accelerator is here\n'
  assert not out.exists()
