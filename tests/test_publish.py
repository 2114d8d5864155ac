"""Pages of docs/study are made from rows, and results.md quotes only them."""

import json
import pathlib

import pytest

from benchmarks import label_worth, publish, run_all, tables
from tests.study.rows import paired
from tlkd_jax.answer import plan
from tlkd_jax.answer.rows import pack
from tlkd_jax.evaluation import records
from tlkd_jax.study import results

_DOCS = pathlib.Path(__file__).resolve().parent.parent / 'docs'
_MOST_LINES = 300
GAINS = (0.03, 0.01, 0.02, 0.04, 0.02, 0.03)


@pytest.mark.parametrize('name', publish.names())
def test_pages_are_what_the_command_makes(name):
  assert (_DOCS / 'study' / f'{name}.md').read_text() == publish.page(name)


def test_every_page_and_every_row_has_a_partner():
  made = {f'{name}.md' for name in publish.names()}
  assert made == {path.name for path in (_DOCS / 'study').glob('*.md')}


def table_lines(text: str) -> list[str]:
  return [line for line in text.splitlines() if line.startswith('| ')]


def test_results_fit_a_page_and_their_tables_stand_elsewhere():
  """No number is copied by hand but into the tables named here."""
  text = (_DOCS / 'results.md').read_text()
  assert len(text.splitlines()) <= _MOST_LINES
  bench = run_all.load(_DOCS / 'bench.json')
  known = [run_all.target_table(bench)]
  known += [tables.TABLES[name](e['rows']) for name, e in bench.items()]
  known += [path.read_text() for path in (_DOCS / 'study').glob('*.md')]
  lines = set(table_lines('\n'.join(known)))
  by_hand = []
  for part in text.split('\n## ')[1:]:
    title = part.partition('\n')[0]
    own = [line for line in table_lines(part) if line not in lines]
    by_hand += [title] if own else []
  assert by_hand == ['The confirmatory study', 'What labels are worth']


@pytest.mark.parametrize('seeds', label_worth.SEEDS)
def test_label_worth_holds_and_the_page_says_so(seeds):
  stored = publish.load('label_worth')
  rows = [row for row in stored['rows'] if row['seeds'] == seeds]
  cells = [str(seeds)]
  for noise in label_worth.NOISE:
    own = [row for row in rows if row['noise'] == noise]
    assert all(row['studies'] >= 2000 and row['held'] > 0.94 for row in own)
    cells.append(spread([row['held'] for row in own]))
    each = [share for row in own for share in row['held_by_size']]
    assert min(each) > 0.94
    cells.append(spread(each))
  before = [r['held'] for r in stored['percentile'] if r['seeds'] == seeds]
  assert max(before) < 0.94
  cells.append(spread(before))
  text = (_DOCS / 'results.md').read_text()
  assert f'| {" | ".join(cells)} |' in text


def spread(shares) -> str:
  return f'{100 * min(shares):.1f} to {100 * max(shares):.1f} %'


def test_worths_of_the_page():
  text = (_DOCS / 'results.md').read_text()
  pages = (_DOCS / 'study' / 'results.md').read_text()
  for line in table_lines(pages):
    cells = line.strip('| ').split(' | ')
    if len(cells) == 7 and cells[-1].endswith(')') and '% (' in cells[-1]:
      percent, _, bounds = cells[-1].partition(' (')
      assert f'| {cells[0]} | {percent} | {bounds.rstrip(")")} |' in text


def write_study(root: pathlib.Path) -> pathlib.Path:
  rows = paired(GAINS)
  for row in rows:
    row['hits'] = pack(row.pop('answers'))
  root.mkdir()
  (root / 'results.json').write_text(json.dumps(records.plain(rows)))
  stated = {
    'margin': 0.005,
    'max_seeds': 6,
    'metrics': ['nll'],
    'places': ['digits, 10 per class'],
    'words': [['treatment', 'kd'], ['reference', 'tl']],
    'after': 0,
  }
  (root / 'plan.json').write_text(json.dumps(stated))
  rerun = {
    'dataset': 'digits',
    'size': 10,
    'arm': 'tl',
    'seed': 0,
    'number': 0,
    'test': {'top1': 0.5},
    'made': {'cores': 1, 'commit': 'a', 'device': 'b', 'versions': {}},
  }
  reruns = [rerun, rerun | {'test': {'top1': 0.53}}]
  (root / 'noise.json').write_text(json.dumps(reruns))
  return root


def test_a_study_is_taken_in_whole(tmp_path, monkeypatch, capsys):
  study, out = write_study(tmp_path / 'study'), tmp_path / 'docs'
  before = {path: path.read_bytes() for path in study.iterdir()}
  options = ['--study', study, '--name', 'confirm', '--out', out]
  monkeypatch.setattr('sys.argv', ['publish', *map(str, options)])
  publish.main()
  # A study that still runs is read alone.
  assert before == {path: path.read_bytes() for path in study.iterdir()}
  text = (out / 'confirm.md').read_text()
  assert 'Yes, it helps: ' in text and '10,000 test images' in text
  assert 'It was stated before the first run.' in text
  assert 'differs by up to 3.00 points on 1 core' in text
  kept = publish.load('confirm', out)
  assert len(kept['rows']) == 18 and kept['plan']['max_seeds'] == 6
  # The page follows from the file that is committed.
  assert publish.page('confirm', out) == text


def test_what_was_taken_in_is_a_study_again(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(
    'sys.argv', ['publish', '--into', str(tmp_path), '--name', 'confirm']
  )
  publish.main()
  stored = publish.load('confirm')
  found = results.collect(tmp_path, 'nll')
  seeds = {}
  for row in stored['rows']:
    seeds.setdefault((row['dataset'], row['size'], row['seed']), []).append(row)
  # The seed that was begun when the rows were taken.
  whole = [row for rows in seeds.values() if len(rows) == 4 for row in rows]
  assert len(found) == len(whole)
  assert sorted(map(records.dumps, map(sorted_keys, found))) == sorted(
    map(records.dumps, map(sorted_keys, whole))
  )
  assert plan.read(tmp_path) == plan.from_json(stored['plan'])
  assert f'{len(whole)} of {len(stored["rows"])} cells' in (
    capsys.readouterr().out
  )


def sorted_keys(row):
  return dict(sorted(row.items()))


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    (['--study', 'nowhere', '--name', 'x'], 'nowhere has no results.json'),
    (['--study', 'nowhere'], '--study or --into and --name go together'),
    (['--into', 'x', '--study', 'y', '--name', 'confirm'], 'a new study'),
    (
      ['--into', 'nowhere', '--name', 'results'],
      "'results'; accepted: confirm",
    ),
    (['--study', 'nowhere', '--name', 'results'], 'is of other rows'),
    (['--study', 'nowhere', '--name', 'a/b'], 'accepted: a word'),
  ],
)
def test_mistakes_are_one_message(options, said, monkeypatch, capsys):
  monkeypatch.setattr('sys.argv', ['publish', *options])
  with pytest.raises(SystemExit):
    publish.main()
  assert said in capsys.readouterr().err
