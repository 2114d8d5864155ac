"""Which step of a run is kept as the best."""

import pytest

from tests import tiny
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
