"""A finished run used without training; what a run leaves behind."""

import csv
import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.workdirs import arrays
from tlkd_jax import arms, inference
from tlkd_jax.data import load_splits
from tlkd_jax.evaluation import evaluate, predictions
from tlkd_jax.runtime import sharding
from tlkd_jax.training.metric_writers import read_rows

pytestmark = pytest.mark.usefixtures('tiny_models')


def read(path):
  return json.loads(path.read_text())


def test_a_run_leaves_what_the_design_says(compare_run):
  for arm, role in (
    ('teacher', 'teacher'),
    ('tl', 'student'),
    ('kd', 'student'),
  ):
    folder = compare_run / arm
    assert read(folder / 'config.json')['arm'] == arm
    summary = read(folder / 'summary.json')
    assert summary[role]['test']['count'] == 40
    assert np.sum(summary[role]['test']['confusion']) == 40
    assert summary['images_per_second'] > 0 and summary['seconds'] > 0
    steps = {
      (row['step'], row['split']) for row in read_rows(folder / 'metrics.jsonl')
    }
    assert {(2, 'train'), (6, 'train'), (3, 'validation')} <= steps
    assert list((folder / 'tensorboard').iterdir())
    for split in ('validation', 'test'):
      saved = evaluate.load(folder / 'predictions' / f'{split}.npz')
      assert saved.logits.shape == (40, 10) and saved.indices.shape == (40,)
      top1 = (saved.logits.argmax(-1) == saved.labels).mean()
      assert summary[role][split]['top1'] == pytest.approx(top1)
  agreement = read(compare_run / 'kd' / 'summary.json')['student']['test']
  files = ('test', 'teacher_test')
  ours, teachers = (
    evaluate.load(compare_run / 'kd' / 'predictions' / f'{name}.npz')
    for name in files
  )
  same = (ours.logits.argmax(-1) == teachers.logits.argmax(-1)).mean()
  assert agreement['teacher_agreement'] == pytest.approx(same)


def test_the_teacher_of_kd_is_the_one_that_was_fine_tuned(compare_run):
  alone = evaluate.load(compare_run / 'teacher' / 'predictions' / 'test.npz')
  inside = evaluate.load(
    compare_run / 'kd' / 'predictions' / 'teacher_test.npz'
  )
  np.testing.assert_allclose(alone.logits, inside.logits, rtol=1e-5, atol=1e-6)


def test_students_checkpoint_holds_no_teacher(compare_run):
  for kind in ('latest', 'best'):
    names = arrays(compare_run / 'kd', kind)
    assert not [n for n in names if 'teacher' in n]
    shapes = [a.shape for n, a in names.items() if 'blocks.1' in n]
    # The teacher's second stage is 16 wide, the student's 8.
    assert shapes and not [s for s in shapes if 16 in s]


def test_table_and_remarks(compare_run):
  summaries = {
    arm: read(compare_run / arm / 'summary.json')
    for arm in ('teacher', 'tl', 'kd')
  }
  text = arms.table(summaries)
  for label in ('teacher', 'TL ', 'TL+KD', 'validation', 'test', 'agreement'):
    assert label in text
  summaries['kd']['teacher']['test']['top1'] = 0.0
  summaries['tl']['student']['test']['top1'] = 0.5
  assert 'no better than TL on test (-0.500' in arms.table(summaries)
  summaries['kd']['teacher']['test']['top1'] = 0.9
  assert 'no better' not in arms.table(summaries)


@pytest.mark.parametrize('arm', ['teacher', 'kd'])
def test_evaluate_equals_the_runs_summary(arm, compare_run, tmp_path):
  role = 'teacher' if arm == 'teacher' else 'student'
  folder = tmp_path / 'run'
  shutil.copytree(compare_run / arm, folder)
  expected = read(folder / 'summary.json')[role]
  before = evaluate.load(folder / 'predictions' / 'test.npz')
  table = inference.evaluate_run(str(folder), sharding.make_mesh())
  assert f'{expected["test"]["nll"]:.3f}' in table
  found = read(folder / 'evaluation' / 'clean.json')
  for split in ('validation', 'test'):
    confusion = found[split].pop('confusion')
    assert confusion == expected[split]['confusion']
    for name in set(expected[split]) - {'confusion'}:
      value = expected[split][name]
      assert found[split][name] == pytest.approx(value, rel=1e-6), name
  after = evaluate.load(folder / 'predictions' / 'test.npz')
  np.testing.assert_array_equal(before.logits, after.logits)


