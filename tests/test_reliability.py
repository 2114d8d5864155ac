"""Injections of failures: the short form, see tests/reliability."""

import argparse
import datetime
import json
import subprocess
import sys

import numpy as np
import pytest

from tests.reliability import __main__ as command
from tests.reliability import every, fuzz, outcomes, runs, soak
from tests.reliability.outcomes import Outcome
from tests.reliability.runs import Place

pytestmark = [
  pytest.mark.usefixtures('tiny_models'),
  # Reads that Orbax abandons come back when nobody waits for them.
  pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
]


def injected(names, place) -> list[Outcome]:
  found = []
  for name in names:
    some = every.KINDS[name](place)
    assert len(some) > 0, name
    found += some
  return found


@pytest.mark.parametrize(
  'names',
  [
    ('storage', 'concurrency'),
    # Kills of every kind of run and command; test_resume has those of a run.
    pytest.param(('kills',), marks=pytest.mark.slow),
    ('nonfinite',),
    ('fuzz',),
    ('injection',),
    ('backbones', 'folders'),
  ],
  ids=str,
)
def test_nothing_is_lost_nothing_silently_wrong(
  names, tmp_path, cache_dir, session_dir
):
  place = Place(tmp_path, False, 0, cache_dir, session_dir / 'compiled')
  found = injected(names, place)
  assert not outcomes.bad(found), '\n'.join(outcomes.bad(found))


@pytest.mark.slow
def test_the_long_form():
  done = subprocess.run(
    [sys.executable, '-m', 'tests.reliability', '--long'],
    cwd=runs.ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr[-20_000:]


@pytest.mark.parametrize(
  ('code', 'error', 'differs', 'result'),
  [
    (0, '', [], 'survived'),
    (0, 'a warning', ['best'], 'wrong'),
    (2, 'error: no such file', [], 'refused'),
    (1, 'something', [], 'traceback'),
    (1, 'error: x\nTraceback (most recent call last):', [], 'traceback'),
    (0, 'Traceback (most recent call last):', [], 'traceback'),
    (-7, '', [], 'traceback'),
    (135, 'error: bus error', [], 'traceback'),
    (None, '', [], 'hang'),
  ],
)
def test_what_a_command_came_to(code, error, differs, result):
  assert outcomes.of_process(code, error, differs) == result


@pytest.mark.parametrize(
  ('error', 'same', 'result'),
  [
    (None, True, 'survived'),
    (None, False, 'wrong'),
    (ValueError('a.json is damaged'), False, 'refused'),
    (ValueError('not so'), False, 'traceback'),
    (KeyError('damaged'), False, 'traceback'),
  ],
)
def test_what_a_reading_came_to(error, same, result):
  assert outcomes.of_reading(error, 'damaged', same) == result


def test_a_part_that_raises_is_an_outcome_and_the_others_go_on(capsys):
  def breaks(_):
    raise KeyError('x')

  def holds(_):
    return [Outcome('a', 'survived')]

  found = runs.together(Place(*[None] * 5), [breaks, holds])
  assert [one.result for one in found] == ['traceback', 'survived']
  assert 'KeyError' in found[0].what and 'breaks' in found[0].kind
  lines = capsys.readouterr().err.splitlines()
  assert lines[0].endswith('breaks: 1 injected, 1 bad')
  assert lines[1].endswith('holds: 1 injected, 0 bad')


def test_the_table():
  found = [
    Outcome('a', 'survived'),
    Outcome('a', 'lost', 'x'),
    Outcome('b', 'hang'),
  ]
  lines = outcomes.table(found).splitlines()
  assert lines[2] == '| a | 2 | 1 | 0 | 1 | 0 | 0 | 0 |'
  assert lines[-1] == '| all | 3 | 1 | 0 | 1 | 0 | 0 | 1 |'
  assert outcomes.bad(found) == ['a: lost: x', 'b: hang: ']


def test_the_page_says_where_when_and_how_long():
  given = argparse.Namespace(long=True, seed=3, kinds=['soak'], jobs=2)
  found = [Outcome('soak', 'survived', 'threads: flat'), Outcome('a', 'hang')]
  start = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
  text = command._page(found, {'soak': 61.2}, given, start, 125.0, (1.5, 0, 0))
  lines = text.splitlines()
  assert lines[0] == (
    '`python -m tests.reliability --long --seed 3 --kinds soak`, '
    '2026-01-02 03:04 UTC, 2.1 minutes,'
  )
  assert 'cores of' in lines[1] and 'load 1.5 before' in lines[2]
  assert '| soak | 1 | 1 | 0 | 0 | 0 | 0 | 0 |' in lines
  assert '- soak: threads: flat' in lines and '| soak | 61 |' in lines
  assert lines[-1] == '    a: hang: '


def test_a_kind_that_ends_without_a_word_is_an_outcome(tmp_path):
  ended = argparse.Namespace(returncode=-9)
  (one,) = command._found('kills', ended, tmp_path)
  assert one == Outcome('kills', 'traceback', 'ended with -9')
  (tmp_path / 'kills').write_text('[{"kind": "a", "result": "hang"}]')
  assert command._found('kills', ended, tmp_path) == [Outcome('a', 'hang')]


@pytest.mark.parametrize(
  ('an_hour', 'result'), [(0.0, 'survived'), (400.0, 'wrong')]
)
def test_a_slope_is_seen_through_noise(an_hour, result):
  seconds = np.arange(600.0)
  draw = np.random.default_rng(0)
  memory = 500 + an_hour * seconds / 3600 + draw.normal(size=600)
  flat = np.full(600, 20.0)
  found = soak.judged(np.stack([seconds, memory, flat, flat, seconds], 1))
  assert [one.result for one in found] == [
    'survived',
    result,
    *['survived'] * 2,
  ]
  slope, low, high = soak.slope_of(seconds / 3600, memory)
  assert low < an_hour < high and low < slope < high


def test_a_soak_that_stands_still_is_a_hang():
  seconds = np.arange(600.0)
  flat = np.stack([seconds, *np.full((3, 600), 9.0), 50 * seconds], axis=1)
  assert {one.result for one in soak.judged(flat)} == {'survived'}
  stood = flat.copy()
  stood[400:, 4] = stood[400, 4]
  assert [one.result for one in soak.judged(stood)].count('hang') == 1
  grown = flat.copy()
  grown[:, 1] += 1e-3 * seconds
  assert [one.result for one in soak.judged(grown)].count('wrong') == 1


def test_the_fuzzer_makes_what_it_finds_smaller(tmp_path, capsys):
  def reader(content: bytes) -> None:
    if len(content) > 4 and content[1] >= 128:
      raise KeyError(content[1])
    if content[0] != 1:
      raise ValueError('no such file')

  contents = fuzz.mutated([b'\1' * 40])
  fuzz.search(contents, reader, 500, 0, tmp_path)
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  before = [result for result, _ in lines[:-1]]
  assert set(before) == {'survived', 'refused'}
  smallest = (tmp_path / 'last').read_bytes()
  assert lines[-1] == ['traceback', f'{len(before)}: KeyError({smallest[1]})']
  assert [at for at, byte in enumerate(smallest) if byte != 1] == [1]
