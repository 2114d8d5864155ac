"""A wrong byte in a file of a run is found, or changes nothing that is read."""

import gc
import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest

from tests import tiny
from tlkd_jax.evaluation import evaluate, records
from tlkd_jax.report import runs
from tlkd_jax.runtime import sealed, sharding
from tlkd_jax.runtime.errors import UserError
from tlkd_jax.training import (
  checkpoints,
  decoding,
  descriptions,
  loop,
  run,
  workdir,
)
from tlkd_jax.training.metric_writers import MetricWriter, read_rows
from tlkd_jax.training.state import Learner, State


def flips(content: bytes, count: int, seed: int = 0):
  """The content with one bit changed, at positions spread over it."""
  draw = np.random.default_rng(seed)
  spots = np.linspace(0, len(content), count, endpoint=False).astype(int)
  for spot in np.unique(spots):
    changed = bytearray(content)
    changed[spot] ^= 1 << int(draw.integers(8))
    yield bytes(changed)


def equal(left, right) -> bool:
  same = jax.tree.map(lambda a, b: np.array_equal(a, b), left, right)
  return all(jax.tree.leaves(same))


def read_or_damaged(read):
  """What is read; None where the damage was found and the file named."""
  try:
    return read()
  except ValueError as error:
    assert 'damaged' in str(error) or 'corrupt' in str(error), error
    return None


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(p for p in folder.rglob('*') if p.is_file())


@pytest.fixture
def student(compare_run, tmp_path):
  yield pathlib.Path(shutil.copytree(compare_run / 'tl', tmp_path / 'run'))
  # Reads that Orbax abandons end here, not after the last test of all.
  gc.collect()


@pytest.fixture
def beginning(student, cache_dir, tiny_models):
  """(the copied run, a fresh State of its kind)."""
  config = tiny.make_config('tl', cache_dir)
  mesh = sharding.make_mesh(1)
  made = run.set_up(config, student, decoding.load_dataset(config), mesh)
  nowhere = checkpoints.Checkpoints(student.parent / 'nothing')
  state, _ = loop._start(made, nowhere)
  nowhere.close()
  return student, state


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_weights_never_change_without_a_word(beginning):
  student, state = beginning
  learner = state.learners['student']
  weights = {
    'params': learner.params['weights'],
    'model_state': learner.model_state,
  }
  copied = sharding.replicated(sharding.make_mesh(1))
  abstract = checkpoints.abstract_like(weights, copied)
  saved = checkpoints.read_model(student, abstract)
  description = checkpoints.read_description(student)
  found = 0
  for path in files_of(student / 'checkpoints' / 'best'):
    content = path.read_bytes()
    for changed in flips(content, 4 if len(content) < 2000 else 24):
      path.write_bytes(changed)
      read = read_or_damaged(lambda: checkpoints.read_model(student, abstract))
      assert read is None or equal(read, saved), path
      said = read_or_damaged(lambda: checkpoints.read_description(student))
      assert said is None or said == description, path
      found += read is None
    path.write_bytes(content)
  assert found > 20


# Reads that Orbax abandons come back when nobody waits for them.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_run_never_goes_on_from_a_changed_state(beginning):
  student, state = beginning
  copied = sharding.replicated(sharding.make_mesh(1))
  abstract = checkpoints.abstract_like(state, copied)

  def restore():
    latest = checkpoints.Checkpoints(student)
    try:
      return latest.restore(abstract)
    finally:
      latest.close()

  saved, record = restore()
  root = student / 'checkpoints' / 'latest' / str(int(saved.step))
  found = 0
  for path in files_of(root):
    content = path.read_bytes()
    for changed in flips(content, 2 if len(content) < 2000 else 12):
      path.write_bytes(changed)
      read = read_or_damaged(restore)
      assert read is None or (equal(read[0], saved) and read[1] == record), path
      found += read is None
    path.write_bytes(content)
  assert found > 10


def test_a_misnamed_digest_is_no_earlier_version(beginning):
  student, state = beginning
  abstract = checkpoints.abstract_like(
    state, sharding.replicated(sharding.make_mesh(1))
  )
  places = sorted(student.glob('checkpoints/latest/*/record/metadata'))
  contents = [place.read_bytes() for place in places]
  latest = checkpoints.Checkpoints(student)
  for number in range(len('digests')):
    changed = bytearray(b'digests')
    changed[number] ^= 1
    for place, content in zip(places, contents, strict=True):
      assert content.count(b'"digests"') == 1
      place.write_bytes(content.replace(b'digests', bytes(changed)))
    with pytest.raises(ValueError, match='it is not what was saved'):
      latest.restore(abstract)
  latest.close()


@pytest.mark.parametrize('kind', ['best', 'latest'])
def test_arrays_are_compared_with_their_digest(kind, beginning, monkeypatch):
  """Whatever the checksums of the store say, which flips above may hit."""
  student, state = beginning
  copied = sharding.replicated(sharding.make_mesh(1))
  learner = state.learners['student']
  weights = {
    'params': learner.params['weights'],
    'model_state': learner.model_state,
  }

  def read():
    if kind == 'best':
      abstract = checkpoints.abstract_like(weights, copied)
      return checkpoints.read_model(student, abstract)
    latest = checkpoints.Checkpoints(student)
    try:
      return latest.restore(checkpoints.abstract_like(state, copied))
    finally:
      latest.close()

  read()
  monkeypatch.setattr(descriptions, 'digest', lambda arrays: 'another')
  with pytest.raises(ValueError, match='its arrays are not those that were'):
    read()


