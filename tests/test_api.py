"""The package from Python: the commands' numbers, results and messages."""

import ast
import csv
import inspect
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import tlkd_jax
from tests import tiny
from tlkd_jax import api, evaluating, inference, settings
from tlkd_jax.data import Dataset, load_splits
from tlkd_jax.evaluation import evaluate, predictions
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import Interrupted, UserError
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.training import judging

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = [str(k) for k in range(10)]

pytestmark = pytest.mark.usefixtures('tiny_models')


@pytest.fixture(autouse=True)
def nothing_prepared(monkeypatch):
  """The process of the tests stays as conftest has made it."""
  monkeypatch.setattr(api, '_prepare', lambda: None)


def overrides(arm: str, cache_dir, **changes) -> dict:
  """What tests/tiny.py changes of a smoke run, as keys with values."""
  made, plain = (
    flatten(settings.to_dict(one))
    for one in (
      tiny.make_config(arm, cache_dir, **changes),
      tlkd_jax.make_settings(arm, student='tiny', smoke=True),
    )
  )
  return {key: value for key, value in made.items() if plain[key] != value}


class TestSettings:
  def test_they_are_those_of_the_command(self, cache_dir):
    made = tlkd_jax.make_settings(
      'tl', overrides('tl', cache_dir), student='tiny', smoke=True
    )
    assert made == tiny.make_config('tl', cache_dir)

  def test_every_name_arrives(self):
    made = tlkd_jax.make_settings(
      dataset='folder:x', student='resnet18', teacher='resnet50', loss='dkd'
    )
    assert made == settings.make(
      'kd',
      dataset='folder:x',
      student='resnet18',
      teacher='resnet50',
      loss='dkd',
    )

  @pytest.mark.parametrize(
    ('names', 'message'),
    [
      ({'arm': 'lt'}, "arm is 'lt'; accepted: "),
      ({'student': 'resnet81'}, 'did you mean resnet18'),
      ({'loss': 'kdd'}, 'did you mean kd'),
      ({'overrides': {'num_step': 1}}, 'did you mean num_steps'),
      ({'overrides': {'optimizer.name': 'adamx'}}, 'accepted: sgd, adamw'),
    ],
  )
  def test_a_mistake_is_a_user_error(self, names, message):
    with pytest.raises(UserError, match=message):
      tlkd_jax.make_settings(**names)

  def test_of_a_study(self):
    made = tlkd_jax.make_study('grid', {'study.seeds': 3}, student='tiny')
    assert made.study is not None
    assert made.study.seeds == 3 and 'kd_T4_w1' in made.study.arms
    with pytest.raises(UserError, match='gird'):
      tlkd_jax.make_study('gird')


def test_a_comparison_is_the_commands(compare_run, cache_dir):
  """The same settings in the same workdir: the finished run is returned."""
  made = tlkd_jax.make_settings(
    'tl', overrides('tl', cache_dir), student='tiny', smoke=True
  )
  result = tlkd_jax.compare(made, compare_run)
  assert list(result.summaries) == ['teacher', 'tl', 'kd']
  assert result.workdirs == {arm: compare_run / arm for arm in result.summaries}
  shown = repr(result)
  for text in ('teacher', 'TL ', 'TL+KD', 'top-1', 'One seed each'):
    assert text in shown


def test_an_arm_runs_and_other_settings_are_refused(cache_dir, tmp_path):
  def make(**changes):
    return tlkd_jax.make_settings(
      'tl',
      overrides('tl', cache_dir, num_steps=2, **changes),
      student='tiny',
      smoke=True,
    )

  result = tlkd_jax.fine_tune(make(), str(tmp_path / 'run'))
  assert result.workdirs == {'tl': tmp_path / 'run'}
  assert 0 <= result.summaries['tl']['student']['test']['top1'] <= 1
  again = tlkd_jax.fine_tune(make(), tmp_path / 'run')
  assert again == result
  with pytest.raises(UserError, match='seed: 0 there, 1 now'):
    tlkd_jax.fine_tune(make(seed=1), tmp_path / 'run')
  with pytest.raises(UserError, match="arm is 'study'"):
    tlkd_jax.fine_tune(tlkd_jax.make_study(student='tiny'), tmp_path / 'x')
  with pytest.raises(UserError, match='is not of a study'):
    tlkd_jax.run_study(make(), tmp_path / 'y')


def test_an_interrupted_run_is_saved_and_goes_on(
  cache_dir, tmp_path, monkeypatch
):
  """As the stop button of a notebook does, which sends SIGINT."""
  changes = overrides('tl', cache_dir, num_steps=4)
  made = tlkd_jax.make_settings('tl', changes, student='tiny', smoke=True)
  collect = judging.collect

  def press(run, pending, number, *rest):
    if number == 2:
      os.kill(os.getpid(), signal.SIGINT)
    return collect(run, pending, number, *rest)

  monkeypatch.setattr(judging, 'collect', press)
  with pytest.raises(Interrupted, match='stopped at step 3 of 4, saved in'):
    tlkd_jax.fine_tune(made, tmp_path)
  result = tlkd_jax.fine_tune(made, tmp_path)
  assert result.summaries['tl']['best_step'] in (3, 4)


