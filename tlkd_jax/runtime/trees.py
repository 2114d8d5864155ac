"""Nested dicts as flat ones, whose keys are paths: {'a.b.c': value}."""

from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dict -> {'a.b.c': value}; what is empty leaves nothing."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      inner = flatten(value)
      flat |= {f'{key}.{path}': leaf for path, leaf in inner.items()}
    else:
      flat[str(key)] = value
  return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  tree: dict[str, Any] = {}
  for path, value in flat.items():
    *parents, name = path.split('.')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = value
  return tree
