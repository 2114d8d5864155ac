"""The simulation of looks, and what docs/study/sequential.md says of it."""

import json
import pathlib

import pytest

from benchmarks import sequential
from tlkd_jax.answer.plan import Plan

_DOCS = pathlib.Path(__file__).resolve().parent.parent / 'docs'
_NAMES = {
  'normal': 'one number a seed, spread 0.5 points',
  'heavy': 'the same, t with 3 degrees of freedom',
  'discrete': 'counts of 630 images, spread 1.5',
  'places': 'three data sets, spreads 1, 2, 0.7 and their images',
  'drawn': '630 images, drawn',
}


def stored() -> dict:
  return json.loads((_DOCS / 'study' / 'sequential.json').read_text())


def row(design: str, gain: float, most: int = 20) -> dict:
  wanted = {'design': design, 'gain_points': gain, 'max_seeds': most}
  (found,) = [r for r in stored()['rows'] if wanted.items() <= r.items()]
  return found


@pytest.mark.parametrize('design', _NAMES)
def test_errors_are_within_what_was_stated_and_in_the_page(design):
  null, edge = row(design, 0.0), row(design, 0.5)
  wrong = null['helps'] + null['hurts']
  assert null['studies'] == 10_000 and wrong <= 0.05 and edge['equal'] <= 0.05
  cells = [wrong, null['one_look_a_seed'], edge['equal']]
  line = ' | '.join([_NAMES[design], *(f'{value:.3f}' for value in cells)])
  assert f'| {line} |' in (_DOCS / 'study' / 'sequential.md').read_text()


@pytest.mark.parametrize('gain', [0.0, 0.5, 1.0, 2.0])
def test_costs_are_in_the_page(gain):
  found = [row('normal', gain, most) for most in (10, 20)]
  found += [row('places', gain, most) for most in (10, 20, 60)]
  cells = [
    f'{one["seeds_mean"]:.1f}, {100 * (1 - one["open"]):.0f} %' for one in found
  ]
  name = f'{gain:g}' + ' (equal)' * (gain == 0)
  line = ' | '.join([name, *cells])
  assert f'| {line} |' in (_DOCS / 'study' / 'sequential.md').read_text()


def test_coverage_is_in_the_page():
  text = (_DOCS / 'study' / 'sequential.md').read_text()
  for one in stored()['coverage']:
    held = one['over_seeds_and_images']
    assert held > 0.95
    line = (
      f'{one["seeds"]} | {100 * one["over_seeds"]:.1f} % | {100 * held:.1f}'
    )
    assert f'| {line} % |' in text


@pytest.mark.parametrize('design', sequential.DESIGNS)
def test_a_few_studies_of_each_design(design):
  found = sequential.run(design, 0.0, 60, Plan(max_seeds=6))
  shares = [found[key] for key in ('helps', 'hurts', 'equal', 'open')]
  assert sum(shares) == pytest.approx(1)
  assert 5 <= found['seeds_mean'] <= 6 and found['helps'] < 0.2