@pytest.fixture(scope='module')
def pictures(cache_dir, tmp_path_factory):
  """Test images of digits as files: what a run has seen, to the pixel."""
  folder = tmp_path_factory.mktemp('pictures')
  dataset = load_splits(
    'digits',
    image_size=16,
    num_validation_per_class=4,
    num_test_per_class=4,
    cache_dir=cache_dir,
  )
  images = dataset.splits['test'].images[:11]
  for number, image in enumerate(images):
    Image.fromarray(image).save(folder / f'{number:02d}.png')
  return sorted(folder.iterdir()), images


class TestLoad:
  def test_the_numbers_are_those_of_predict(
    self, pictures, compare_run, tmp_path
  ):
    files, images = pictures
    run = compare_run / 'kd'
    found = tlkd_jax.load(run)(files)
    saved = evaluate.load(run / 'predictions' / 'test.npz')
    expected = predictions.softmax(saved.logits[:11])
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    out = tmp_path / 'out.csv'
    inference.predict_images(
      str(run), str(files[0].parent), str(out), sharding.make_mesh()
    )
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row['file'] for row in rows] == found.names
    assert [row['class'] for row in rows] == found.labels
    told = [[float(row[name]) for name in NAMES] for row in rows]
    np.testing.assert_array_equal(told, found.probabilities.round(6))

  def test_all_kinds_of_images_are_one(self, pictures, compare_run):
    files, images = pictures
    predictor = tlkd_jax.load(str(compare_run / 'kd'))
    by_path = predictor(files).probabilities
    mixed = [str(files[0]), Image.open(files[1]), images[2], files[3]]
    found = predictor(mixed)
    assert found.names == [str(files[0]), 'image 1', 'image 2', str(files[3])]
    np.testing.assert_array_equal(found.probabilities, by_path[:4])
    for batch in (images, jax.numpy.asarray(images), tuple(images)):
      np.testing.assert_array_equal(predictor(batch).probabilities, by_path)
    for one in (files[5], str(files[5]), images[5], Image.open(files[5])):
      np.testing.assert_array_equal(predictor(one).probabilities, by_path[5:6])
    assert predictor([]).probabilities.shape == (0, 10)

  def test_an_image_of_any_size_and_mode_is_cut_as_the_file(
    self, compare_run, tmp_path
  ):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (40, 60), np.uint8), 'L')
    picture.save(tmp_path / 'grey.png')
    predictor = tlkd_jax.load(compare_run / 'teacher')
    colours = np.asarray(picture.convert('RGB'))
    by_file, by_image, by_array = (
      predictor(one).probabilities
      for one in (tmp_path / 'grey.png', picture, colours)
    )
    np.testing.assert_array_equal(by_file, by_image)
    np.testing.assert_array_equal(by_file, by_array)

  def test_they_are_readable(self, pictures, compare_run):
    files, images = pictures
    predictor = tlkd_jax.load(compare_run / 'kd')
    assert 'tiny, 10 classes, 16 px' in repr(predictor)
    lines = repr(predictor(files[:2])).splitlines()
    found = predictor(files[:2])
    assert lines[0].startswith(f'{files[0]}: {found.labels[0]} ')
    assert f'{found.probabilities[0].max():.3f}, ' in lines[0]
    assert len(lines) == 2 == len(found)
    many = repr(predictor(np.concatenate([images] * 3))).splitlines()
    assert len(many) == 21 and many[-1] == '... 13 more'
    assert found.labels == [
      found.class_names[k] for k in found.probabilities.argmax(-1)
    ]

  @pytest.mark.parametrize(
    ('image', 'message'),
    [
      ('nowhere.png', 'No such file.*nowhere.png'),
      (__file__, 'test_api.py: cannot identify image file'),
      (
        np.zeros((4, 4, 3)),
        r'image 1: ndarray of float64\[4, 4, 3\]',
      ),
      (np.zeros((4, 4), np.uint8), r'image 1: ndarray of uint8\[4, 4\]'),
      (np.zeros((2, 4, 4, 3), np.uint8), r'uint8\[2, 4, 4, 3\]; accepted: a'),
      (None, 'image 1: NoneType of object'),
    ],
  )
  def test_what_is_no_image(self, image, message, pictures, compare_run):
    predictor = tlkd_jax.load(compare_run / 'kd')
    with pytest.raises(UserError, match=message):
      predictor([pictures[0][0], image])

  def test_what_is_no_run(self, tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
      tlkd_jax.load(tmp_path)


def test_arrays_are_learned_from_and_known_again(cache_dir, tmp_path):
  """By settings, not by an object: any process reads them by their name."""
  digits = load_splits('digits', image_size=16, cache_dir=cache_dir)
  pairs = {
    name: (split.images[:200], split.labels[:200])
    for name, split in digits.splits.items()
  }
  mine = Dataset.from_arrays(**pairs, class_names=NAMES, cache_dir=cache_dir)

  def make(dataset):
    return tlkd_jax.make_settings(
      'tl',
      overrides('tl', cache_dir, num_steps=2, num_train_per_class=0),
      dataset=dataset,
      student='tiny',
      smoke=True,
    )

  assert make(mine).dataset == mine.name
  study = tlkd_jax.make_study(dataset=mine, student='tiny', smoke=True).study
  ((name, section),) = study.datasets.items()
  assert f'arrays:{name}' == mine.name == section.changes['dataset']
  result = tlkd_jax.fine_tune(make(mine), tmp_path / 'run')
  assert result.summaries['tl']['num_train'] == 200
  text = evaluating.evaluate_run(str(tmp_path / 'run'), sharding.make_mesh())
  assert 'test' in text
  pairs['train'] = (255 - pairs['train'][0], pairs['train'][1])
  other = Dataset.from_arrays(**pairs, class_names=NAMES, cache_dir=cache_dir)
  with pytest.raises(UserError, match=f"dataset: '{mine.name}' there"):
    tlkd_jax.fine_tune(make(other), tmp_path / 'run')


def test_a_study_runs_and_is_not_run_twice(cache_dir, tmp_path):
  changes = overrides('tl', cache_dir, num_steps=2)
  changes |= {
    'study.run_arms': ('tl', 'kd'),
    'study.sizes': (2,),
    'study.seeds': 2,
  }
  made = tlkd_jax.make_study(overrides=changes, student='tiny', smoke=True)
  result = tlkd_jax.run_study(made, tmp_path)
  assert len(result.rows) == 6 and result.page.exists()
  assert repr(result) == result.answer and 'TL+KD' in result.answer
  times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('cell.json')}
  again = tlkd_jax.run_study(made, tmp_path)
  assert again.rows == result.rows and len(times) == 6
  assert times == {p: p.stat().st_mtime_ns for p in tmp_path.rglob('cell.json')}