@pytest.mark.parametrize('name', ['config.json', 'summary.json'])
def test_records_never_change_without_a_word(student, name):
  path = student / name
  saved, content = runs.read_json(path), path.read_bytes()
  for changed in flips(content, 200):
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=f'{name} is damaged'):
      runs.read_json(path)
    with pytest.raises(ValueError, match='damaged'):
      workdir.read(student) if name == 'config.json' else runs.read_run(student)
  for length in range(0, len(content), max(len(content) // 50, 1)):
    path.write_bytes(content[:length])
    with pytest.raises(ValueError, match=f'{name} is damaged'):
      runs.read_json(path)
  path.write_bytes(content)
  digest = sealed.place_of(path)
  for changed in flips(digest.read_bytes(), 32):
    digest.write_bytes(changed)
    with pytest.raises(ValueError, match='delete the digest'):
      runs.read_json(path)
  digest.unlink()
  assert runs.read_json(path) == saved


def test_a_finished_run_says_so_of_its_summary(student, cache_dir, tiny_models):
  config = tiny.make_config('tl', cache_dir)
  path = student / 'summary.json'
  path.write_bytes(path.read_bytes().replace(b'0.', b'1.', 1))
  dataset = decoding.load_dataset(config)
  with pytest.raises(UserError, match='summary.json is damaged'):
    loop.fine_tune(config, student, dataset, sharding.make_mesh(1))


def test_the_course_of_training_never_changes_without_a_word(student):
  path = student / 'metrics.jsonl'
  content, rows = path.read_bytes(), read_rows(path)
  for changed in flips(content, 200):
    path.write_bytes(changed)
    with pytest.raises(ValueError, match='damaged'):
      read_rows(path)
  for length in range(0, len(content), max(len(content) // 50, 1)):
    path.write_bytes(content[:length])
    with pytest.raises(ValueError, match='damaged'):
      read_rows(path)
  path.write_bytes(content)
  assert read_rows(path) == rows


def test_rows_of_an_unfinished_run_have_checksums_of_their_own(tmp_path):
  writer = MetricWriter(tmp_path)
  for step in (1, 2, 3, 4):
    writer.write(step, 'train', {'loss': step / 7})
  writer.close()
  path = tmp_path / 'metrics.jsonl'
  content, rows = path.read_bytes(), read_rows(path)
  for changed in flips(content, len(content)):
    path.write_bytes(changed)
    # A last line without an end is what a kill leaves.
    cut = changed[-1:] != b'\n'
    read = read_or_damaged(lambda: read_rows(path))
    assert read is None or (cut and read == rows[:-1])
  path.write_bytes(content)
  path.write_text(json.dumps({'step': 1, 'loss': 0.5}) + '\n')
  assert read_rows(path) == [{'step': 1, 'loss': 0.5}]


@pytest.mark.parametrize('name', ['test', 'confusion'])
def test_predictions_never_change_without_a_word(name, student):
  path = student / 'predictions' / f'{name}.npz'
  saved, content = records.read_arrays(path), path.read_bytes()
  for changed in flips(content, 600):
    path.write_bytes(changed)
    read = read_or_damaged(lambda: records.read_arrays(path))
    assert read is None or equal(read, saved)
    if name == 'test':
      read_or_damaged(lambda: evaluate.load(path))
  for length in range(0, len(content), max(len(content) // 50, 1)):
    path.write_bytes(content[:length])
    with pytest.raises(ValueError, match=rf'{name}.npz is damaged'):
      records.read_arrays(path)


@pytest.mark.parametrize(
  'text', ['', '[' * 100_000, 'nul', '{"a": 1', '[1]', '\x00', '{"a": 1}}']
)
def test_a_record_that_is_no_object(text, tmp_path):
  path = tmp_path / 'summary.json'
  path.write_text(text)
  with pytest.raises(ValueError, match='summary.json is damaged'):
    runs.read_json(path)


def test_a_kill_between_a_record_and_its_digest(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'
  sealed.write_text(path, '{"a": 1}')

  def kill(_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(sealed, 'seal', kill)
    with pytest.raises(KeyboardInterrupt):
      sealed.write_text(path, '{"a": 2}')
  assert sealed.read_json(path) == {'a': 2}


def test_a_state_of_another_version_is_told_from_damage(tmp_path, monkeypatch):
  """Its optimizer keeps other numbers; no bit of it is wrong."""
  unraisable: list = []
  monkeypatch.setattr(sys, 'unraisablehook', unraisable.append)
  one = np.zeros(2, np.float32)

  def of(*kept):
    learner = Learner({'weights': {'w': one}}, {}, (one, *kept), {}, {})
    return State(np.zeros((), np.int32), {'student': learner})

  saved = checkpoints.Checkpoints(tmp_path)
  saved.save(of(), {})
  where = sharding.replicated(sharding.make_mesh(1))
  message = 'has not the arrays that this version keeps.*another --workdir'
  with pytest.raises(ValueError, match=message):
    saved.restore(checkpoints.abstract_like(of(one), where))
  other = of()
  other.learners['student'].params['weights']['w'] = np.zeros(3, np.float32)
  with pytest.raises(ValueError, match=message):
    saved.restore(checkpoints.abstract_like(other, where))
  state, _ = saved.restore(checkpoints.abstract_like(of(), where))
  assert equal(state, of())
  saved.close()
  # Nothing of the reads that were given up is heard of, now or later.
  gc.collect()
  assert not unraisable
