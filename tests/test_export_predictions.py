"""Students of today outside the package: the same answers on TrashNet's test.

Weights are by the fill rule of the fixtures, so that nothing is fetched, but
for the bias of the head, with which no class is the answer to all images; what
is compared is what the files compute. An image whose two best logits lie closer
together than the files' rounding may come out either way: a tie, of which there
are few.
"""

import json

import jax
import numpy as np
import pytest

from tests.fixtures import fill_rule
from tests.test_export import describe, save_run
from tlkd_jax import data, export, models
from tlkd_jax.data import augment
from tlkd_jax.export import student as students
from tlkd_jax.models.weights import pretrained

pytestmark = pytest.mark.slow

SIDE, BATCH = 64, 64
# Gains of the fill rule at which logits depend on the image; see test_export.
GAINS = {
  'mobilenetv4_conv_small': 1.0,
  'mobileone_s0': 0.15,
  'fastvit_t8': 1.3,
  'repvit_m0_9': 0.7,
}
BRANCHED = ('mobileone_s0', 'fastvit_t8', 'repvit_m0_9')
# Of the largest logit: what a file may differ by, see docs/export.md.
ROUNDING = 1e-4


@pytest.fixture(scope='module')
def images(shared_dir, session_dir):
  """uint8 [N, S, S, 3], the test split as a student sees it."""
  found = data.load_splits(
    f'folder:{shared_dir / "data" / "trashnet.zip"}',
    image_size=SIDE,
    num_train_per_class=1,
    num_validation_per_class=1,
    cache_dir=session_dir / 'trashnet',
  )
  images = found.splits['test'].images
  assert len(images) > 400
  return images


def save_student(folder, name, images):
  """A student of the fill rule, and its run in the folder."""
  model = models.create_model(f'timm/{name}', num_classes=5)
  state_dict = {
    leaf.key: fill_rule.fill(
      leaf.key, leaf.to_torch(np.empty(shape)).shape, GAINS[name]
    )
    for shape, leaf in pretrained.leaf_table(model).values()
  }
  variables = pretrained.from_torch(model, state_dict)
  params, model_state = variables
  given = augment.normalize(images[::10], model.spec.mean, model.spec.std)
  said = jax.jit(model.apply)(params, model_state, given)[0]['logits']
  for head in model.spec.head:
    params = centred(params, head.split('.'), np.asarray(said).mean(0))
  variables = params, model_state
  student = students.Student(model, *variables, describe(f'timm/{name}', SIDE))
  return save_run(folder, f'timm/{name}', SIDE, student=student)


def centred(params, path, mean):
  """The parameters with a head whose logits are less by their mean."""
  if not path:
    return params | {'bias': params['bias'] - mean}
  return params | {path[0]: centred(params[path[0]], path[1:], mean)}


def compare(student, images, predict):
  """Asserts equal answers; predict takes float32 [B, S, S, 3], normalised."""
  spec = student.model.spec
  logits = jax.jit(student.logits)
  ours, theirs = [], []
  for start in range(0, len(images), BATCH):
    some = images[start : start + BATCH]
    given = np.asarray(augment.normalize(some, spec.mean, spec.std))
    ours.append(np.asarray(logits(given)))
    theirs.append(np.asarray(predict(given)))
  ours, theirs = np.concatenate(ours), np.concatenate(theirs)
  bound = ROUNDING * np.abs(ours).max()
  np.testing.assert_allclose(theirs, ours, atol=bound)
  best = np.sort(ours, axis=1)
  ties = best[:, -1] - best[:, -2] <= 2 * bound
  same = ours.argmax(1) == theirs.argmax(1)
  print(f'{len(ours)} images, {ties.sum()} ties, {(~same).sum()} other answers')
  assert same[~ties].all() and ties.mean() < 0.02
  # The images decide.
  assert np.bincount(ours.argmax(1), minlength=5).max() < 0.8 * len(ours)


@pytest.mark.parametrize('name', GAINS)
def test_onnxruntime_gives_the_same_answers(name, images, tmp_path):
  pytest.importorskip('jax2onnx', exc_type=ImportError)
  onnxruntime = pytest.importorskip('onnxruntime')
  student = save_student(tmp_path / 'run', name, images)
  out = tmp_path / 'student.onnx'
  fused = name in BRANCHED
  export.export_run(tmp_path / 'run', 'onnx', out, fold_norm=fused)
  config = json.loads((tmp_path / 'student.onnx.json').read_text())
  assert config.get('fused', False) is fused
  session = onnxruntime.InferenceSession(
    out.read_bytes(), providers=['CPUExecutionProvider']
  )

  def predict(given):
    given = np.ascontiguousarray(given.transpose(0, 3, 1, 2))
    return session.run(['logits'], {'images': given})[0]

  compare(student, images, predict)


@pytest.mark.parametrize('name', GAINS)
def test_timm_gives_the_same_answers(name, images, tmp_path):
  torch = pytest.importorskip('torch', exc_type=ImportError)
  timm = pytest.importorskip('timm', exc_type=ImportError)
  torch_safetensors = pytest.importorskip('safetensors.torch')
  student = save_student(tmp_path / 'run', name, images)
  out = tmp_path / 'model.safetensors'
  fused = name in BRANCHED
  export.export_run(tmp_path / 'run', 'safetensors', out, fold_norm=fused)
  config = json.loads((tmp_path / 'model.safetensors.json').read_text())
  model = timm.create_model(
    config['architecture'],
    num_classes=config['num_classes'],
    **config.get('model_args', {}),
  )
  if fused:
    model = timm.utils.reparameterize_model(model)
  model.load_state_dict(torch_safetensors.load_file(out))
  model.eval()

  @torch.inference_mode()
  def predict(given):
    given = np.ascontiguousarray(given.transpose(0, 3, 1, 2))
    return model(torch.from_numpy(given)).numpy()

  compare(student, images, predict)
