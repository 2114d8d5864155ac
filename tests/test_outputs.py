"""All that a run writes, of classes with names that break plain writers."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tests import strict, tiny
from tlkd_jax import arms, evaluating, export, inference
from tlkd_jax.evaluation import evaluate, records
from tlkd_jax.report import page
from tlkd_jax.runtime import sharding
from tlkd_jax.training import checkpoints

pytestmark = pytest.mark.usefixtures('tiny_models')

# Those that folders may have as they are.
NAMES = sorted(
  name
  for name in strict.NAMES
  if name.strip() and not re.search(r'[\x00-\x1f/]', name)
)


@pytest.fixture(scope='module')
def finished(cache_dir, tmp_path_factory):
  """(workdir, images) of a run of two steps, evaluated."""
  root = tmp_path_factory.mktemp('hostile')
  rng = np.random.default_rng(0)
  for split, count in (('train', 2), ('validation', 1), ('test', 1)):
    for name in NAMES:
      folder = root / 'images' / split / name
      folder.mkdir(parents=True)
      for number in range(count):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'={number}.png')
  with tiny.registered():
    config = tiny.make_config(
      'tl',
      cache_dir,
      dataset=f'folder:{root}/images',
      num_train_per_class=0,
      num_steps=2,
      eval_every_steps=1,
    )
    arms.run(config, root / 'run', sharding.make_mesh(1))
    evaluating.evaluate_run(str(root / 'run'), sharding.make_mesh(1))
  return root / 'run', root / 'images' / 'test'


def test_json_is_json(finished):
  run, _ = finished
  found = [
    *run.rglob('*.json'),
    *run.glob('checkpoints/best/*/record/metadata'),
  ]
  assert {'config.json', 'summary.json', 'clean.json', 'metadata'} <= {
    path.name for path in found
  }
  for path in found:
    strict.parse_json(path.read_text())
  for line in (run / 'metrics.jsonl').read_text().splitlines():
    strict.parse_json(line)
  clean = json.loads((run / 'evaluation' / 'clean.json').read_text())
  assert clean['test']['per_class']['class'] == NAMES
  counts = records.read_arrays(run / 'predictions' / 'confusion.npz')['test']
  assert counts.shape == (len(NAMES),) * 2


@pytest.mark.parametrize('suffix', ['.csv', '.jsonl'])
def test_predictions_name_their_classes(suffix, finished, tmp_path):
  run, images = finished
  output = tmp_path / f'out{suffix}'
  mesh = sharding.make_mesh(1)
  inference.predict_images(str(run), str(images), str(output), mesh)
  text = output.read_text(encoding='utf-8')
  if suffix == '.csv':
    rows = [
      {k.removeprefix("'"): v.removeprefix("'") for k, v in row.items()}
      for row in strict.parse_csv(text)
    ]
  else:
    rows = [strict.parse_json(line) for line in text.splitlines()]
  saved = evaluate.load(run / 'predictions' / 'test.npz')
  assert len(rows) == len(NAMES)
  said = {row['file']: row['class'] for row in rows}
  for name, logits in zip(NAMES, saved.logits, strict=True):
    assert said[f'{images}/{name}/=0.png'] == NAMES[int(logits.argmax())]


def test_an_exported_student_and_a_report_know_the_names(finished, tmp_path):
  run, _ = finished
  out = tmp_path / 'a.safetensors'
  export.export_run(run, 'safetensors', out)
  described = strict.parse_json((tmp_path / 'a.safetensors.json').read_text())
  assert described['label_names'] == NAMES
  assert list(checkpoints.read_description(run).class_names) == NAMES
  page.write([run], tmp_path / 'report')
  strict.parse_html((tmp_path / 'report' / 'index.html').read_text('utf-8'))
  strict.parse_json((tmp_path / 'report' / 'report.json').read_text())
