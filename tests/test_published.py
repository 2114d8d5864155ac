"""README and docs say what the committed rows of docs/study say.

Every cell of their tables is computed here from the rows, by statistics and
curves alone, and must stand in the page as a whole line.
"""

import functools
import json
import math
import pathlib

import numpy as np
import pytest

from benchmarks import compare_methods
from tlkd_jax.answer import conclusions
from tlkd_jax.evaluation import label_curves, statistics
from tlkd_jax.study import correlations

_ROOT = pathlib.Path(__file__).resolve().parent.parent
# Data set -> its name in the pages and its sizes, in their order.
_PLACES = {
  'digits': ('digits, 32 px', (5, 10, 20, 50)),
  'trashnet': ('TrashNet, 64 px', (10, 20, 50, 90)),
  'cifar10': ('CIFAR-10, 64 px', (10, 50)),
}
_TL, _SMOOTH, _KD = 'tl', 'tl_label_smoothing', 'kd'
_LABELS = {
  'teacher': 'teacher (Lite2)',
  'linear_probe': 'linear probe',
  _TL: 'TL',
  _SMOOTH: 'TL + label smoothing',
  'tl_self_distillation': 'TL + self-distillation',
  _KD: 'TL+KD',
  'teacher_high_res': 'teacher at 112 px',
  'kd_high_res_teacher': 'TL+KD, teacher at 112 px',
}
_GROUPS = {
  'clean': 'clean',
  'noise': 'noise',
  'blur': 'blur',
  'weather': 'weather',
  'digital': 'digital',
  'extra': "ImageNet-C's extra four",
  'camera': 'camera',
  'standard': "ImageNet-C's fifteen",
}


@functools.cache
def stored(name: str) -> list[dict]:
  found = json.loads((_ROOT / 'docs' / 'study' / f'{name}.json').read_text())
  return found['rows'] if isinstance(found, dict) else found


def page(name: str) -> str:
  return (_ROOT / name).read_text()


def shown(name: str) -> set[str]:
  return set(page(name).splitlines())


@functools.cache
def everywhere() -> set[str]:
  """Lines of docs/results.md, docs/earlier.md and the pages of docs/study."""
  pages = [*(_ROOT / 'docs' / 'study').glob('*.md')]
  pages += [_ROOT / 'docs' / f'{name}.md' for name in ('results', 'earlier')]
  return {line for one in pages for line in one.read_text().splitlines()}


def found(arm: str, dataset: str, size: int, name: str = 'results') -> dict:
  """Seed -> row that was chosen."""
  where = (arm, dataset, size)
  return {
    row['seed']: row
    for row in stored(name)
    if row['chosen'] and (row['arm'], row['dataset'], row['size']) == where
  }


def scores(arm, dataset, size, metric='top1', name='results') -> np.ndarray:
  """[seeds], in their order."""
  rows = found(arm, dataset, size, name)
  return np.array([rows[s]['test'][metric] for s in sorted(rows)])


def compare(arm: str, reference: str, datasets=tuple(_PLACES)) -> dict:
  """Each seed's mean over places, in which each data set weighs the same."""
  x, y = (
    np.mean(
      [
        np.mean([scores(one, d, size) for size in _PLACES[d][1]], axis=0)
        for d in datasets
      ],
      axis=0,
    )
    for one in (arm, reference)
  )
  assert len(x) == len(y) == 6
  return statistics.compare_paired(x, y)


def points(test: dict) -> str:
  low, high = 100 * test['ci_low'], 100 * test['ci_high']
  return f'{100 * test["mean_difference"]:+.2f} ({low:+.2f} to {high:+.2f})'


def shares(test: dict) -> str:
  low, high = test['ci_low'], test['ci_high']
  return f'{test["mean_difference"]:+.3f} ({low:+.3f} to {high:+.3f})'


def p_of(test: dict) -> str:
  return f'{test["p_sign_flip"]:.2g}'


def line(*cells) -> str:
  return f'| {" | ".join(map(str, cells))} |'


def labels_needed(dataset: str) -> str:
  sizes = _PLACES[dataset][1]
  images = [found(_TL, dataset, n)[0]['num_train'] for n in sizes]
  sides = [
    np.transpose([scores(arm, dataset, n) for n in sizes]) for arm in (_KD, _TL)
  ]
  worth = label_curves.efficiency(images, *sides)
  ends = worth.percent, worth.low, worth.high
  return '{:.0f} % ({:.0f} to {:.0f})'.format(*ends)


