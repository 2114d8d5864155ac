"""What is said of devices: those in use, those unused, those not there."""

import logging
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from tlkd_jax.runtime import command_line, devices, sharding


def mesh_of(*kinds: str, platform: str = 'cpu'):
  """Only what is read of a mesh."""
  found = [
    types.SimpleNamespace(device_kind=k, platform=platform) for k in kinds
  ]
  return types.SimpleNamespace(devices=np.asarray(found, object))


@pytest.mark.parametrize(
  ('kinds', 'platform', 'cores', 'processes', 'expected'),
  [
    (['cpu'], 'cpu', 2, 1, '1 x cpu, 2 cores'),
    (['cpu'] * 4, 'cpu', 1, 1, '4 x cpu, 1 core'),
    (['NVIDIA H100'], 'gpu', 16, 1, '1 x NVIDIA H100'),
    (['TPU v4'] * 8, 'tpu', 16, 2, '8 x TPU v4, 2 processes'),
    (['A', 'B', 'A'], 'gpu', 1, 1, '2 x A, 1 x B'),
    (['cpu'] * 2, 'cpu', 3, 2, '2 x cpu, 3 cores, 2 processes'),
  ],
)
def test_devices_in_a_few_words(
  kinds, platform, cores, processes, expected, monkeypatch
):
  monkeypatch.setattr(devices, 'cores', lambda: cores)
  monkeypatch.setattr(jax, 'process_count', lambda: processes)
  assert devices.describe(mesh_of(*kinds, platform=platform)) == expected


def test_cores_are_those_of_this_process():
  code = (
    'import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])\n'
    'from tlkd_jax.runtime import devices; print(devices.cores())'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True)
  assert done.stdout.strip() == b'1'


PCI = 'sys/bus/pci/devices/0000:00:04.0'
# What lies in a machine, what JAX was told, and what the hint holds.
MACHINES = {
  'nothing': ([], {}, None),
  'an NVIDIA driver': (['dev/nvidia0'], {}, ['NVIDIA', '/dev/nvidia0']),
  'another card': (['dev/nvidia3'], {}, ['/dev/nvidia3', 'tlkd_jax[cuda12]']),
  'a container': (['dev/nvidiactl'], {}, ['/dev/nvidiactl', 'requirements-c']),
  'WSL 2': (['dev/dxg'], {}, ['/dev/dxg']),
  'told to use the CPU': (
    ['dev/nvidia0'], {'platforms': 'cpu'}, ["JAX_PLATFORMS is 'cpu'"]
  ),
  'hidden': (
    ['dev/nvidia0'], {'CUDA_VISIBLE_DEVICES': ''}, ["VISIBLE_DEVICES is ''"]
  ),
  'hidden by a number': (
    ['dev/nvidia0'], {'CUDA_VISIBLE_DEVICES': '-1'}, ["DEVICES is '-1'"]
  ),
  'a plug-in that fails': (
    ['dev/nvidia0'], {'installed': 'jax_cuda12_plugin'}, ['did not start']
  ),
  'a TPU machine': (['dev/accel0'], {}, ['a TPU is', 'tlkd_jax[tpu]']),
  'a TPU by its numbers': (
    [(f'{PCI}/vendor', '0x1ae0'), (f'{PCI}/device', '0x0063')],
    {},
    ['a TPU is', f'/{PCI}', 'requirements-tpu.txt'],
  ),
  "Google's network card": (
    [(f'{PCI}/vendor', '0x1ae0'), (f'{PCI}/device', '0x0042')], {}, None
  ),
  'a TPU with its library': (
    ['dev/accel1'], {'installed': 'libtpu'}, ['did not start']
  ),
  'a modem': (['dev/nvidia-modeset', 'dev/accelerator'], {}, None),
}  # fmt: skip


def make_machine(root, entries) -> None:
  for entry in entries:
    name, text = entry if isinstance(entry, tuple) else (entry, '')
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(f'{text}\n')


