"""Progress of a training loop: a bar for who looks on, else lines of a log.

Rate and time left are those of steps alone: neither the compilation before the
first one counts, nor what is evaluated and saved between them.
"""

import contextlib
import time
from collections.abc import Generator

from absl import logging

from tlkd_jax.runtime import bars, sharding
from tlkd_jax.runtime.texts import duration

_SHOWN = ('loss', 'accuracy', 'top1', 'nll')


class Progress:
  """Shows step, rate and time left; only the lead process prints."""

  def __init__(self, name: str, start: int, total: int):
    self._name = name
    self._total = total
    # The step after which the clock started, None before the first one.
    self._counted_from: int | None = None
    self._since = time.monotonic()
    self._compiling: float | None = None
    self._notes: dict[str, str] = {}
    self._paced = False
    self._lead = sharding.is_lead()
    bar = self._lead and bars.wanted()
    self._lines = self._lead and not bar
    self._bar = bars.tqdm(
      desc=name,
      total=total,
      initial=start,
      disable=not bar,
      unit='step',
      # Below a study's own bar it makes room for the next run.
      leave=None,
    )

  def compiling(self) -> None:
    """Says that the first step is compiled, or read from the cache, now."""
    self._compiling = time.monotonic()
    self._bar.set_postfix_str('compiling')
    if self._lines:
      logging.info('%s: compiling its step', self._name)

  def update(self, step: int) -> None:
    """One more step was dispatched."""
    if self._counted_from is not None:
      self._bar.update(step - self._bar.n)
      return
    if self._lines and self._compiling is not None:
      seconds = time.monotonic() - self._compiling
      logging.info('%s: compiled in %s', self._name, duration(seconds))
    # It was sent to the devices, and takes its time from here on.
    self._start_clock(step - 1)
    self._bar.n = self._bar.last_print_n = self._bar.initial = step
    self._bar.set_postfix(self._notes)

  @contextlib.contextmanager
  def paused(self) -> Generator[None]:
    """While open, no step is taken."""
    stopped = time.monotonic()
    try:
      yield
    finally:
      self._since += time.monotonic() - stopped
      self._bar.unpause()

  def message(self, step: int, values: dict[str, float]) -> None:
    """Shows the newest metrics."""
    prefix = 'val ' if 'nll' in values else ''
    shown = {f'{prefix}{k}': f'{values[k]:.4g}' for k in _SHOWN if k in values}
    self._notes |= shown
    self._bar.set_postfix(self._notes)
    if self._lines:
      logging.info(
        '%s %d/%d  %s%s',
        self._name,
        step,
        self._total,
        '  '.join(f'{k} {v}' for k, v in shown.items()),
        '' if prefix else self._pace_after(step),
      )

  def pace(self, step: int, in_steps: float) -> None:
    """Says how long the rest will take, at the second of two calls.

    Args:
      step: that is done, on the device too.
      in_steps: what is left to do, evaluations included, as so many steps.
    """
    if self._paced and self._lead:
      seconds = self._each(step)
      logging.info(
        '%s: %.2g s a step, about %s to go',
        self._name,
        seconds,
        duration(seconds * in_steps),
      )
    elif not self._paced:
      self._paced = True
      self._start_clock(step)

  def close(self) -> None:
    """Ends the bar."""
    self._bar.close()

  def _start_clock(self, step: int) -> None:
    self._counted_from, self._since = step, time.monotonic()
    self._bar.unpause()

  def _each(self, step: int) -> float:
    """Seconds of a step, by those since the clock started."""
    assert self._counted_from is not None
    return (time.monotonic() - self._since) / (step - self._counted_from)

  def _pace_after(self, step: int) -> str:
    if self._counted_from is None or step <= self._counted_from:
      return ''
    each = self._each(step)
    left = duration(each * (self._total - step))
    return f'  {1 / max(each, 1e-9):.2f} steps/s, {left} left'