def readme_line(label: str, sizes: str, worth: str, *datasets: str) -> str:
  against, plain = (compare(_KD, r, datasets) for r in (_SMOOTH, _TL))
  cells = [points(against), p_of(against), points(plain), p_of(plain), worth]
  teacherless = compare(_SMOOTH, _TL, datasets)
  return line(label, sizes, *cells, points(teacherless))


def test_the_readme_table():
  lines = [
    readme_line(label, ', '.join(map(str, sizes)), labels_needed(d), d)
    for d, (label, sizes) in _PLACES.items()
  ]
  lines.append(readme_line('all', '', '', *_PLACES))
  for text in lines:
    assert text in shown('README.md')


@pytest.mark.parametrize('name', ['README.md', 'docs/results.md'])
def test_the_answer(name):
  text = ' '.join(page(name).split())
  for reference in (_SMOOTH, _TL):
    drawn = conclusions.draw(stored('results'), _KD, reference, ('top1',))
    decision = drawn.decision
    # Unless these hold, the pages need another sentence.
    assert decision.verdict == 'not yet known'
    assert drawn.sentence.startswith('Not yet known')
    test = compare(_KD, reference)
    mean, _, bounds = points(test).rstrip(')').partition(' (')
    assert f'{mean} points (' in text and bounds in text
    assert f'{100 * decision.low:+.2f} to {100 * decision.high:+.2f}' in text
  assert 'not yet known' in text.lower()
  assert 'not beyond label smoothing' not in text


def test_what_stands_beside_the_answer():
  """Seeds to go and correlations, in words of results.md and earlier.md."""
  text = ' '.join(page('docs/results.md').split())
  for reference in (_SMOOTH, _TL):
    # Without the answers to single images no number of seeds would do.
    drawn = conclusions.draw(stored('results'), _KD, reference, ())
    assert drawn.decision.more is None
  assert 'further seeds would tell' not in text
  found, places = correlations.with_gain(stored('results'), _KD, _TL)
  text = ' '.join(page('docs/earlier.md').split())
  assert places == 10
  for one in found:
    assert f'by {one.r:+.2f} (p = {one.p:.2g})' in text


@pytest.mark.parametrize('dataset', _PLACES)
def test_the_places(dataset):
  label, sizes = _PLACES[dataset]
  for size in sizes:
    arms = [scores(a, dataset, size) for a in ('teacher', _TL, _SMOOTH, _KD)]
    tests = [statistics.compare_paired(arms[3], arms[i]) for i in (2, 1)]
    cells = [f'{values.mean():.3f}' for values in arms]
    for test in tests:
      cells += [shares(test), p_of(test)]
    assert line(f'{label}, {size}', *cells) in everywhere()


def over_seeds(values: np.ndarray) -> str:
  return f'{values.mean():.3f} ± {values.std(ddof=1):.3f}'


@pytest.mark.parametrize('dataset', _PLACES)
def test_the_arms(dataset):
  arms = [arm for arm in _LABELS if found(arm, dataset, _PLACES[dataset][1][0])]
  assert len(arms) >= 4
  for size in _PLACES[dataset][1]:
    for arm in arms:
      names = ('top1', 'macro_f1', 'nll', 'ece')
      metrics = [scores(arm, dataset, size, name) for name in names]
      cells = [size, _LABELS[arm], 6, *map(over_seeds, metrics)]
      assert line(*cells) in everywhere()
      if arm == _TL or arm.startswith('teacher'):
        continue
      cells = [size, _LABELS[arm], 6]
      for metric in ('top1', 'nll'):
        test = statistics.compare_paired(
          scores(arm, dataset, size, metric), scores(_TL, dataset, size, metric)
        )
        cells.append(f'{test["mean_difference"]:+.3f}')
        cells.append(f'{test["ci_low"]:+.3f} to {test["ci_high"]:+.3f}')
        cells.append(p_of(test))
      assert line(*cells) in everywhere()


