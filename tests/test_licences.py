"""The terms of weights, from the file to what is handed on."""

import dataclasses
import json

import pytest

from tests import tiny
from tests.test_export import describe
from tests.test_weights_from_files import filled
from tlkd_jax import arms, models
from tlkd_jax.export import formats
from tlkd_jax.export.student import Student
from tlkd_jax.models.weights import sources, torch_files
from tlkd_jax.runtime import sharding
from tlkd_jax.training import checkpoints, decoding
from tlkd_jax.training import run as run_parts

pytestmark = pytest.mark.usefixtures('tiny_models')


def weights(folder, variant: str, licence: str) -> str:
  """A folder with weights and their card."""
  folder.mkdir()
  torch_files.write_safetensors(
    folder / 'model.safetensors', filled(variant, 10)
  )
  card = f'---\nlicense: {licence}\n---\n'
  (folder / 'README.md').write_text(card)
  return str(folder)


@pytest.fixture(scope='module')
def teacher(cache_dir, tmp_path_factory):
  """The workdir of a probe of a network that is not free for all use."""
  folder = tmp_path_factory.mktemp('licences')
  workdir = folder / 'run'
  with tiny.registered():
    place = weights(folder / 'nc', 'tiny_teacher', 'cc-by-nc-4.0')
    config = tiny.make_config(
      'teacher',
      cache_dir,
      teacher__fit='probed',
      teacher__probe_views=0,
      teacher__probe_folds=3,
      teacher__weights=place,
    )
    arms.run(config, workdir, sharding.make_mesh())
  return workdir


def test_a_run_says_the_terms_of_its_weights(teacher):
  (line,) = json.loads((teacher / 'summary.json').read_text())['licences']
  place, _, said = line.partition(': ')
  assert place.startswith('nc/model.safetensors#sha256=')
  assert said == 'cc-by-nc-4.0 (its card)'
  assert checkpoints.read_description(teacher).licences == (line,)


@pytest.mark.parametrize('start', ['weights', 'checkpoint'])
def test_a_student_has_those_of_its_start_and_of_its_teacher(
  start, teacher, cache_dir, tmp_path
):
  """Each once, also where it goes on from a run that had them."""
  if start == 'weights':
    given = {'student__weights': weights(tmp_path / 'own', 'tiny', 'mit')}
  else:
    given = {
      'student__name': 'tiny_teacher',
      'student__checkpoint': str(teacher),
      'student__head_init': 'small_random',
    }
  config = tiny.make_config(
    'kd', cache_dir, teacher__checkpoint=str(teacher), **given
  )
  dataset = decoding.load_dataset(config)
  run = run_parts.set_up(config, tmp_path, dataset, sharding.make_mesh())
  own = ['mit (its card)'] if start == 'weights' else []
  said = [line.partition(': ')[2] for line in run.licences]
  assert said == [*own, 'cc-by-nc-4.0 (its card)']


def test_from_scratch_there_is_nothing_to_say(cache_dir, tmp_path):
  config = tiny.make_config('tl', cache_dir)
  dataset = decoding.load_dataset(config)
  run = run_parts.set_up(config, tmp_path, dataset, sharding.make_mesh())
  assert run.licences == ()


def test_what_is_exported_says_them_and_is_read_with_them(tmp_path):
  model = models.create_model('tiny', num_classes=5)
  lines = ('own: mit (its card)', 'nc: cc-by-nc-4.0 (its card)')
  said = dataclasses.replace(describe('tiny'), licences=lines)
  student = Student(model, model.params_shape, model.model_state_shape, said)
  content = formats.configuration(student, 'safetensors')
  assert content['licences'] == list(lines)
  path = tmp_path / 's.safetensors'
  path.touch()
  path.with_name(f'{path.name}.json').write_text(json.dumps(content))
  assert sources.find(str(path), path).licence == '; '.join(lines)
