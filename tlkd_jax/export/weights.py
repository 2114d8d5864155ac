"""safetensors: weights under the names of timm or of the variant's library."""

import pathlib

import numpy as np

from tlkd_jax.export.student import Student, library_model
from tlkd_jax.models import create_model
from tlkd_jax.models.weights import pretrained, torch_files, twins
from tlkd_jax.runtime.atomic import replacing


def state_dict(student: Student) -> dict[str, np.ndarray]:
  """The student's weights under the names of `library_model`."""
  model = create_model(
    student.model.name, num_classes=student.model.num_classes
  )
  own = pretrained.to_torch(model, student.params, student.model_state)
  target = library_model(student)
  return own if target is model else twins.rename(model, target, own)


def write(student: Student, out: pathlib.Path) -> str:
  """Writes the file and reads it back; returns what to tell the user.

  Raises:
    RuntimeError: what was read back is not what was written.
  """
  return write_entries(student, out, state_dict(student))


def write_entries(
  student: Student, out: pathlib.Path, entries: dict[str, np.ndarray]
) -> str:
  """The same for entries of the student that may have been rounded."""
  with replacing(out) as unfinished:
    torch_files.write_safetensors(unfinished, entries, {'format': 'pt'})
    back = torch_files.read_state_dict(unfinished)
    if back.keys() != entries.keys() or any(
      not np.array_equal(back[key], entries[key]) for key in entries
    ):
      raise RuntimeError(f'{out}: what was read back is not what was written')
  return f'{out}: {len(entries)} entries, keys of {library_model(student).name}'
