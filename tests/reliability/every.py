"""The kinds of injection by name."""

from tests.reliability import (
  concurrency,
  fuzz,
  injection,
  kills,
  nonfinite,
  soak,
  storage,
)

KINDS = {
  'kills': kills.inject,
  'storage': storage.inject,
  'concurrency': concurrency.inject,
  'nonfinite': nonfinite.inject,
  'fuzz': fuzz.inject,
  'injection': injection.inject,
  'soak': soak.inject,
}
