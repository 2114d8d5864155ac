"""What a study does beside training grows with its cells, not their square."""

import types

import pytest

from tlkd_jax.evaluation import records
from tlkd_jax.study import cells, conduct, matrix, workers
from tlkd_jax.study.matrix import Cell


def of_groups(count: int) -> list[Cell]:
  """TL, TL+KD and their teacher for so many seeds."""
  rest = {'trial': (), 'changes': ()}
  return [
    Cell('digits', 10, arm, seed, label=arm, kind=arm, teachers=needs, **rest)
    for seed in range(count)
    for arm, needs in (('teacher', ()), ('tl', ()), ('kd', ('teacher',)))
  ]


def finish(root):
  def run(cell):
    path = cells.folder_of(root, cell) / 'cell.json'
    records.write_json(path, {'validation': {}})

  return run


def looks(monkeypatch, root, count: int) -> float:
  """Times that the group of a cell is asked for, for each cell."""
  seen = []
  whole = Cell.group.fget
  counted = property(lambda cell: seen.append(1) or whole(cell))
  shard = of_groups(count)
  with monkeypatch.context() as patch:
    patch.setattr(Cell, 'group', counted)
    workers.work(shard, root, finish(root), lambda: None)
  assert set(workers.states(shard, root).values()) == {'done'}
  return len(seen) / len(shard)


def test_a_cell_does_not_look_at_all_others(monkeypatch, tmp_path):
  few, many = (looks(monkeypatch, tmp_path / str(n), n) for n in (3, 12))
  assert many == few


def test_groups_hold_all_that_a_cell_needs():
  everything = of_groups(4)
  groups = matrix.by_group(everything)
  assert [len(group) for group in groups.values()] == [3] * 4
  for cell in everything:
    needed = matrix.needed(cell, everything)
    assert matrix.needed(cell, groups[cell.group]) == needed
    assert len(needed) == len(cell.teachers)


def test_a_cell_runs_beside_its_group_alone(monkeypatch, tmp_path):
  everything, told, written = of_groups(3), {}, []

  def run(config, cell, given, root, load, mesh):
    told[cell] = given
    finish(root)(cell)

  monkeypatch.setattr(cells, 'run', run)
  monkeypatch.setattr(conduct, 'known', lambda *_: everything)
  monkeypatch.setattr(conduct, 'make_report', lambda *_: _Silent())
  monkeypatch.setattr(
    conduct.results, 'write', lambda *_: written.append(len(told))
  )
  conduct.run_part(None, tmp_path)
  assert list(told) == everything
  for cell, given in told.items():
    assert [other.seed for other in given] == [cell.seed] * 3
  # What is quick is written after each cell, and once more at the end.
  assert written == [*range(1, 10), 9]


class _Silent:
  def __call__(self):
    pass

  def close(self):
    pass


@pytest.mark.parametrize(
  ('cost', 'called'),
  [(0.0, 100), (0.1, 100), (0.5, 10), (5.0, 1)],
)
def test_what_takes_long_is_called_more_rarely(monkeypatch, cost, called):
  now, calls = [0.0], []

  def function():
    calls.append(now[0])
    now[0] += cost

  clock = types.SimpleNamespace(monotonic=lambda: now[0])
  monkeypatch.setattr(workers, 'time', clock)
  sparing = workers.Sparingly(function)
  for _ in range(100):
    sparing()
    now[0] += 1.0
  assert len(calls) == called
  assert sum([cost] * (len(calls) - 1)) <= 0.11 * now[0]