@pytest.mark.parametrize('group', _GROUPS)
def test_degraded_images(group):
  sides = []
  for arm in (_TL, _SMOOTH, _KD):
    rows = found(arm, 'trashnet', 20)
    assert {row['degraded']['count'] for row in rows.values()} == {200}
    sides.append(
      np.array([rows[s]['degraded']['top1'][group] for s in sorted(rows)])
    )
  test = statistics.compare_paired(sides[2], sides[0])
  cells = [f'{side.mean():.3f}' for side in sides]
  text = line(_GROUPS[group], *cells, shares(test), p_of(test))
  assert text in everywhere()


def test_the_grid():
  plain = scores(_TL, 'digits', 50, name='grid')
  gains = {}
  for row in stored('grid'):
    if 'distillation.temperature' in row['changes']:
      keys = (row['changes']['distillation.temperature'],)
      keys += (row['changes']['distillation.soft_weight'],)
      gain = scores(row['arm'], 'digits', 50, name='grid') - plain
      gains[keys] = gain.mean()
  temperatures = sorted({t for t, _ in gains})
  weights = sorted({w for _, w in gains})
  assert len(gains) == len(temperatures) * len(weights) == 16
  for t in temperatures:
    cells = [f'{gains[t, w]:+.3f}' for w in weights]
    assert line(f'{t:g}', *cells) in everywhere()
  # 'One of sixteen gains'.
  assert [keys for keys, gain in gains.items() if gain > 0] == [(1.0, 2.0)]


def test_the_methods():
  expected = compare_methods.table(stored('methods')).splitlines()
  assert len(expected) > 40
  for text in expected:
    assert not text or text in everywhere()


def test_what_smoothing_gave_after_60_and_after_100_steps():
  at_60, at_100 = (
    statistics.compare_paired(
      scores(arm, 'trashnet', 20, name=name),
      scores(_TL, 'trashnet', 20, name=name),
    )
    for arm, name in (('label_smoothing', 'methods'), (_SMOOTH, 'results'))
  )
  assert (at_60['pairs'], at_100['pairs']) == (3, 6)
  assert at_60['mean_difference'] < 0 < at_100['mean_difference']
  text = ' '.join(page('docs/earlier.md').split())
  for test in (at_60, at_100):
    assert not math.isnan(test['ci_low']) and points(test) in text


_ON_THE_REST = {
  'kd': 'TL+KD',
  'kd_rest': 'TL+KD, unlabelled',
  'self_training_rest': 'self-training',
  'tl_cost_matched': "TL at TL+KD's cost",
}


def rest_minus(
  arm: str, reference: str, size: int, metric: str = 'top1'
) -> str:
  test = statistics.compare_paired(
    scores(arm, 'trashnet', size, metric, 'rest'),
    scores(reference, 'trashnet', size, metric, 'rest'),
  )
  assert test['pairs'] == 6
  return points(test) if metric == 'top1' else shares(test)


def test_images_without_labels():
  """Its table line by line, and the contrasts in its words."""
  for arm, label in _ON_THE_REST.items():
    cells = [
      rest_minus(arm, _TL, size, metric)
      for metric in ('top1', 'nll')
      for size in (10, 50)
    ]
    assert line(label, *cells) in shown('docs/results.md')
  text = ' '.join(page('docs/results.md').split())
  for other in ('kd', 'self_training_rest', 'tl_cost_matched'):
    mean, _, bounds = rest_minus('kd_rest', other, 10).partition(' (')
    assert f'({bounds}' in text and mean.lstrip('+') in text
  readme = ' '.join(page('README.md').split())
  mean, _, bounds = rest_minus('kd_rest', _TL, 10).rstrip(')').partition(' (')
  assert f'{mean} points ({bounds}; six seeds) from TL' in readme
  gains = scores('kd_rest', 'trashnet', 10, name='rest') - scores(
    _TL, 'trashnet', 10, name='rest'
  )
  assert (gains > 0).all()
  for arm in ('kd_rest', 'teacher_high_res', _TL):
    assert f'{scores(arm, "trashnet", 10, name="rest").mean():.3f}' in text