def blocks_in_docs() -> list[tuple[str, str]]:
  """(page, Python on it), the notebook's cells among them."""
  found = []
  for page in [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]:
    for block in re.findall(r'```python\n(.*?)```', page.read_text(), re.S):
      found.append((page.name, block))
  notebook = json.loads((ROOT / 'launch' / 'colab.ipynb').read_text())
  for cell in notebook['cells']:
    if cell['cell_type'] == 'code':
      found.append(('colab.ipynb', ''.join(cell['source'])))
  return found


def calls_in_docs() -> list[tuple[str, str]]:
  """(page, call) for each call of this package's functions there."""
  found = []
  for page, block in blocks_in_docs():
    for node in ast.walk(ast.parse(block)):
      if isinstance(node, ast.Call):
        text = ast.unparse(node)
        if text.startswith(('tlkd_jax.', 'Dataset.', 'export_run(')):
          found.append((page, text))
  return found


def test_calls_in_the_documentation_are_accepted():
  functions = {
    f'tlkd_jax.{name}': vars(tlkd_jax)[name] for name in tlkd_jax.__all__
  }
  functions['export_run'] = tlkd_jax.export_run
  functions['Dataset.from_arrays'] = Dataset.from_arrays
  calls = calls_in_docs()
  assert len(calls) > 10 and 'colab.ipynb' in dict(calls)
  for page, text in calls:
    node = ast.parse(text, mode='eval').body
    name = ast.unparse(node.func)
    assert name in functions, f'{page}: {text}'
    keywords = {keyword.arg: None for keyword in node.keywords}
    inspect.signature(functions[name]).bind(*node.args, **keywords)


def test_importing_it_is_cheap():
  code = (
    'import sys, tlkd_jax\n'
    'heavy = ("jax", "flax", "numpy", "PIL", "ml_collections", "tqdm")\n'
    'print([name for name in heavy if name in sys.modules])\n'
    'print(sorted(tlkd_jax.__all__) == tlkd_jax.__all__)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.stdout.split() == ['[]', 'True'], done.stderr


@pytest.mark.parametrize('told', [None, 'elsewhere'])
def test_the_first_call_prepares_the_process_once(told, tmp_path):
  """Compiled programs are kept where JAX was told, else in the cache folder."""
  code = (
    'import tlkd_jax\n'
    'from tlkd_jax import api\n'
    'from tlkd_jax.runtime import allocator\n'
    'from tlkd_jax.runtime.errors import UserError\n'
    'calls = []\n'
    'allocator.keep_freed_memory = lambda: calls.append(1)\n'
    'for _ in range(2):\n'
    '  try: tlkd_jax.load("nowhere")\n'
    '  except UserError: pass\n'
    'import jax\n'
    'print(len(calls), jax.config.values["jax_compilation_cache_dir"])\n'
  )
  env = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
  env |= {'XDG_CACHE_HOME': str(tmp_path)}
  env |= {'JAX_COMPILATION_CACHE_DIR': told} if told else {}
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
  )
  expected = told or f'{tmp_path}/tlkd_jax/compiled'
  assert done.stdout.split() == ['1', expected], done.stderr
