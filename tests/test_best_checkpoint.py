"""Which step of a run is kept as the best."""

import math

import pytest

from tests import tiny
from tests.marks import slow
from tlkd_jax import arms
from tlkd_jax.evaluation import metrics
from tlkd_jax.runtime import devices, sharding
from tlkd_jax.training import metric_writers


@pytest.mark.usefixtures('tiny_models')
def test_an_error_metric_keeps_its_smallest_value(
  tmp_path, cache_dir, monkeypatch
):
  # Stands in for any error, since NLL is what the validation rows show.
  monkeypatch.setitem(metrics.METRICS, 'ece_classwise', metrics.METRICS['nll'])
  config = tiny.make_config(
    'tl', cache_dir, best_metric='ece_classwise', eval_every_steps=1
  )
  mesh = sharding.make_mesh()
  summary = arms.run(config, tmp_path / 'run', mesh)['tl']
  rows = metric_writers.read_rows(tmp_path / 'run' / 'metrics.jsonl')
  nll = {r['step']: r['nll'] for r in rows if r['split'] == 'validation'}
  assert len(set(nll.values())) > 1
  assert summary['best_step'] == min(nll, key=nll.get)
  assert summary['best_metric'] == 'ece_classwise'
  assert summary['device'] == devices.describe(mesh)


@pytest.mark.usefixtures('tiny_models')
@pytest.mark.parametrize(
  ('values', 'best'),
  [
    ([math.nan, 0.5, math.nan], 2),
    ([math.nan, math.nan, math.nan], 1),
    *slow(([math.nan, math.nan, -0.5], 3), ([0.2, math.nan, 0.1], 1)),
  ],
)
def test_an_undefined_metric_is_never_the_best(
  values, best, cache_dir, tmp_path, monkeypatch
):
  given = iter(values)
  monkeypatch.setitem(metrics.METRICS, 'mcc', lambda *_: next(given))
  config = tiny.make_config(
    'tl', cache_dir, best_metric='mcc', num_steps=3, eval_every_steps=1
  )
  summary = arms.run(config, tmp_path, sharding.make_mesh())['tl']
  assert summary['best_step'] == best
