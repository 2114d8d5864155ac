"""What a run has written, read without the package."""

import json
import pathlib
import time

import numpy as np
import tensorstore as ts


def arrays(
  workdir, kind: str = 'latest', step: int | None = None
) -> dict[str, np.ndarray]:
  """Every array of a checkpoint, read without the package.

  Args:
    workdir: of the run.
    kind: 'latest' or 'best'.
    step: of the checkpoint; None is the newest.
  """
  root = workdir / 'checkpoints' / kind
  if step is None:
    step = max(int(p.name) for p in root.iterdir() if p.name.isdigit())
  store = {'driver': 'ocdbt', 'base': f'file://{root}/{step}/arrays/'}
  keys = ts.KvStore.open(store).result().list().result()
  names = [k.decode().removesuffix('/.zarray') for k in keys if b'.zarray' in k]
  return {'step': np.asarray(step)} | {
    name: ts.open({'driver': 'zarr', 'kvstore': {**store, 'path': f'{name}/'}})
    .result()
    .read()
    .result()
    for name in names
  }


def change_description(run: pathlib.Path, **changes) -> None:
  """Writes other values into a run's description; None leaves one out.

  Without the digests, as an earlier version would have written it.
  """
  (path,) = run.glob('checkpoints/best/*/record/metadata')
  record = json.loads(path.read_text()) | changes | {'digests': None}
  kept = {key: v for key, v in record.items() if v is not None}
  path.write_text(json.dumps(kept))


def saved_step(workdir) -> int:
  """The newest checkpoint's step, 0 before the first."""
  found = workdir.glob('checkpoints/latest/*')
  return max((int(p.name) for p in found if p.name.isdigit()), default=0)


def wait_for_step(workdir, process, least: int) -> int:
  """Returns the newest checkpoint's step once it is at least `least`."""
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline:
    step = saved_step(workdir)
    if step >= least:
      return step
    if process.poll() is not None:
      raise AssertionError(process.communicate()[1])
    time.sleep(0.02)
  raise AssertionError(f'no checkpoint of step {least}')
