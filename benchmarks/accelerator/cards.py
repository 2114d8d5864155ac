"""Peaks of accelerators by the name that JAX gives a device, as published."""

import re
from typing import NamedTuple


class Card(NamedTuple):
  """A device as JAX counts them.

  Attributes:
    name: for people.
    pattern: of its whole device_kind; a part of a card has other peaks.
    tflops: dense peak of `dtype`, 10^12 FLOP/s.
    gbs: of its memory, 10^9 bytes/s.
    source: who says so.
    dtype: of the peak; cards without bfloat16 compute in float32 units.
  """

  name: str
  pattern: str
  tflops: float
  gbs: float
  source: str
  dtype: str = 'bfloat16'


_H100 = 'NVIDIA H100 data sheet, without sparsity'
_A100 = 'NVIDIA A100 data sheet, without sparsity'
_V100 = 'NVIDIA V100 data sheet; tensor cores of float16 alone'
_TPU = 'cloud.google.com/tpu/docs/'
_CORE = ", one of a chip's two cores, which is what JAX calls a device"

# The first that fits is taken.
CARDS = (
  Card('H200', r'NVIDIA H200', 989, 4800, 'NVIDIA H200 data sheet, dense'),
  Card('H100 PCIe', r'NVIDIA H100 PCIe', 756, 2000, _H100),
  Card('H100 NVL', r'NVIDIA H100 NVL', 835, 3900, _H100),
  Card('H100 SXM', r'NVIDIA H100( SXM5?)?( 80GB HBM3)?', 989, 3350, _H100),
  Card('A100 SXM', r'NVIDIA A100-SXM4-80GB', 312, 2039, _A100),
  Card('A100 SXM 40 GB', r'NVIDIA A100-SXM4-40GB', 312, 1555, _A100),
  Card('A100 PCIe', r'NVIDIA A100 80GB PCIe', 312, 1935, _A100),
  Card('A100 PCIe 40 GB', r'NVIDIA A100-PCI[Ee]-40GB', 312, 1555, _A100),
  Card('L4', r'NVIDIA L4', 121, 300, 'NVIDIA L4 data sheet, half of sparse'),
  Card(
    'T4',
    r'(NVIDIA )?(Tesla )?T4',
    65,
    320,
    'NVIDIA T4 data sheet; tensor cores of float16 alone',
    'float16',
  ),
  Card(
    'V100 SXM',
    r'(NVIDIA )?Tesla V100-SXM[23](-\d+GB)?',
    125,
    900,
    _V100,
    'float16',
  ),
  Card(
    'V100 PCIe',
    r'(NVIDIA )?Tesla V100-PCIE(-\d+GB)?',
    112,
    900,
    _V100,
    'float16',
  ),
  Card('TPU v2', r'TPU v2', 22.5, 350, f'{_TPU}v2{_CORE}'),
  Card('TPU v3', r'TPU v3', 61.5, 450, f'{_TPU}v3{_CORE}'),
  Card('TPU v4', r'TPU v4', 275, 1228, f'{_TPU}v4'),
  Card('TPU v5e', r'TPU v5 ?(lite|e)', 197, 819, f'{_TPU}v5e'),
  Card('TPU v5p', r'TPU v5p?', 459, 2765, f'{_TPU}v5p'),
  Card('TPU v6e', r'TPU v6 ?(lite|e)', 918, 1640, f'{_TPU}v6e'),
)


def find(kind: str) -> Card | None:
  """The card of a device_kind; None where its peaks are not listed."""
  return next(
    (card for card in CARDS if re.fullmatch(card.pattern, kind)), None
  )


def utilisation(flop: float, seconds: float, card: Card | None) -> float | None:
  """Share of the peak at which so many operations took so long."""
  return flop / seconds / (card.tflops * 1e12) if card else None


def bound(flop: float, moved: float, card: Card) -> tuple[float, str]:
  """(seconds at least, 'compute' or 'memory') of operations and bytes.

  Unlike benchmarks/roofline.py's, bytes are of the program that ran.
  """
  compute, memory = flop / (card.tflops * 1e12), moved / (card.gbs * 1e9)
  return max(compute, memory), 'compute' if compute >= memory else 'memory'
