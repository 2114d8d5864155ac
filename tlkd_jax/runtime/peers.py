"""The other processes of a run, where one of them is lost."""

import sys

from tlkd_jax.runtime import interrupts


def leave_if_lost(error: BaseException | None) -> None:
  """Ends this process where an error is that another one is gone.

  At once: what Python does at its end would wait for the other, and JAX then
  ends the process with a dump of its stack. A connection that breaks is seen
  within a second, a machine that falls silent after JAX's 100.
  """
  jax = sys.modules.get('jax')
  if jax is None or error is None:
    return
  # Some arrive as a ValueError, by way of what was waiting.
  of_jax = isinstance(error, jax.errors.JaxRuntimeError)
  if (of_jax or 'Gloo' in str(error)) and jax.process_count() > 1:
    first = str(error).strip().partition('\n')[0][:300]
    interrupts.leave(
      f'error: another process of this run was lost ({first}); what was saved '
      'stays: start all of them again with the same command',
      code=1,
    )