@pytest.fixture
def bare(monkeypatch):
  """No card, no plug-in and no variable of this machine counts."""
  for name in ('CUDA_VISIBLE_DEVICES', 'TPU_VISIBLE_CHIPS'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(devices.shutil, 'which', lambda _: None)
  monkeypatch.setattr(devices.importlib.util, 'find_spec', lambda _: None)
  monkeypatch.setattr(devices, 'jax', jax_told(''))


def jax_told(platforms: str):
  return types.SimpleNamespace(
    config=types.SimpleNamespace(values={'jax_platforms': platforms}),
    process_count=lambda: 1,
    process_index=lambda: 0,
  )


@pytest.mark.parametrize('name', MACHINES)
def test_a_card_that_is_here_and_unused_is_named(
  name, bare, tmp_path, monkeypatch
):
  entries, told, expected = MACHINES[name]
  make_machine(tmp_path, entries)
  installed = told.pop('installed', None)
  monkeypatch.setattr(
    devices.importlib.util, 'find_spec', lambda n: n == installed or None
  )
  monkeypatch.setattr(devices, 'jax', jax_told(told.pop('platforms', '')))
  for variable, value in told.items():
    monkeypatch.setenv(variable, value)
  hint = devices.unused(mesh_of('cpu'), tmp_path)
  if expected is None:
    assert hint is None
  else:
    assert all(text in hint for text in expected), hint
  # Used, it needs no hint.
  assert devices.unused(mesh_of('X', platform='gpu'), tmp_path) is None


@pytest.mark.parametrize(
  ('script', 'seen'),
  [
    ('echo "GPU 0: NVIDIA H100 (UUID: GPU-1)"', True),
    ('echo "No devices were found"; exit 6', False),
    ('echo "NVIDIA-SMI has failed because ..."; exit 9', False),
    ('exit 0', False),
  ],
)
def test_a_card_that_only_nvidia_smi_shows(
  script, seen, bare, tmp_path, monkeypatch
):
  tool = tmp_path / 'nvidia-smi'
  tool.write_text(f'#!/bin/sh\n{script}\n')
  tool.chmod(0o755)
  monkeypatch.setattr(devices.shutil, 'which', lambda _: str(tool))
  hint = devices.unused(mesh_of('cpu'), tmp_path)
  assert ('(nvidia-smi)' in (hint or '')) == seen


def test_the_line_at_the_start(caplog, bare, monkeypatch):
  monkeypatch.setattr(devices, '_nvidia', lambda _: '/dev/nvidia0')
  with caplog.at_level(logging.INFO, logger='absl'):
    devices.say(mesh_of('cpu'))
  line, hint = [record.getMessage() for record in caplog.records]
  assert line == f'on {devices.describe(mesh_of("cpu"))}'
  assert hint.startswith('an NVIDIA GPU is here (/dev/nvidia0) and unused: ')


@pytest.mark.parametrize(
  ('name', 'level', 'shown'),
  [
    ('jax._src.xla_bridge', logging.WARNING, True),
    ('jax_plugins.xla_cuda12', logging.WARNING, True),
    ('jax._src.xla_bridge', logging.INFO, False),
    ('jax._src.dispatch', logging.WARNING, False),
    ('orbax', logging.WARNING, False),
    ('orbax', logging.ERROR, True),
  ],
)
def test_warnings_of_the_backend_are_seen(name, level, shown):
  record = logging.LogRecord(name, level, '/x/y.py', 1, 'text', (), None)
  assert bool(command_line._is_shown(record)) == shown


def test_warnings_of_the_backend_reach_the_terminal():
  code = (
    'import logging\n'
    'from tlkd_jax.runtime import command_line\n'
    'command_line.start_logging()\n'
    'command_line.logging.use_absl_handler()\n'
    'logging.getLogger("jax._src.xla_bridge").warning("a GPU may be present")\n'
    'logging.getLogger("jax._src.dispatch").warning("noise")\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert 'a GPU may be present' in done.stderr and 'noise' not in done.stderr


@pytest.mark.parametrize('platforms', ['cuda', 'nonsense'])
def test_a_device_that_is_not_there_is_one_message(platforms):
  if platforms == 'cuda' and devices._nvidia(devices.pathlib.Path('/')):
    pytest.skip('there is a card')
  code = (
    'from tlkd_jax.runtime import command_line, sharding\n'
    'command_line.run_or_fail(sharding.make_mesh)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    env=os.environ | {'JAX_PLATFORMS': platforms, 'XLA_FLAGS': ''},
  )
  assert done.returncode == 2 and 'Traceback' not in done.stderr
  assert done.stderr.startswith(f"error: JAX_PLATFORMS is '{platforms}'")
  assert 'unset it' in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_mesh_is_described_by_its_own_devices():
  count = f'{sharding.make_mesh(2).size} x cpu'
  assert devices.describe(sharding.make_mesh(2)).startswith(count)
