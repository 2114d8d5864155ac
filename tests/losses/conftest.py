"""Golden numbers of the losses: inputs, losses and gradients in float64.

`tests/fixtures/losses/index.json` says for each file the paper, the formula,
the reference code that was run and the keys.
"""

import pathlib

import jax
import numpy as np
import pytest

_FOLDER = pathlib.Path(__file__).parent.parent / 'fixtures' / 'losses'


class Golden:
  """One fixture file: arrays by key, and the comparison with a loss."""

  def __init__(self, name: str):
    with np.load(_FOLDER / f'{name}.npz') as data:
      self.arrays = {key: data[key] for key in data.files}

  def __getitem__(self, key: str) -> np.ndarray:
    array = self.arrays[key]
    return array.astype(np.float32) if array.dtype == np.float64 else array

  def outputs(self, side: str, stages: tuple[int, ...] | None = None) -> dict:
    """The model outputs that the file holds for 'student' or 'teacher'."""
    outputs = {}
    if f'in_{side}_logits' in self.arrays:
      outputs['logits'] = self[f'in_{side}_logits']
    if f'in_{side}_emb' in self.arrays:
      outputs['pre_logits'] = self[f'in_{side}_emb']
    features = {}
    if f'in_{side}_feat' in self.arrays:
      features['stage1'] = self[f'in_{side}_feat']
    for i in range(4) if stages is None else stages:
      if f'in_{side}_feat{i}' in self.arrays:
        features[f'stage{i + 1}'] = self[f'in_{side}_feat{i}']
    return outputs | ({'features': features} if features else {})

  def hyperparameter(self, key: str) -> float:
    return self.arrays[f'hp_{key}'].item()

  def check(self, loss_fn, *args, variant: str = '', factor: float = 1.0):
    """Loss and gradient in the student's outputs against the file.

    Args:
      loss_fn: (student_outputs, *args) -> scalar.
      *args: The student's outputs, then whatever loss_fn takes.
      variant: Suffix of the keys.
      factor: What the file's loss has to be multiplied with.
    """
    loss, gradient = jax.jit(jax.value_and_grad(loss_fn))(*args)
    assert loss.dtype == np.float32 and loss.shape == ()
    expected = self.arrays[f'loss{variant}'] * factor
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-12)
    found = {}
    if 'logits' in gradient:
      found['student_logits'] = gradient['logits']
    if 'pre_logits' in gradient:
      found['student_emb'] = gradient['pre_logits']
    for stage, value in gradient.get('features', {}).items():
      found[f'student_feat{int(stage[5:]) - 1}'] = value
      found['student_feat'] = value
    compared = 0
    for key, value in found.items():
      if f'grad_{key}{variant}' in self.arrays:
        close(value, self.arrays[f'grad_{key}{variant}'] * factor)
        compared += 1
    assert compared, f'no gradient of {sorted(found)} in the file'


def close(value, expected, tolerance: float = 1e-5):
  """Gradients agree to a fraction of their largest entry."""
  largest = np.max(np.abs(expected))
  np.testing.assert_allclose(value, expected, atol=tolerance * largest, rtol=0)


@pytest.fixture
def golden():
  return Golden


@pytest.fixture
def assert_gradient_close():
  return close
