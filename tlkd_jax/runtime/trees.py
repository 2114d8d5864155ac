"""Nested dicts as flat ones, and back."""

from typing import Any


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
  """Nested dict -> {'a.b.c': leaf}, in the order of the tree.

  A leaf is what is not a dict; a dict without entries leaves no trace.
  """
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= {f'{key}.{path}': leaf for path, leaf in flatten(value).items()}
    else:
      flat[f'{key}'] = value
  return flat


def nest(flat: dict[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  tree: dict[str, Any] = {}
  for path, value in flat.items():
    *parents, name = path.split('.')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = value
  return tree
