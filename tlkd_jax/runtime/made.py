"""By what something was made: to tell whether two results are comparable."""

import functools
import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

from jax.sharding import Mesh

from tlkd_jax.runtime import devices

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
_GIT_SECONDS = 10
# The widest first.
_VECTORS = {'avx512f': 'AVX-512', 'avx2': 'AVX2', 'avx': 'AVX'}


def by(mesh: Mesh) -> dict[str, Any]:
  """What makes a run on a mesh.

  Returns:
    `commit` of the package, see `commit`; `versions` of Python and libraries;
    `device`, its kind; `cores` that this process may use; `processor`, where it
    is what computes, else ''.
  """
  kinds = {device.device_kind for device in mesh.devices.flat}
  count = mesh.devices.size
  return {
    'commit': commit(),
    'versions': versions(),
    'device': f'{count} x {", ".join(sorted(kinds))}',
    'cores': devices.cores(),
    'processor': processor() if mesh.devices.flat[0].platform == 'cpu' else '',
  }


def versions() -> dict[str, str]:
  """Of Python and of the libraries that compute."""
  found = {'python': platform.python_version()}
  for name in _LIBRARIES:
    found[name] = importlib.metadata.version(name)
  return found


def processor() -> str:
  """Name, family, model and widest vectors of this machine's processor."""
  info = pathlib.Path('/proc/cpuinfo')
  name = parse_processor(info.read_text()) if info.exists() else ''
  return name or platform.processor()


def parse_processor(cpuinfo: str) -> str:
  """'NAME, family F, model M, EXTENSION' of Linux's list of processors.

  Last digits and ratios of times belong to a processor, and makers sell several
  by one name.

  Args:
    cpuinfo: text of /proc/cpuinfo.

  Returns:
    Of the first processor; '' where its name is not said, as on ARM.
  """
  first = {}
  for line in cpuinfo.partition('\n\n')[0].splitlines():
    key, _, value = line.partition(':')
    first[key.strip()] = value.strip()
  name = first.get('model name', '')
  if 'cpu family' in first:
    name += f', family {first["cpu family"]}, model {first["model"]}'
  flags = first.get('flags', '').split()
  widest = (text for flag, text in _VECTORS.items() if flag in flags)
  return ', '.join(filter(None, (name, next(widest, ''))))


@functools.cache
def commit(package: pathlib.Path = _PACKAGE) -> str | None:
  """The last commit that changed the package, '+' where files differ from it.

  A commit of results is none, so that the rows of a study that are committed as
  they come stay of one version. None where there is no checkout.
  """
  said = _git(package, 'log', '-1', '--format=%h', '--abbrev=12', '--', '.')
  if not said:
    return None
  changed = _git(package, 'status', '--porcelain', '--', '.')
  return said + '+' * bool(changed)


def _git(package: pathlib.Path, *arguments: str) -> str | None:
  try:
    done = subprocess.run(
      ['git', '-C', str(package), *arguments],
      capture_output=True,
      text=True,
      timeout=_GIT_SECONDS,
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.strip() if done.returncode == 0 else None