@pytest.fixture(scope='module')
def pictures(cache_dir, tmp_path_factory):
  """Eleven test digits as the run saw them, and a file that is no image."""
  folder = tmp_path_factory.mktemp('pictures')
  options = {'image_size': 16, 'num_eval_per_class': 4, 'cache_dir': cache_dir}
  test = load_splits('digits', num_train_per_class=1, **options).splits['test']
  (folder / 'deep').mkdir()
  for i, image in enumerate(test.images[:11]):
    Image.fromarray(np.array(image)).save(folder / 'deep' / f'{i:02d}.png')
  (folder / 'broken.jpg').write_bytes(b'\xff\xd8 no image')
  (folder / 'notes.txt').write_text('not looked at')
  return folder


@pytest.mark.parametrize('kind', ['.csv', '.jsonl', 'stdout'])
def test_predict(kind, pictures, compare_run, tmp_path, capsys, caplog):
  run = compare_run / 'kd'
  output = None if kind == 'stdout' else str(tmp_path / f'out{kind}')
  mesh = sharding.make_mesh(2)
  inference.predict_images(str(run), str(pictures), output, mesh)
  if kind == '.jsonl':
    lines = (tmp_path / 'out.jsonl').read_text().splitlines()
    rows = [json.loads(line) for line in lines]
  else:
    text = (
      (tmp_path / 'out.csv').read_text() if output else capsys.readouterr().out
    )
    rows = list(csv.DictReader(io.StringIO(text)))
  names = [str(k) for k in range(10)]
  probabilities = np.array([[float(row[n]) for n in names] for row in rows])
  assert [row['file'] for row in rows] == sorted(
    str(p) for p in (pictures / 'deep').iterdir()
  )
  np.testing.assert_allclose(probabilities.sum(-1), 1.0, atol=1e-5)
  saved = evaluate.load(run / 'predictions' / 'test.npz')
  expected = predictions.softmax(saved.logits[:11])
  np.testing.assert_allclose(probabilities, expected, atol=2e-6)
  assert [row['class'] for row in rows] == [
    names[k] for k in expected.argmax(-1)
  ]
  assert 'broken.jpg' in caplog.text


def test_predict_one_file(pictures, compare_run, capsys):
  file = str(pictures / 'deep' / '03.png')
  inference.predict_images(
    str(compare_run / 'teacher'), file, None, sharding.make_mesh(1)
  )
  rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
  assert len(rows) == 1 and rows[0]['file'] == file


def test_start_from_a_run(compare_run, cache_dir, tmp_path):
  """student.checkpoint: without a step of training, the same predictions."""
  config = tiny.make_config(
    'tl',
    cache_dir,
    student__checkpoint=str(compare_run / 'kd'),
    num_steps=1,
    optimizer__learning_rate=0.0,
  )
  arms.run(config, tmp_path, sharding.make_mesh())
  a, b = (
    evaluate.load(folder / 'predictions' / 'test.npz')
    for folder in (compare_run / 'kd', tmp_path)
  )
  np.testing.assert_allclose(a.logits, b.logits, rtol=1e-5, atol=1e-6)


def test_a_workdir_by_another_path_is_the_same_run(
  compare_run, cache_dir, tmp_path
):
  link = tmp_path / 'link'
  link.symlink_to(compare_run)
  with tiny.registered():
    config = tiny.make_config('compare', cache_dir)
    summaries = arms.run(config, link, sharding.make_mesh())
  saved = json.loads((compare_run / 'kd' / 'summary.json').read_text())
  assert summaries['kd'] == saved


def test_predict_walks_as_training_does(tmp_path, caplog):
  """Links that loop, fifos and links to nothing end nothing."""
  png = b'\x89PNG\r\n\x1a\n'
  for name in ('a.png', 'deep/b.JPG', 'deep/c.avif', '@eaDir/a.png', 'd.txt'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(png)
  (tmp_path / 'folder.png').mkdir()
  (tmp_path / 'gone.png').symlink_to('nowhere.png')
  (tmp_path / 'deep' / 'up').symlink_to('..')
  os.mkfifo(tmp_path / 'pipe.png')
  found = inference._image_files(tmp_path)
  assert [str(path.relative_to(tmp_path)) for path in found] == [
    'a.png',
    'deep/b.JPG',
    'deep/c.avif',
    'gone.png',
  ]