def test_the_noise_floor():
  """A cell repeats itself; another number of cores is another order of sums."""
  path = _ROOT / 'docs' / 'study' / 'confirm.json'
  reruns = json.loads(path.read_text())['noise']
  text = ' '.join(page('docs/results.md').split())
  found: dict[int, list[float]] = {}
  for size in (10, 50):
    for cores in (1, 2):
      own = [
        run
        for run in reruns
        if (run['size'], run['made']['cores']) == (size, cores)
      ]
      assert len(own) == 3
      assert len({(r['hits']['right'], r['test']['nll']) for r in own}) == 1
      found.setdefault(size, []).append(own[0]['test']['top1'])
  few, more = found[10], found[50]
  assert f'has {few[0]:.3f} each time on one and {few[1]:.3f} on two' in text
  assert f'{more[0]:.3f} and {more[1]:.3f} at 50' in text
  assert f'moves it by {100 * abs(few[1] - few[0]):.1f} points' in text


def gains(arm, reference, metric, name, size) -> np.ndarray:
  """[seeds], those that both have."""
  sides = [found(one, 'trashnet', size, name) for one in (arm, reference)]
  seeds = sorted(sides[0].keys() & sides[1].keys())
  return np.array(
    [sides[0][s]['test'][metric] - sides[1][s]['test'][metric] for s in seeds]
  )


def published_claims(metric: str) -> list[np.ndarray]:
  """What each seed has of the first four claims, in their order."""
  few, more = (gains('kd_rest', 'kd', metric, 'rest', n) for n in (10, 50))
  long, short = (
    gains('kd', _TL, metric, name, 20) for name in ('patience', 'sham')
  )
  return [
    gains('kd_smoothed_teacher', 'kd', metric, 'teachers', 20),
    gains('kd_probed_teacher', 'kd', metric, 'teachers', 20),
    few - more,
    long - short[: len(long)],
  ]


def test_published_claims():
  """Each row's numbers, and whether the sign is the claimed one."""
  rows = [
    text.strip('| ').split(' | ')
    for text in page('docs/results.md').splitlines()
    if text.startswith('| ') and 'arXiv' in text
  ]
  assert [row[3] for row in rows] == ['6', '6', '6', '4']
  for metric, column, write in (('top1', 4, points), ('nll', 5, shares)):
    for row, values in zip(rows, published_claims(metric), strict=True):
      assert int(row[3]) == len(values)
      test = statistics.compare_paired(values, np.zeros(len(values)))
      assert row[column] == write(test)
  text = ' '.join(page('docs/results.md').split())
  smoothed, probed, own, neither, plain = (
    f'{scores(arm, "trashnet", 20, "nll", "teachers").mean():.3f}'
    for arm in ('kd_smoothed_teacher', 'kd_probed_teacher', _SMOOTH, 'kd', _TL)
  )
  assert f'NLL {smoothed}, {probed} and {own};' in text
  assert f'with neither {neither} and, TL, {plain}' in text
  pixels = {
    name: {row['image_size'] for row in stored(name) if row['arm'] == 'kd'}
    for name in ('teachers', 'rest', 'patience', 'sham')
  }
  assert pixels.pop('teachers') == {64} and '(64 px; labels of' in text
  assert set.union(*pixels.values()) == {96} and 'at 96 px [rest.md]' in text


def test_folds_beside_a_published_accuracy():
  text = ' '.join(page('docs/results.md').split())
  arms = _TL, 'teacher_high_res', 'kd'
  folds = [scores(arm, 'trashnet_whole', 0, name='folds') for arm in arms]
  plain, teacher, taught = map(over_seeds, folds)
  assert f'TL {plain}, its teacher at 368 px {teacher}, TL+KD {taught}:' in text
  sizes = {row['arm']: row['image_size'] for row in stored('folds')}
  assert (sizes['kd'], sizes['teacher_high_res']) == (96, 368)
  assert min(folds[0].min(), folds[2].min()) > 0.768
  for metric, write in (('top1', points), ('nll', shares)):
    kd, tl = (
      scores(arm, 'trashnet_whole', 0, metric, 'folds') for arm in ('kd', _TL)
    )
    # 1 / 5 + 1 / 4 of the variance, with four degrees of freedom.
    half = 2.7764451 * (kd - tl).std(ddof=1) * math.sqrt(0.45)
    mean = (kd - tl).mean()
    ends = {'ci_low': mean - half, 'ci_high': mean + half}
    written = write({'mean_difference': mean} | ends).rstrip(')')
    if metric == 'top1':
      written = written.replace(' (', ' points (')
    assert written in text
