"""Pooled reliability and embeddings on a study's page, where there is any."""

import numpy as np
import pytest

from tests.study.rows import STUDY, paired
from tlkd_jax.answer import conclusions
from tlkd_jax.answer.rows import Place
from tlkd_jax.evaluation import evaluate, records
from tlkd_jax.evaluation import reliability as binned
from tlkd_jax.study import pages, pooled, respect_sections, results

GAINS = (0.03, 0.01)
DIGITS = Place('digits', 10)
CLASSES = ['paper', 'glass', '<b>']


def _stored(rng, count, sharp):
  labels = np.arange(count) % 3
  logits = sharp * (np.eye(3)[labels] + rng.normal(0, 0.7, (count, 3)))
  features = np.zeros((count, 2), np.float32)
  found = logits.astype(np.float32), features, labels, np.arange(count)
  return evaluate.Predictions(*found)


def _completed(root):
  rows = paired(GAINS)
  for seed, entry in enumerate(rows):
    del entry['answers']
    folder, rng = root / entry['folder'], np.random.default_rng(seed)
    sharp = 9.0 if entry['arm'] == 'kd' else 1.5
    for split in ('validation', 'test'):
      stored = _stored(rng, 90, sharp)
      evaluate.save(folder / 'predictions' / f'{split}.npz', stored)
  return results.completed(root, rows)


def _drawn(rows):
  return conclusions.draw(rows, 'kd', 'tl', ())


@pytest.mark.parametrize('arm', ['tl', 'kd'])
def test_bins_are_those_of_all_answers_at_once(tmp_path, arm):
  rows = _completed(tmp_path)
  found = pooled.diagrams(rows, _drawn(rows))
  assert [*found] == [(DIGITS, 'before'), (DIGITS, 'after')]
  own = [row for row in rows if row['arm'] == arm]
  stored = [
    evaluate.load(tmp_path / row['folder'] / 'predictions' / 'test.npz')
    for row in own
  ]
  labels = np.concatenate([one.labels for one in stored])
  for when, scales in (
    ('before', [1.0, 1.0]),
    ('after', [row['temperature'] for row in own]),
  ):
    logits = [
      one.logits.astype(float) / scale
      for one, scale in zip(stored, scales, strict=True)
    ]
    expected = binned.reliability_diagram(np.concatenate(logits), labels)
    for name, values in expected.items():
      np.testing.assert_allclose(
        found[DIGITS, when][arm][name], values, atol=1e-5, err_msg=name
      )
    assert expected['count'].sum() == 180


def test_the_page_has_them_and_no_trial_that_was_not_chosen(tmp_path):
  rows = _completed(tmp_path)
  pages.write(tmp_path, rows, STUDY)
  page = (tmp_path / 'index.html').read_text()
  assert 'digits, 10 per class, at their temperatures' in page
  assert 'reliability' in results._HIDDEN
  without = [
    {k: v for k, v in row.items() if k != 'reliability'} for row in rows
  ]
  (tmp_path / 'other').mkdir()
  pages.write(tmp_path / 'other', without, STUDY)
  page = (tmp_path / 'other' / 'index.html').read_text()
  assert 'Reliability' not in page and 'id="space"' not in page


def test_a_pair_of_which_one_has_no_bins_counts_on_no_side(tmp_path):
  rows = _completed(tmp_path)
  for row in rows:
    if (row['arm'], row['seed']) == ('kd', 1):
      del row['reliability']
  found = pooled.diagrams(rows, _drawn(rows))
  assert [bins['count'].sum() for bins in found[DIGITS, 'after'].values()] == [
    90,
    90,
  ]


def _embed(folder, count):
  rng = np.random.default_rng(count)
  places = rng.normal(size=(count, 2)).astype(np.float32)
  records.write_arrays(
    folder / 'evaluation' / 'embedding.npz',
    {
      'labels': np.arange(count) % 3,
      'indices': np.arange(count),
      'pca': places,
      'tsne': places,
    },
  )
  figures = {
    'count': count,
    'knn_accuracy': 0.25 + count / 100,
    'silhouette': 0.1,
    'explained_by_pca': [0.5, 0.25],
  }
  record = {'class_names': CLASSES, 'embedding': figures}
  records.write_json(folder / 'evaluation' / 'qualitative.json', record)


def test_embeddings_of_the_first_seed_that_has_both(tmp_path):
  rows = paired(GAINS)
  folders = {(row['arm'], row['seed']): row['folder'] for row in rows}
  _embed(tmp_path / folders['kd', 0], 6)
  assert pooled.embeddings(tmp_path, rows, _drawn(rows)) is None
  _embed(tmp_path / folders['kd', 1], 7)
  _embed(tmp_path / folders['tl', 1], 8)
  pages.write(tmp_path, rows, STUDY)
  text = (tmp_path / 'report.md').read_text()
  assert 'One cell of each arm: digits, 10 per class, seed 1.' in text
  assert text.index('| TL | 8 | 0.330 |') < text.index('| TL+KD | 7 | 0.320 |')
  page = (tmp_path / 'index.html').read_text()
  assert '&lt;b&gt;' in page and '<b>' not in page


def test_of_many_places_the_first_are_drawn(tmp_path, monkeypatch):
  rows = paired(GAINS) + paired(GAINS, size=20)
  for row in rows:
    bins = {'count': [4], 'right': [2], 'confidence': [3.0]}
    row['reliability'] = {'before': bins, 'after': bins}
    row['confusion'] = [[9, 1], [2, 8]]
  drawn = _drawn(rows)
  assert len(pooled.reliability(rows, drawn)[0].panels) == 4
  assert 'further' not in str(respect_sections.items(rows, drawn))
  monkeypatch.setattr(pooled, '_MOST_PLACES', 1)
  monkeypatch.setattr(respect_sections, '_MOST_MATRICES', 1)
  (figure,) = pooled.reliability(rows, drawn)
  assert len(figure.panels) == 2 and 'first 1 of 2 places' in figure.note
  # The numbers are all there.
  assert len(figure.data.rows) == 8
  *_, said = respect_sections.items(rows, drawn)
  assert 'first 1 of 2 places' in said.text
