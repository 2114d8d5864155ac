"""A finished run used without training; what a run leaves behind."""

import csv
import io
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tests import strict, tiny
from tests.workdirs import arrays
from tlkd_jax import arms, evaluating, inference
from tlkd_jax.answer import effects
from tlkd_jax.data import load_splits
from tlkd_jax.evaluation import evaluate, predictions, records
from tlkd_jax.report import closing, runs
from tlkd_jax.runtime import sealed, sharding
from tlkd_jax.runtime.command_line import find_config
from tlkd_jax.runtime.errors import UserError
from tlkd_jax.settings import recorded
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
    confusion = records.read_arrays(folder / 'predictions' / 'confusion.npz')
    assert all(counts.sum() == 40 for counts in confusion.values())
    both = {'validation', 'test'}
    teachers = {f'teacher_{name}' for name in both}
    assert confusion.keys() == both | (teachers if arm == 'kd' else set())
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
  folders = {arm: compare_run / arm for arm in summaries}
  text = closing.table(summaries, folders)
  for label in ('teacher', 'TL ', 'TL+KD', 'validation', 'test', 'agreement'):
    assert label in text
  summaries['kd']['teacher']['test']['top1'] = 0.0
  summaries['tl']['student']['test']['top1'] = 0.5
  text = closing.table(summaries, folders)
  assert 'no better than TL on test (-0.500' in text
  summaries['kd']['teacher']['test']['top1'] = 0.9
  text = closing.table(summaries, folders)
  assert 'no better' not in text and 'better than TL by 0.400 top-1' in text
  hits = []
  for arm in ('kd', 'tl'):
    found = evaluate.load(compare_run / arm / 'predictions' / 'test.npz')
    hits.append(found.logits.argmax(-1) == found.labels)
  won, lost = (hits[0] & ~hits[1]).sum(), (~hits[0] & hits[1]).sum()
  # The interval of the report page.
  low, high = effects.interval_over_images(hits[0].astype(float) - hits[1])
  counts = f'; {won} test images won, {lost} lost, 95 % over images'
  assert f'{counts} {low:+.3f} to {high:+.3f}, McNemar' in text


@pytest.mark.parametrize('arm', ['teacher', 'kd'])
def test_evaluate_equals_the_runs_summary(arm, compare_run, tmp_path):
  role = 'teacher' if arm == 'teacher' else 'student'
  folder = tmp_path / 'run'
  shutil.copytree(compare_run / arm, folder)
  expected = read(folder / 'summary.json')[role]
  confusion = folder / 'predictions' / 'confusion.npz'
  counted = records.read_arrays(confusion)
  confusion.unlink()
  before = evaluate.load(folder / 'predictions' / 'test.npz')
  table = evaluating.evaluate_run(str(folder), sharding.make_mesh())
  assert f'{expected["test"]["nll"]:.3f}' in table
  found = read(folder / 'evaluation' / 'clean.json')
  for split in ('validation', 'test'):
    for name in expected[split]:
      value = expected[split][name]
      assert found[split][name] == pytest.approx(value, rel=1e-6), name
  after = evaluate.load(folder / 'predictions' / 'test.npz')
  np.testing.assert_array_equal(before.logits, after.logits)
  again = records.read_arrays(confusion)
  assert again.keys() == counted.keys()
  for name, counts in counted.items():
    np.testing.assert_array_equal(again[name], counts)


@pytest.fixture(scope='module')
def pictures(cache_dir, tmp_path_factory):
  """Eleven test digits as the run saw them, and a file that is no image."""
  folder = tmp_path_factory.mktemp('pictures')
  options = {
    'image_size': 16,
    'num_validation_per_class': 4,
    'num_test_per_class': 4,
    'cache_dir': cache_dir,
  }
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
  assert 'broken.jpg: ' in caplog.text
  assert '1 of 12 images could not be read' in caplog.text


ODD_IMAGES = {
  'gone.png': (None, 'a link to nothing'),
  'empty.png': (b'', r'cannot identify image file \(0 bytes'),
  'text.jpg': (b'no image at all', r'cannot identify image file \(15 bytes'),
  'half.png': (-40, 'truncated|broken'),
  'a\nb.webp': (b'RIFF\x00\x00\x00\x00WEBP', 'cannot identify'),
}


def odd_images(folder, pictures, names):
  """Files that are no images, or not whole; 'd.png' is a folder."""
  folder.mkdir()
  (folder / 'd.png').mkdir()
  (folder / 'loop.png').symlink_to('loop.png')
  whole = (pictures / 'deep' / '00.png').read_bytes()
  for name in names:
    content, _ = ODD_IMAGES[name]
    if content is None:
      (folder / name).symlink_to('nowhere.png')
    elif isinstance(content, int):
      (folder / name).write_bytes(whole[:content])
    else:
      (folder / name).write_bytes(content)
  return folder


def call_predict(run, source, output):
  inference.predict_images(
    str(run), str(source), str(output), sharding.make_mesh(1)
  )


