"""The student that is exported, and how a converted one is compared with it."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from tlkd_jax.models import create_model, fused_name, quantized, side_by_side
from tlkd_jax.models.functional import Array, Model, Tree
from tlkd_jax.models.weights import folding, twins
from tlkd_jax.training import checkpoints, descriptions, ensemble, finished
from tlkd_jax.training.descriptions import Description

# Largest difference of logits that a converted model may have, as a share of
# the largest logit (or of 1 where all are smaller).
TOLERANCE = 1e-4
# Largest difference of probabilities of a model that prepares images itself:
# single pixels may be rounded otherwise than by Pillow.
PROBABILITY_TOLERANCE = 5e-3


@dataclasses.dataclass(frozen=True)
class Student:
  """What is exported.

  Attributes:
    model: as it was trained, or fused and with folded norms.
    params: its parameters, numpy arrays.
    model_state: its BatchNorm statistics, numpy arrays.
    description: of its checkpoint.
    folded: whether norms were folded.
    digest: of the weights as they were trained, which no other run has; '' of
      a student that is of no run.
  """

  model: Model
  params: Tree
  model_state: Tree
  description: Description
  folded: bool = False
  digest: str = ''

  @property
  def rounds(self) -> bool:
    """Whether it learned as int8 computes it; see training/quantization.py."""
    return quantized.variant_of(self.model.name) is not None

  @property
  def image_size(self) -> int:
    """Side of the images, in pixels."""
    return self.description.image_size

  def logits(self, images: Array) -> Array:
    """Normalised float32 images [B, H, W, 3] -> logits [B, K]."""
    outputs, _ = self.model.apply(self.params, self.model_state, images)
    return outputs['logits']

  def logits_of(self, squares: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, 3] as the network sees them -> float32 [B, K]."""
    return np.asarray(jax.jit(self.logits)(self.normalised(squares)))

  def normalised(self, squares: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] -> float32 of the same shape, (pixel - mean) / std."""
    mean, std = (
      np.float32(self.model.spec.mean),
      np.float32(self.model.spec.std),
    )
    return (squares.astype(np.float32) - mean) / std


def load_student(
  checkpoint: str | os.PathLike,
  *,
  fold_norm: bool = False,
  named: bool = False,
  whole: bool = True,
) -> Student:
  """The best student of a run.

  Args:
    checkpoint: workdir of a TL or TL+KD run.
    fold_norm: fuse branches, and fold every BatchNorm into the convolution
      before it.
    named: fold no more than leaves the weights with names that a library has.
    whole: whether it may be a student of int8, whose numbers are whole.

  Raises:
    FileNotFoundError: no run with a checkpoint lies there.
    ValueError: it is a teacher's run, an ensemble, corrupt, or of int8 where
      that cannot be written, or there is nothing to fold.
  """
  description = checkpoints.read_description(checkpoint)
  if description.arm == 'teacher':
    raise ValueError(
      f'{checkpoint} is the run of a teacher, and students are exported: give '
      'the workdir of a TL or TL+KD run'
    )
  rounds = quantized.variant_of(description.model) is not None
  if rounds and not whole:
    raise ValueError(
      f'{checkpoint} holds a student that learned as int8 computes it, '
      f'{description.model}: its norms are folded, so that its weights fit no '
      "library's network, and without the rounding they are another student's. "
      'Export it to onnx, or the run that it started from to this format'
    )
  if rounds and fold_norm:
    raise ValueError(
      f'{checkpoint} holds {description.model}, whose norms are folded '
      'already: leave --fold-norm out'
    )
  if fold_norm and named and fused_name(description.model) is None:
    raise ValueError(
      f'folded norms fit no file of the weights of {description.model}: the '
      'models of timm and torchvision have their norms, and could not load it. '
      'Leave --fold-norm out, or export to onnx or stablehlo'
    )
  _, count = side_by_side.parts_of(description.model)
  if count:
    first, *_, last = ensemble.folders(pathlib.Path(checkpoint), count)
    raise ValueError(
      f'{checkpoint} holds several students, {description.model}, and one is '
      f'exported: give the workdir of a member, {first} to {last.name}'
    )
  loaded = finished.restore(str(checkpoint), description)
  model = loaded.network.model
  params, state = jax.device_get((loaded.params, loaded.model_state))
  digest = descriptions.digest({'params': params, 'model_state': state})
  if fold_norm:
    fold = folding.fuse if named else folding.fold_norms
    model, params, state = fold(model, params, state)
  return Student(model, params, state, description, fold_norm or rounds, digest)


def folded(student: Student) -> Student:
  """With branches fused and norms folded, where there are any."""
  if student.folded or not folding.folds(student.model):
    return student
  model, params, state = folding.fold_norms(
    student.model, student.params, student.model_state
  )
  return dataclasses.replace(
    student, model=model, params=params, model_state=state, folded=True
  )


def library_model(student: Student) -> Model:
  """The variant whose keys are written: timm's, else the student's own."""
  name = quantized.variant_of(student.model.name) or student.model.name
  name = twins.timm_name(name) or name
  return create_model(name, num_classes=student.model.num_classes)


def sample_images(student: Student, count: int) -> np.ndarray:
  """Normalised noise [count, H, W, 3], always the same."""
  size = student.image_size
  shape = (count, size, size, 3)
  return np.random.default_rng(count).normal(size=shape).astype(np.float32)


def max_difference(
  student: Student, converted: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, float]:
  """Compares logits on batches of one and of three images.

  Args:
    student: the reference.
    converted: normalised float32 images [B, H, W, 3] -> logits [B, K].

  Returns:
    (largest absolute difference, largest absolute logit of the student).
  """
  apply = jax.jit(student.logits)
  differences, largest = [], []
  for count in (1, 3):
    images = sample_images(student, count)
    expected = np.asarray(apply(images))
    differences.append(np.abs(np.asarray(converted(images)) - expected).max())
    largest.append(np.abs(expected).max())
  return float(np.max(differences)), float(np.max(largest))


def checked(
  student: Student,
  converted: Callable[[np.ndarray], np.ndarray],
  out: pathlib.Path,
  runner: str,
) -> str:
  """Compares what was written with the student.

  Args:
    student: the reference.
    converted: what was read back, as in `max_difference`.
    out: the file, for messages.
    runner: what ran it, likewise.

  Returns:
    How they compare, for the user.

  Raises:
    RuntimeError: they differ by more than TOLERANCE.
  """
  difference, largest = max_difference(student, converted)
  if not difference <= TOLERANCE * max(largest, 1.0):
    raise RuntimeError(
      f'{out} is not written: {runner} differs from the student by '
      f'{difference:.3g} in logits of up to {largest:.3g}'
    )
  return (
    f'{out}: {runner} differs from the student by at most {difference:.2e} '
    f'(largest logit {largest:.3g}; batches of 1 and 3)'
  )


def checked_probabilities(
  found: np.ndarray, expected: np.ndarray, out: pathlib.Path
) -> str:
  """Compares probabilities, [N, K], of a model that prepares images itself.

  Raises:
    RuntimeError: they differ by more than PROBABILITY_TOLERANCE.
  """
  difference = float(np.abs(found - expected).max())
  if not difference <= PROBABILITY_TOLERANCE:
    raise RuntimeError(
      f'{out} is not written: its probabilities differ from those of the '
      f'student by {difference:.3g}, and at most {PROBABILITY_TOLERANCE} is '
      'accepted'
    )
  return (
    f'{out}: with its own preprocessing, probabilities differ from those of '
    f'the student by at most {difference:.2e} ({len(found)} images of other '
    'sizes)'
  )
