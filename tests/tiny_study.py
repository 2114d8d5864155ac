"""`python -m tests.tiny_study ...` is tlkd_jax.study with tests/tiny.py."""

from tests import tiny
from tlkd_jax.runtime import interrupts
from tlkd_jax.study import __main__ as command

if __name__ == '__main__':
  interrupts.end_at_once()
  with tiny.registered():
    command.run()
