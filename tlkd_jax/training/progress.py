"""Progress of a training loop: a bar for who looks on, else lines of a log."""

import time

from absl import logging

from tlkd_jax.runtime import bars, sharding

_SHOWN = ('loss', 'accuracy', 'top1', 'nll')


class Progress:
  """Shows step, rate and time left; only the lead process prints."""

  def __init__(self, name: str, start: int, total: int):
    self._name = name
    self._total = total
    self._start = start
    self._began = time.monotonic()
    self._notes: dict[str, str] = {}
    lead = sharding.is_lead()
    bar = lead and bars.wanted()
    self._lines = lead and not bar
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
        '%s %d/%d  %s  %.2f steps/s, %.0f s left',
        self._name,
        step,
        self._total,
        '  '.join(f'{k} {v}' for k, v in shown.items()),
        rate,
        left,
      )

  def close(self) -> None:
    """Ends the bar."""
    self._bar.close()
