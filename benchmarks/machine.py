"""What a figure was measured on: processor, versions, memory, programs."""

import importlib.metadata
import os
import pathlib
import platform
import statistics
import subprocess
import tempfile

from tlkd_jax.runtime import made

_PACKAGES = (
  *('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'torch', 'torchvision'),
  *('jax-cuda12-plugin', 'jax-cuda13-plugin', 'libtpu'),
  *('nvidia-cudnn-cu12', 'nvidia-cudnn-cu13'),
)


def versions() -> dict:
  """{'cpu', 'cores', 'python', 'versions'}; absent packages are left out."""
  found = {}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return {
    'cpu': made.processor(),
    'cores': os.cpu_count(),
    'python': platform.python_version(),
    'versions': found,
  }


def summary(
  name: str, values: list[float], unit: str = 'ms', digits: int = 1
) -> dict:
  """{NAME_UNIT: median, NAME_min_max: [smallest, largest]}."""
  return {
    f'{name}_{unit}': round(statistics.median(values), digits),
    f'{name}_min_max': [round(min(values), digits), round(max(values), digits)],
  }


def run_compiled(command: list[str], first: list[str] | None = None) -> str:
  """What a command prints when its programs are compiled already.

  A process that compiled them is slower to its end (benchmarks/allocators.py)
  and its peak memory is the compiler's. So `first`, or the command itself,
  fills a compilation cache made for the two, and is forgotten.

  Raises:
    subprocess.CalledProcessError: one of the two failed.
  """
  with tempfile.TemporaryDirectory() as cache:
    variables = os.environ | {
      'JAX_COMPILATION_CACHE_DIR': cache,
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    for run in (first or command, command):
      output = subprocess.run(
        run, stdout=subprocess.PIPE, text=True, check=True, env=variables
      ).stdout
  return output


def memory_mib(pid: int) -> float:
  """Proportional set size of a process and its descendants (Linux), MiB."""
  total, waiting = 0.0, [pid]
  while waiting:
    current = waiting.pop()
    root = pathlib.Path(f'/proc/{current}')
    try:
      for line in (root / 'smaps_rollup').read_text().splitlines():
        if line.startswith('Pss:'):
          total += int(line.split()[1]) / 1024
      for task in (root / 'task').iterdir():
        waiting += map(int, (task / 'children').read_text().split())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
      # It ended meanwhile.
      continue
  return total
