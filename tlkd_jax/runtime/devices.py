"""Which devices a run is on, and which of this machine it leaves unused."""

import collections
import dataclasses
import importlib.util
import os
import pathlib
import shutil
import subprocess

import jax
from absl import logging
from jax.sharding import Mesh

from tlkd_jax.runtime.errors import UserError

# Where a driver, a container or WSL 2 shows an NVIDIA GPU.
_NVIDIA = ('dev/nvidia[0-9]*', 'dev/nvidiactl', 'dev/dxg')
_NVIDIA_SMI_SECONDS = 10
# Values of CUDA_VISIBLE_DEVICES and the like that hide every card.
_NONE_VISIBLE = ('', '-1', 'NoDevFiles')
# PCI numbers of Cloud TPUs v2 to 7x, as in jax/_src/hardware_utils.py. Google's
# virtual network cards have its vendor number too.
_GOOGLE = '0x1ae0'
_TPU_NUMBERS = frozenset(
  ('0x0027', '0x0056', '0x005e', '0x0062', '0x0063', '0x006f', '0x0076')
)


@dataclasses.dataclass(frozen=True)
class _Card:
  """A kind of accelerator.

  Attributes:
    name: for people, with its article.
    platforms: what JAX_PLATFORMS calls it.
    packages: any of these lets JAX use it.
    how: to get one of them.
    hiding: a variable that hides it from JAX.
  """

  name: str
  platforms: frozenset[str]
  packages: tuple[str, ...]
  how: str
  hiding: str


_GPU = _Card(
  'an NVIDIA GPU',
  frozenset(('cuda', 'gpu')),
  ('jax_cuda12_plugin', 'jax_cuda13_plugin'),
  "pip install 'tlkd_jax[cuda12]' (or -r requirements-cuda.txt)",
  'CUDA_VISIBLE_DEVICES',
)
_TPU = _Card(
  'a TPU',
  frozenset(('tpu',)),
  ('libtpu',),
  "pip install 'tlkd_jax[tpu]' (or -r requirements-tpu.txt)",
  'TPU_VISIBLE_CHIPS',
)


def available() -> list[jax.Device]:
  """The devices that JAX uses, of all processes.

  Raises:
    UserError: what JAX was told to use does not start on this machine.
  """
  try:
    return jax.devices()
  # JAX asserts where JAX_PLATFORMS=cuda meets a machine without a card.
  except (AssertionError, RuntimeError) as error:
    told = _told()
    reason = str(error).partition(' (')[0]
    if not told:
      raise UserError(f'no device starts: {error}') from error
    raise UserError(
      f'JAX_PLATFORMS is {told!r}, and no such device starts here'
      + (f': {reason}' if reason else ': none was found')
      + '; unset it to take what there is, or set it to cpu'
    ) from error


def describe(mesh: Mesh) -> str:
  """The devices of a run: '1 x cpu, 2 cores', '4 x NVIDIA H100 80GB HBM3'."""
  devices = mesh.devices.flatten().tolist()
  kinds = collections.Counter(device.device_kind for device in devices)
  parts = [f'{count} x {kind}' for kind, count in kinds.items()]
  if devices[0].platform == 'cpu':
    parts.append(_counted(cores(), 'core'))
  if jax.process_count() > 1:
    parts.append(f'{jax.process_count()} processes')
  return ', '.join(parts)


def cores() -> int:
  """The processor's cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def has_card(root: pathlib.Path = pathlib.Path('/')) -> bool:
  """Whether JAX may find a GPU or TPU of this machine, before it looks.

  Args:
    root: in place of `/`.
  """
  told = _told()
  return any(
    seen
    and not (told and card.platforms.isdisjoint(told.split(',')))
    and any(map(importlib.util.find_spec, card.packages))
    for card, seen in ((_GPU, _nvidia(root)), (_TPU, _tpu(root)))
  )


def say(mesh: Mesh) -> None:
  """Logs the devices of a run, and those that are here and unused, once."""
  if jax.process_index():
    return
  logging.info('on %s', describe(mesh))
  hint = unused(mesh)
  if hint:
    logging.warning('%s', hint)


def unused(mesh: Mesh, root: pathlib.Path = pathlib.Path('/')) -> str | None:
  """What a run on CPU leaves unused of this machine, and what to do about it.

  Args:
    mesh: of the run.
    root: in place of `/`.

  Returns:
    A sentence; None where nothing is known of a GPU or TPU, or it is used.
  """
  if mesh.devices.flat[0].platform != 'cpu':
    return None
  for card, seen in ((_GPU, _nvidia(root)), (_TPU, _tpu(root))):
    if seen:
      return f'{card.name} is here ({seen}) and unused: {_why(card)}'
  return None


def _told() -> str:
  """JAX_PLATFORMS, '' where JAX chooses."""
  return jax.config.values['jax_platforms'] or ''


def _why(card: _Card) -> str:
  told = _told()
  if told and card.platforms.isdisjoint(told.split(',')):
    return f'JAX_PLATFORMS is {told!r}; unset it to use it'
  visible = os.environ.get(card.hiding)
  if visible is not None and visible.strip() in _NONE_VISIBLE:
    return f'{card.hiding} is {visible!r}; unset it to use it'
  if not any(map(importlib.util.find_spec, card.packages)):
    return f'JAX has no plug-in for it; {card.how}'
  return "its plug-in did not start; JAX's own warning says why"


def _nvidia(root: pathlib.Path) -> str | None:
  """What shows an NVIDIA GPU."""
  for pattern in _NVIDIA:
    for path in sorted(root.glob(pattern)):
      return f'/{path.relative_to(root)}'
  tool = shutil.which('nvidia-smi')
  if tool is None:
    return None
  try:
    listed = subprocess.run(
      [tool, '-L'],
      capture_output=True,
      text=True,
      timeout=_NVIDIA_SMI_SECONDS,
    ).stdout
  except (OSError, subprocess.SubprocessError):
    return None
  return 'nvidia-smi' if listed.startswith('GPU ') else None


def _tpu(root: pathlib.Path) -> str | None:
  """What shows a TPU."""
  for path in sorted(root.glob('dev/accel[0-9]*')):
    return f'/{path.relative_to(root)}'
  for path in sorted(root.glob('sys/bus/pci/devices/*')):
    try:
      vendor, device = (
        (path / name).read_text().strip() for name in ('vendor', 'device')
      )
    except OSError:
      continue
    if vendor == _GOOGLE and device in _TPU_NUMBERS:
      return f'/{path.relative_to(root)}'
  return None


def _counted(count: int, noun: str) -> str:
  return f'{count} {noun}{"s" * (count != 1)}'
