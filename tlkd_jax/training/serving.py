"""What predictions of finished runs cost: RUN/evaluation/cost.json.

Measured when all training of a command is over, so that nothing of it is
beside; a network that several runs have is measured once.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
from absl import logging

from tlkd_jax.evaluation import records
from tlkd_jax.models import serving
from tlkd_jax.models.network import Network
from tlkd_jax.models.serving import BATCHES, Figures, Serving
from tlkd_jax.runtime import sealed, sharding
from tlkd_jax.settings import from_config
from tlkd_jax.training import checkpoints, networks
from tlkd_jax.training import workdir as workdirs
from tlkd_jax.training.descriptions import Description

# A command of fewer steps is a trial, whose end nobody waits for.
LEAST_STEPS = 50


def figures_of(description: Description) -> Figures:
  """The figures of a checkpoint's network."""
  return serving.figures(
    description.model,
    description.image_size,
    description.num_classes,
    description.compute_dtype,
  )


def counted(found: Mapping[str, Network]) -> dict[str, Any]:
  """Role -> figures of its network, for a summary.

  A network that has no name of a variant is left out.
  """
  known = {}
  for role, network in found.items():
    model, dtype = network.model, jnp.dtype(network.dtype).name
    try:
      own = serving.figures(
        model.name, network.image_size, model.num_classes, dtype
      )
    except ValueError as error:
      logging.warning('%s is not counted: %s', model.name, error)
      continue
    known[role] = dataclasses.asdict(own)
  return known


def networks_of(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """'student' or 'teacher' -> the run whose best checkpoint it is.

  Of a run its own network, and its first teacher where that is still there.

  Raises:
    FileNotFoundError, ValueError: no run with a checkpoint lies there.
  """
  arm = checkpoints.read_description(folder).arm
  found = {'teacher' if arm == 'teacher' else 'student': folder}
  if (folder / 'config.json').exists():
    runs = networks.teacher_runs(from_config(workdirs.read(folder)))
    teacher = pathlib.Path(runs['teacher']) if 'teacher' in runs else None
    if teacher is not None and (teacher / 'checkpoints' / 'best').is_dir():
      found['teacher'] = teacher
  return found


def path_of(folder: pathlib.Path) -> pathlib.Path:
  """The file that says what the predictions of a run cost."""
  return folder / 'evaluation' / 'cost.json'


def read(folder: pathlib.Path) -> dict[str, Serving]:
  """'student' and 'teacher' -> cost, as far as a run's file says; {} without.

  Raises:
    ValueError: it is damaged.
  """
  path = path_of(folder)
  if not path.exists():
    return {}
  stored = sealed.read_json(path)
  if not isinstance(stored, dict):
    raise ValueError(f'{path} is damaged: it holds no object')
  try:
    return {role: serving.from_json(one) for role, one in stored.items()}
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def write(folder: pathlib.Path, found: dict[str, Serving]) -> None:
  """Writes what `read` reads."""
  stored = {role: serving.as_json(one) for role, one in found.items()}
  records.write_json(path_of(folder), stored)


def after_training(folders: Iterable[pathlib.Path], num_steps: int) -> None:
  """Measures in JAX what is not measured yet; a failure is a warning.

  Args:
    folders: of finished runs.
    num_steps: of the command's settings.
  """
  left = [path for path in folders if not path_of(path).exists()]
  if num_steps < LEAST_STEPS or not left or not sharding.is_lead():
    return
  known: dict[Figures, Serving] = {}
  for folder in left:
    try:
      write(folder, measure_run(folder, known, serving.measure))
    except (OSError, RuntimeError, ValueError) as error:
      logging.warning('%s: its predictions were not timed: %s', folder, error)
  for one in known.values():
    logging.info('%s', line(one))


def measure_run(
  folder: pathlib.Path,
  known: dict[Figures, Serving],
  measure: Callable[[Figures], Serving],
) -> dict[str, Serving]:
  """The costs of a run's networks.

  Args:
    folder: the run.
    known: what was measured before, which grows.
    measure: of a network that is not among them.

  Raises:
    FileNotFoundError, ValueError: as networks_of.
    RuntimeError: as serving.measure.
  """
  found = {}
  for role, run in networks_of(folder).items():
    own = figures_of(checkpoints.read_description(run))
    if own not in known:
      known[own] = measure(own)
    found[role] = known[own]
  return found


def line(one: Serving) -> str:
  """A network's cost for the console."""
  own = one.figures
  parts = [
    f'{own.parameters / 1e6:.2f} M parameters',
    f'{own.all_macs / 1e6:.3g} M multiply-adds an image',
  ]
  for runtime in dict.fromkeys(timing.runtime for timing in one.timings):
    found = [one.find(runtime, batch) for batch in BATCHES]
    parts += [
      f'{runtime} {timing.ms:.3g} ms ({timing.low:.3g} to {timing.high:.3g}) '
      f'a batch of {timing.batch}'
      for timing in found
      if timing is not None
    ]
  return f'{own.model} at {own.image_size} pixels: {", ".join(parts)}'


def of_summary(summary: dict[str, Any], role: str) -> Serving | None:
  """What a run's summary says of its student or teacher; None of older ones.

  Raises:
    ValueError: it is damaged.
  """
  stored = summary.get('prediction_cost', {}).get(role)
  return None if stored is None else serving.from_json(stored)