def test_predict_names_and_counts_what_it_cannot_read(
  pictures, compare_run, tmp_path, caplog
):
  folder = odd_images(tmp_path / 'in', pictures, ODD_IMAGES)
  shutil.copy(pictures / 'deep' / '00.png', folder / 'z.png')
  call_predict(compare_run / 'kd', folder, tmp_path / 'out.csv')
  (row,) = strict.parse_csv((tmp_path / 'out.csv').read_text())
  assert row['file'] == str(folder / 'z.png')
  for name in ODD_IMAGES:
    assert f'in/{name}: '.replace('\n', '\\x0a') in caplog.text
  assert f'{len(ODD_IMAGES) + 1} of 7 images could not be read' in caplog.text


@pytest.mark.parametrize('names', [[n] for n in ODD_IMAGES] + [[*ODD_IMAGES]])
def test_predict_without_one_image_is_a_message_and_no_file(
  names, pictures, compare_run, tmp_path
):
  folder = odd_images(tmp_path / 'in', pictures, names)
  output = tmp_path / 'out.jsonl'
  with pytest.raises(UserError, match='no image could be read') as error:
    call_predict(compare_run / 'kd', folder, output)
  for name in names:
    visible = re.escape(name.replace('\n', '\\x0a'))
    assert re.search(f'{visible}: .*({ODD_IMAGES[name][1]})', str(error.value))
  assert not output.exists() and not list(tmp_path.glob('*.tmp'))


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda p: None, 'no such file or folder'),
    (lambda p: p.symlink_to('nowhere'), 'neither a file nor a folder'),
    (os.mkfifo, 'neither a file nor a folder'),
    (lambda p: p.mkdir(), 'holds no image'),
    (lambda p: p.write_bytes(b'x'), 'no image could be read'),
  ],
)
def test_predict_says_what_is_wrong_with_its_input(
  make, message, compare_run, tmp_path
):
  make(tmp_path / 'in.png')
  with pytest.raises(UserError, match=message):
    call_predict(compare_run / 'kd', tmp_path / 'in.png', tmp_path / 'o.csv')
  assert not (tmp_path / 'o.csv').exists()


def test_predict_writes_names_that_are_no_utf8(pictures, compare_run, tmp_path):
  name = os.fsdecode(os.fsencode(tmp_path) + b'/caf\xe9.png')
  try:
    shutil.copy(pictures / 'deep' / '00.png', name)
  except OSError:
    pytest.skip('this file system takes UTF-8 only')
  for output in (tmp_path / 'out.csv', tmp_path / 'out.jsonl'):
    call_predict(compare_run / 'kd', name, output)
    text = output.read_text(encoding='utf-8')
    parse = strict.parse_csv if output.suffix == '.csv' else strict.parse_json
    found = parse(text)
    row = found[0] if isinstance(found, list) else found
    assert row['file'].endswith('/caf\\xe9.png')


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


@pytest.fixture
def moved(compare_run, tmp_path):
  """A compare run as it is after `mv a b`: nothing says where it was."""
  shutil.copytree(compare_run, tmp_path / 'a')
  for path in tmp_path.glob('a/**/config.json'):
    text = path.read_text().replace(str(compare_run), str(tmp_path / 'a'))
    sealed.write_text(path, text)
  (tmp_path / 'a').rename(tmp_path / 'b')
  assert str(tmp_path / 'a') in (tmp_path / 'b/kd/config.json').read_text()
  return tmp_path / 'b'


def test_a_moved_run_goes_on(moved, compare_run, cache_dir):
  """Finished parts are known, and the last is finished once more."""
  saved = read(moved / 'kd' / 'summary.json')
  (moved / 'kd' / 'summary.json').unlink()
  config = tiny.make_config('compare', cache_dir)
  summaries = arms.run(config, moved, sharding.make_mesh())
  for name in ('seconds', 'images_per_second'):
    del saved[name], summaries['kd'][name]
  assert summaries['kd'] == saved


def test_a_moved_run_is_used_as_any_other(moved, pictures, tmp_path):
  subject = evaluating._subject(
    moved / 'kd', sharding.make_mesh(1), {}, None, None
  )
  assert subject.teacher == moved / 'teacher'
  found = runs.read_run(moved / 'kd')
  assert found.config['teacher.checkpoint'] == str(moved / 'teacher')
  given = find_config(str(moved / 'kd'))
  file, _, arg = given.partition(':')
  assert file.endswith('recorded.py')
  config = recorded.get_config(arg)
  assert config.teacher.checkpoint == str(moved / 'teacher')
  call_predict(moved / 'kd', pictures / 'deep' / '00.png', tmp_path / 'o.csv')
  assert (tmp_path / 'o.csv').exists()


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
  _, found = inference._image_files(tmp_path)
  assert [os.path.relpath(file.origin, tmp_path) for file in found] == [
    'a.png',
    'deep/b.JPG',
    'deep/c.avif',
    'gone.png',
  ]
