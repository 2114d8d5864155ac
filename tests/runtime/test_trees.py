"""Nested dicts and their flat form."""

from tlkd_jax.runtime import trees

NESTED = {'a': 1, 'b': {'c': None, 'd': {'e': (2, 3)}}}
FLAT = {'a': 1, 'b.c': None, 'b.d.e': (2, 3)}


def test_flat_and_nested_are_one_the_inverse_of_the_other():
  assert trees.flatten(NESTED) == FLAT
  assert list(trees.flatten(NESTED)) == list(FLAT)
  assert trees.nest(FLAT) == NESTED


def test_an_empty_dict_leaves_nothing():
  assert trees.flatten({'a': {}, 'b': {'c': {}}}) == {}
