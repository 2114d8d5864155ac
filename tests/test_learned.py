"""How many images a finished run has learned from."""

import json

import pytest

from tests import tiny
from tlkd_jax import models
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.training import learned, workdir

_REST = {'distillation__unlabelled': 'rest'}
_SOFT = {'distillation__mixed': 'soft', 'augment__mixup_alpha': 0.2}


def row(folder, steps):
  folder.mkdir(exist_ok=True)
  found = {'step': steps, 'split': 'train', 'loss': 1.0}
  (folder / 'metrics.jsonl').write_text(json.dumps(found) + '\n')


@pytest.mark.parametrize(
  ('arm', 'changes', 'images'),
  [
    ('tl', {}, 6 * 8),
    ('tl', {'student__fit': 'probed'}, 41 * 5),
    ('teacher', {'teacher__fit': 'probed', 'teacher__probe_views': 1}, 41 * 2),
    (
      'teacher',
      {'teacher__fit': 'crossfitted_finetuned', 'teacher__probe_folds': 3},
      (2 + 3 + 4) * 8,
    ),
    (
      'tl',
      {'student__fit': 'ensemble', 'student__members': 3},
      (2 + 3 + 4) * 8,
    ),
    # Half of a batch is seen twice, weakly and strongly augmented.
    ('tl', {'student__fit': 'fixmatch', **_REST}, 6 * (8 + 4)),
    # All of it, as it is and mixed; or what guides speak of.
    ('kd', _SOFT, 6 * 2 * 8),
    ('kd', _SOFT | _REST | {'distillation__taught': 'unlabelled'}, 6 * (8 + 4)),
  ],
)
def test_by_settings_and_by_the_record(arm, changes, images, tmp_path):
  """A probe passes over its images; folds and members learn."""
  with tiny.registered():
    own = tiny.make_config(arm, **changes)
    flat = flatten(workdir.as_json(own))
  part = {'crossfitted_finetuned': 'fold', 'ensemble': 'member'}.get(own.fit)
  if part:
    for number in (1, 2, 3):
      row(tmp_path / f'{part}{number}', number + 1)
  elif own.fit != 'probed':
    row(tmp_path, 6)
  summary = {'num_train': 41}
  assert learned.images(own, tmp_path, summary) == images
  # The page of a report does not know the variants.
  assert 'tiny' not in models.MODELS
  assert learned.images(learned.of_record(flat), tmp_path, summary) == images


def test_a_record_of_few_keys_has_the_defaults_for_the_others():
  found = learned.of_record({'arm': 'teacher', 'teacher.fit': 'probed'})
  assert (found.fit, found.teacher.probe_views, found.seed) == ('probed', 4, 0)


def test_a_network_that_is_used_as_it_is_learned_from_nothing(tmp_path):
  own = learned.of_record({'arm': 'teacher', 'teacher.fit': 'zero_shot'})
  assert learned.images(own, tmp_path, {'num_train': 41}) == 0
