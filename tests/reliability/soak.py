"""A long run: its memory, handles and threads must stay what they are."""

import os
import pathlib
import re
import signal
import time

import numpy as np
from scipy import stats

from tests.reliability import runs
from tests.reliability.outcomes import Outcome
from tests.reliability.runs import Place

_KIND = 'soak'
_PAUSE = 1.0
_BLOCKS = 12
# Steps of a few milliseconds. Each checkpoint leaves some 16 KB in TensorStore,
# see docs/reliability.md, which would hide a growth of ours.
_CHECKPOINT = 2000
# A growth of more than this share of the mean, over the whole soak, is bad.
_MOST = 0.02


def inject(place: Place) -> list[Outcome]:
  """One run; it does nothing in the short form."""
  if not place.soak_minutes:
    return []
  folder = place.root / 'soak'
  command = runs.train(
    place,
    folder,
    'tl',
    num_steps=10_000_000,
    log_every_steps=20,
    eval_every_steps=_CHECKPOINT,
    optimizer__learning_rate=1e-4,
  )
  # What waits for it has the processor first.
  log, rows = place.root / 'soak.log', folder / 'metrics.jsonl'
  with log.open('w') as output:
    process = runs.start(command, prefix=('nice', '-n', '10'), output=output)
  seen: list[tuple[float, ...]] = []
  began = time.monotonic()
  while time.monotonic() - began < 60 * place.soak_minutes or _goes_on(place):
    if process.poll() is not None:
      break
    time.sleep(_PAUSE)
    done = rows.stat().st_size if rows.exists() else 0
    seen.append((time.monotonic() - began, *measured(process.pid), done))
  runs.kill(process, signal.SIGTERM)
  code = runs.wait(process, 120).code
  if code != 0:
    said = log.read_text()[-800:]
    return [Outcome(_KIND, 'traceback', f'code {code}: {said}')]
  return judged(np.asarray(seen))


def _goes_on(place: Place) -> bool:
  return place.until is not None and not place.until.exists()


def measured(pid: int) -> tuple[float, float, float]:
  """Own memory in MiB, open handles, threads of a process.

  Own is what no file holds: of mapped libraries the system takes pages away and
  gives them back as it likes, tens of MiB in a run.
  """
  place = pathlib.Path(f'/proc/{pid}')
  try:
    found = re.search(r'RssAnon:\s+(\d+) kB', (place / 'status').read_text())
    own = int(found[1]) / 1024 if found else float('nan')
    handles = len(os.listdir(place / 'fd'))
    threads = len(os.listdir(place / 'task'))
  except OSError:
    return float('nan'), float('nan'), float('nan')
  return own, handles, threads


def judged(seen: np.ndarray) -> list[Outcome]:
  """An outcome for each of the three, and one for whether it went on.

  Args:
    seen: [N, 5], seconds, what was measured, and what the run had written. The
      first third, in which all is compiled and caches fill, does not count.
  """
  seen = seen[np.isfinite(seen).all(1)]
  seen = seen[seen[:, 0] > seen[-1, 0] / 3]
  written = [part[-1, 4] for part in np.array_split(seen, _BLOCKS)]
  still = bool((np.diff(written) <= 0).any())
  what = f'wrote {written[0] / 1e6:.1f} to {written[-1] / 1e6:.1f} MB of rows'
  found = [Outcome(_KIND, 'hang' if still else 'survived', what)]
  for name, values in zip(
    ('own memory, MiB', 'handles', 'threads'), seen.T[1:4], strict=True
  ):
    slope, low, high = slope_of(seen[:, 0] / 3600, values)
    hours = (seen[-1, 0] - seen[0, 0]) / 3600
    grown = slope * hours / values.mean()
    what = (
      f'{name}: {values.mean():.1f}, slope {slope:+.2f} an hour (95 % interval '
      f'{low:+.2f} to {high:+.2f}) over {60 * hours:.1f} minutes'
    )
    print(f'soak: {what}')
    bad = low > 0 and grown > _MOST
    found.append(Outcome(_KIND, 'wrong' if bad else 'survived', what))
  return found


def slope_of(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
  """Least squares over means of blocks, which are less alike than neighbours.

  Returns:
    The slope and its 95 % interval.
  """
  blocks = [
    (a.mean(), b.mean())
    for a, b in zip(
      np.array_split(x, _BLOCKS), np.array_split(y, _BLOCKS), strict=True
    )
  ]
  fit = stats.linregress(*np.asarray(blocks).T)
  # No residuals, of what never changed, are 0 / 0 there.
  wide = stats.t.ppf(0.975, _BLOCKS - 2) * np.nan_to_num(fit.stderr)
  return fit.slope, fit.slope - wide, fit.slope + wide
