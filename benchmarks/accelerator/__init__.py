"""What an accelerator computes, and how fast: one command, one file.

  python -m benchmarks.accelerator --out docs/accelerator.json
  python -m benchmarks.accelerator --show docs/accelerator.json

No module here imports JAX when it is loaded but for those that a process of a
part reads, so that the command itself holds no device and no memory of one.
"""
