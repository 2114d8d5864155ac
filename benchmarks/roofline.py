"""Rooflines of accelerators from what `benchmarks.scaling --compute` printed.

These are computed: nothing ran on such a chip.
"""

# name: (peak bfloat16 TFLOP/s, memory GB/s, GB/s that a chip sends to its
# neighbours, chips so connected, GB/s beyond them), as published: Cloud TPU
# system architecture pages (v4, v5e, v5p: ICI one way, torus of the whole
# slice); NVIDIA A100 and H100 SXM data sheets (dense; NVLink one way in a node
# of eight) and DGX A100 and H100 (one network port of 200 and 400 Gb/s a GPU).
CHIPS = {
  'TPU v4': (275, 1228, 300, 4096, 300),
  'TPU v5e': (197, 819, 200, 256, 200),
  'TPU v5p': (459, 2765, 600, 8960, 600),
  'A100 SXM': (312, 2039, 300, 8, 25),
  'H100 SXM': (989, 3350, 450, 8, 50),
}


# Of a collective's result, as XLA counts its bytes, the share that a chip of n
# sends on a ring.
SENT = {
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'all-gather': lambda n: (n - 1) / n,
  # Its result is a part.
  'reduce-scatter': lambda n: n - 1,
  'all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda n: 1,
}


def roofline(row: dict, chip: str) -> dict:
  """Seconds per step on a chip: the larger of compute and memory, and the sum.

  Bytes are halved, for bfloat16. Gradients (float32) go round a ring: each
  chip sends what `SENT` says; beyond a node the slower links bound it.
  Nothing overlaps, so `seconds` is an upper bound of the three parts' sum.
  """
  peak, memory, link, connected, beyond = CHIPS[chip]
  compute_s = row['flops_per_chip'] / (peak * 1e12)
  memory_s = row['bytes_per_chip'] / 2 / (memory * 1e9)
  n = row['chips']
  sent = sum(SENT[k](n) * c['bytes'] for k, c in row['collectives'].items())
  link_s = sent / ((link if n <= connected else beyond) * 1e9)
  busy = max(compute_s, memory_s)
  return {
    'bound': 'compute' if compute_s > memory_s else 'memory',
    'busy': busy,
    'link': link_s,
    'images_per_second': n * row['batch_per_chip'] / (busy + link_s),
    'efficiency': busy / (busy + link_s),
  }
