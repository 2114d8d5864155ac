"""Progress of a training loop: a bar for who looks on, else lines of a log."""

import time

from absl import logging

from tlkd_jax.runtime import bars, sharding
from tlkd_jax.runtime.texts import duration

_SHOWN = ('loss', 'accuracy', 'top1', 'nll')


class Progress:
  """Shows step, rate and time left; only the lead process prints."""

  def __init__(self, name: str, start: int, total: int):
    self._name = name
    self._total = total
    self._start = start
    self._began = time.monotonic()
    self._notes: dict[str, str] = {}
    self._paced: tuple[int, float] | None = None
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

  def update(self, step: int) -> None:
    """One more step was dispatched."""
    self._bar.update(step - self._bar.n)

  def message(self, step: int, values: dict[str, float]) -> None:
    """Shows the newest metrics."""
    prefix = 'val ' if 'nll' in values else ''
    shown = {f'{prefix}{k}': f'{values[k]:.4g}' for k in _SHOWN if k in values}
    self._notes |= shown
    self._bar.set_postfix(self._notes)
    if self._lines:
      rate = (step - self._start) / max(time.monotonic() - self._began, 1e-9)
      left = (self._total - step) / max(rate, 1e-9)
      logging.info(
        '%s %d/%d  %s  %.2f steps/s, %s left',
        self._name,
        step,
        self._total,
        '  '.join(f'{k} {v}' for k, v in shown.items()),
        rate,
        duration(left),
      )

  def pace(self, step: int, in_steps: float) -> None:
    """Says how long the rest will take, at the second of two calls.

    Args:
      step: that is done, on the device too.
      in_steps: what is left to do, evaluations included, as so many steps.
    """
    now = time.monotonic()
    if self._paced is None:
      self._paced = step, now
      return
    before, then = self._paced
    seconds = (now - then) / (step - before)
    if self._lead:
      logging.info(
        '%s: %.2g s a step, about %s to go',
        self._name,
        seconds,
        duration(seconds * in_steps),
      )

  def close(self) -> None:
    """Ends the bar."""
    self._bar.close()
