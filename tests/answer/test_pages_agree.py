"""The report's page and the study's, of the same runs, say the same."""

import json
import types

import pytest

from tests.report import synthetic
from tests.study.rows import row
from tlkd_jax.answer.plan import FILE, Plan, as_json
from tlkd_jax.evaluation import evaluate, metrics, records
from tlkd_jax.report import page, pairing, plots
from tlkd_jax.study import pages, results

STUDY = types.SimpleNamespace(
  reference='tl', treatment='kd', metrics=pairing.METRIC_NAMES, arms={}
)
# Of 60 images: two of them must not change the verdict.
SIX = (0.15, 0.1667, 0.15, 0.1667, 0.15, 0.1667)
SMOOTHED = {'tl, label_smoothing=0.1': {'label_smoothing': 0.1}}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
  """Words and tables are compared here; drawing takes most of a page's time."""
  monkeypatch.setattr(plots, '_draw', lambda *_, **__: '<svg></svg>')


def write_cells(root, gains, rivals=None):
  """A study's folder: size -> gain of TL+KD over TL for each seed."""
  for size, of_seeds in gains.items():
    for seed, gain in enumerate(of_seeds):
      arms = {'tl': (0.5, {}), 'kd': (0.5 + gain, {})}
      arms |= {name: (0.6, new) for name, new in (rivals or {}).items()}
      for arm, (accuracy, changes) in arms.items():
        write_cell(root, size, seed, arm, accuracy, changes)
  return root


def write_cell(root, size, seed, arm, accuracy, changes):
  folder = root / 'cells' / 'digits' / f'{size}' / arm / f'seed{seed}'
  synthetic.write_run(
    folder,
    'kd' if arm == 'kd' else 'tl',
    seed=seed,
    accuracy=accuracy + 0.1 * (size > 10),
    per_class=size,
    # As an arm of a study: what is not smoothed says so.
    **{'label_smoothing': 0.0} | changes,
  )
  stored = evaluate.load(folder / 'predictions' / 'test.npz')
  measured = metrics.compute_metrics(stored.logits, stored.labels)
  record = row(
    arm,
    seed,
    measured['top1'],
    size=size,
    num_train=3 * size,
    test=measured,
    teachers=[],
    label={'tl': 'TL', 'kd': 'TL+KD'}.get(arm, arm.replace('tl', 'TL')),
  )
  records.write_json(folder / 'cell.json', record)


def both(root, tmp_path):
  """(sections of the report, sections of the study, the answer on each)."""
  page.write([root], tmp_path / 'report', replicates=20)
  report = json.loads((tmp_path / 'report' / 'report.json').read_text())
  said = pages.write(root, results.collect(root, 'top1'), STUDY)
  study = json.loads((root / 'report.json').read_text())
  return report['sections'], study, (report['answer'], said)


def table(sections, start):
  (found,) = [
    table
    for section in sections
    for table in section['tables']
    if table['title'].startswith(start)
  ]
  columns = found['columns']
  return [dict(zip(columns, cells, strict=True)) for cells in found['rows']]


@pytest.mark.parametrize(
  ('gains', 'rivals', 'start'),
  [
    ({10: SIX, 20: SIX}, None, 'Yes, it helps: '),
    (
      {10: SIX[:4], 20: SIX[:4], 50: (0.1, -0.1, 0.1, -0.1)},
      None,
      'Not yet known: ',
    ),
    ({10: [-gain for gain in SIX]}, SMOOTHED, 'No, it hurts: '),
    ({10: SIX, 20: SIX[:3]}, SMOOTHED, 'Yes, it helps: '),
    ({10: SIX[:1]}, None, 'Not yet known: one seed. This TL+KD model'),
  ],
  ids=['two places', 'three', 'one', 'unfinished', 'one seed'],
)
def test_both_pages_say_the_same(gains, rivals, start, tmp_path):
  root = write_cells(tmp_path / 'study', gains, rivals)
  report, study, answers = both(root, tmp_path)
  assert answers[0] == answers[1] and answers[0].startswith(start)
  remarks = study[0]['texts'][1:]
  assert report[0]['texts'][1 : 1 + len(remarks)] == remarks
  without = [text for text in remarks if 'Without a teacher: TL, la' in text]
  assert len(without) == (rivals is not None)
  theirs = table(report, 'Paired by seed: TL+KD minus TL')
  ours = table(study, 'TL+KD minus TL, test accuracy')
  assert [r for r in theirs if r['metric'] == 'top1'] == ours
  names = [r['place'] for r in ours]
  assert names == [f'digits, {size} per class' for size in gains]
  others = table(study, 'TL+KD minus TL in other metrics')
  for rest in ([r for r in theirs if r['metric'] != 'top1'], others):
    for r in rest:
      # Intervals over images are of accuracy alone.
      r.pop('95 % over images', None), r.pop('p (McNemar)', None)
      r.pop('95 % over seeds and images', None)
  assert [r for r in theirs if r['metric'] != 'top1'] == others


@pytest.mark.parametrize(
  ('stated', 'gains', 'start'),
  [
    # What is equal within half of all images is not apart from 0.
    ({'margin': 0.4}, (0.1, -0.1, 0.1, -0.1, 0.1, -0.1), 'Equal within the'),
    ({'margin': 0.01}, (0.1, -0.1, 0.1, -0.1, 0.1, -0.1), 'Not yet known: '),
    # A place that was stated and is not there yet.
    ({'places': ('digits, 50 per class',)}, SIX, 'There is no answer yet'),
    ({'max_seeds': 5}, SIX, 'Yes, it helps: '),
  ],
)
def test_both_pages_judge_by_what_the_study_stated(
  stated, gains, start, tmp_path
):
  root = write_cells(tmp_path / 'study', {10: gains})
  plan = Plan(words=(('step', 'the last'),), after=0, **stated)
  records.write_json(root / FILE, as_json(plan))
  report, study, answers = both(root, tmp_path)
  assert answers[0] == answers[1] and answers[0].startswith(start)
  looks = 'TL+KD minus TL over all places, look by look'
  if 'places' not in stated:
    assert table(report, looks) == table(study, looks) != []
  for sections in (report, study):
    texts = ' '.join(sections[0]['texts'])
    assert 'It was stated before the first run' in texts
    assert 'Stated with it: step: the last.' in texts


def test_both_pages_leave_out_what_saw_other_images(tmp_path):
  root = write_cells(tmp_path / 'study', {10: SIX})
  folder = root / 'cells' / 'digits' / '10' / 'kd' / 'seed4'
  path = folder / 'predictions' / 'test.npz'
  stored = records.read_arrays(path)
  records.write_arrays(path, stored | {'indices': stored['indices'] + 1})
  report, study, answers = both(root, tmp_path)
  assert answers[0] == answers[1] and '5 paired seeds' in answers[0]
  for sections in (report, study):
    assert any(
      'TL+KD and TL of seed 4 on digits, 10 per class have no' in text
      for text in sections[0]['texts']
    )
