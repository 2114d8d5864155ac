"""Passes are counted and ordered; no time is asserted."""

import itertools

import pytest

from tlkd_jax.runtime import timing


@pytest.fixture
def clock(monkeypatch):
  """Seconds that a call takes -> a call that moves the clock by so much."""
  now = [0.0]
  monkeypatch.setattr(timing.time, 'perf_counter', lambda: now[0])
  monkeypatch.setattr(timing.time, 'process_time', lambda: 0.0)
  monkeypatch.setattr(timing, '_busy', lambda: None)

  def of(*seconds):
    takes = itertools.cycle(seconds)

    def call():
      now[0] += next(takes)

    return call

  return of


@pytest.mark.parametrize(
  ('seconds', 'passes'),
  # Many of a quick call; five of a slow one; of a very slow one as many as
  # take three times as long as there was to spend.
  [(0.125, 8), (0.25, 5), (0.5, 5), (1.0, 3), (60.0, 1)],
)
def test_how_often_it_is_called(clock, seconds, passes):
  found = timing.take(clock(seconds), seconds=1.0)
  assert found.passes == passes
  assert found.median == pytest.approx(1e3 * seconds)
  assert found.beside is None


def test_the_pass_that_warms_up_does_not_count(clock):
  found = timing.take(clock(100.0, *[0.25] * 20), seconds=1.0)
  assert found.high == pytest.approx(250.0)


def test_the_range_is_that_of_eight_passes_of_ten(clock):
  # The first of eleven warms up.
  found = timing.take(clock(*[0.1 * n for n in range(11)]), seconds=5.4)
  assert found.passes == 10
  assert found.median == pytest.approx(550.0)
  assert found.low == pytest.approx(190.0)
  assert found.high == pytest.approx(910.0)


@pytest.mark.parametrize(
  ('busy', 'own', 'beside'),
  [
    # Two cores at work for two seconds, of which this process did two.
    ((10.0, 14.0), 2.0, 1.0),
    ((10.0, 12.0), 2.0, 0.0),
    # Ticks are coarse: no less than nothing.
    ((10.0, 11.98), 2.0, 0.0),
    ((None, None), 2.0, None),
    ((10.0, None), 2.0, None),
  ],
)
def test_the_work_of_others(monkeypatch, busy, own, beside):
  before, after = busy
  monkeypatch.setattr(timing, '_busy', lambda: after)
  found = timing._rest(before, own, 2.0)
  assert found == (None if beside is None else pytest.approx(beside))


def test_of_too_short_a_time_nothing_is_said(monkeypatch):
  monkeypatch.setattr(timing, '_busy', lambda: 3.0)
  assert timing._rest(0.0, 0.0, 0.1) is None


def test_ticks_of_the_cores_of_this_process(monkeypatch, tmp_path):
  stat = tmp_path / 'stat'
  stat.write_text(
    'cpu  99 99 99 99 99 99 99 99 0 0\n'
    # user nice system idle iowait irq softirq steal guest guest_nice
    'cpu0 1 2 3 1000 1000 4 5 6 7 8\n'
    'cpu1 10 0 0 1000 0 0 0 0 0 0\n'
    'cpu10 500 0 0 0 0 0 0 0 0 0\n'
    'intr 1 2\n'
  )
  monkeypatch.setattr(timing, '_STAT', stat)
  monkeypatch.setattr(
    timing.os, 'sched_getaffinity', lambda pid: {0, 1}, raising=False
  )
  monkeypatch.setattr(timing.os, 'sysconf', lambda name: 100, raising=False)
  assert timing._busy() == pytest.approx((21 + 10) / 100)
  stat.unlink()
  assert timing._busy() is None
