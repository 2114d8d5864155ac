"""The kinds of injection by name."""

from tests.reliability import (
  backbones,
  concurrency,
  exported,
  folders,
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
  'backbones': backbones.inject,
  'exported': exported.inject,
  'folders': folders.inject,
  'nonfinite': nonfinite.inject,
  'fuzz': fuzz.inject,
  'injection': injection.inject,
  'soak': soak.inject,
}
