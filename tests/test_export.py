"""Students that leave the package: key names, formats, folded norms."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export as jax_export

from tests import tiny
from tests.fixtures import fill_rule
from tests.workdirs import change_description
from tlkd_jax import export, models
from tlkd_jax.export import __main__ as command
from tlkd_jax.export import formats, onnx, stablehlo, weights
from tlkd_jax.export import student as students
from tlkd_jax.models import functional
from tlkd_jax.models.families import mobileone
from tlkd_jax.models.weights import (
  folding,
  loading,
  pretrained,
  torch_files,
)
from tlkd_jax.runtime.errors import UserError
from tlkd_jax.training import checkpoints, descriptions

CLASSES = ['cat', 'dog', 'eel', 'fox', 'gnu']
# Trained in branches, with a gain of the fill rule at which logits are neither
# lost in the biases nor so large that rounding grows in squeeze-excite.
BRANCHED = {'repvit_m0_9': 0.7, 'mobileone_s0': 0.15, 'fastvit_sa12': 1.3}


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch):
  monkeypatch.setitem(models.MODELS, 'tiny', tiny.SPECS['tiny'])


def random_variables(model, seed=0):
  """(params, model_state) in which no norm is the identity."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    if name == 'kernel':
      fan_in = np.prod(leaf.shape[:-1])
      return (rng.normal(size=leaf.shape) / fan_in**0.5).astype(np.float32)
    offset = 1.0 if name in ('scale', 'var') else 0.0
    return (offset + 0.2 * rng.uniform(size=leaf.shape)).astype(np.float32)

  shapes = model.params_shape, model.model_state_shape
  return jax.tree_util.tree_map_with_path(draw, shapes)


def describe(name, image_size=16, arm='kd'):
  return descriptions.Description(
    model=name,
    num_classes=len(CLASSES),
    class_names=tuple(CLASSES),
    image_size=image_size,
    crop=0.9,
    interpolation='bilinear',
    dataset='digits',
    arm=arm,
    compute_dtype='float32',
    step=3,
  )


def make_student(name, image_size=16):
  model = models.create_model(name, num_classes=len(CLASSES))
  variables = random_variables(model)
  return students.Student(model, *variables, describe(name, image_size))


def make_branched(name):
  """A student in branches, with weights by the fill rule of the fixtures."""
  model = models.create_model(name, num_classes=len(CLASSES))
  state_dict = {
    leaf.key: fill_rule.fill(
      leaf.key, leaf.to_torch(np.empty(shape)).shape, BRANCHED[name]
    )
    for shape, leaf in pretrained.leaf_table(model).values()
  }
  variables = pretrained.from_torch(model, state_dict)
  return students.Student(model, *variables, describe(name, 64))


def save_run(folder, name='tiny', image_size=16, arm='kd', student=None):
  """A workdir with a best checkpoint, as a run leaves it."""
  student = student or make_student(name, image_size)
  saved = checkpoints.Checkpoints(folder)
  saved.save_best(
    {'params': student.params, 'model_state': student.model_state},
    describe(name, image_size, arm),
  )
  saved.close()
  return student


@pytest.mark.usefixtures('tiny_models')
def test_of_an_ensemble_a_member_is_exported(tmp_path):
  save_run(tmp_path / 'run', 'tiny x2', arm='tl')
  with pytest.raises(UserError, match='tiny x2, .*run/member1 to member2$'):
    out = tmp_path / 'a.safetensors'
    export.export_run(tmp_path / 'run', 'safetensors', out)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """(workdir of a tiny run, its student)."""
  folder = tmp_path_factory.mktemp('runs') / 'kd'
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(models.MODELS, 'tiny', tiny.SPECS['tiny'])
    return folder, save_run(folder)


class TestSafetensors:
  def test_the_file_holds_the_student_and_nothing_else(self, run, tmp_path):
    workdir, student = run
    out = tmp_path / 'new' / 'tiny.safetensors'
    message = export.export_run(workdir, 'safetensors', out)
    assert f'{out}:' in message and f'{out}.json' in message
    back = torch_files.read_state_dict(out)
    params, model_state = pretrained.from_torch(student.model, back)
    assert jax.tree.all(
      jax.tree.map(
        np.array_equal,
        (params, model_state),
        (student.params, student.model_state),
      )
    )
    assert sorted(p.name for p in out.parent.iterdir()) == [
      'tiny.safetensors',
      'tiny.safetensors.json',
    ]

  def test_a_lite_student_gets_timms_keys(self, shared_dir):
    path = shared_dir / 'fixtures' / 'parity' / 'lite_to_timm_keys.json'
    table = json.loads(path.read_text())['lite0']
    student = make_student('efficientnet_lite0')
    exported = weights.state_dict(student)
    assert set(exported) == set(table.values())
    own = pretrained.to_torch(
      student.model, student.params, student.model_state
    )
    for ours, theirs in table.items():
      np.testing.assert_array_equal(exported[theirs], own[ours])

  def test_a_variant_that_timm_has_not_keeps_its_librarys_keys(self):
    student = make_student('mobilenet_v3_small')
    assert 'features.0.0.weight' in weights.state_dict(student)
    config = formats.configuration(student, 'safetensors')
    assert config['architecture'] == 'mobilenet_v3_small'
    assert config['library'] == 'torchvision'


class TestConfiguration:
  def test_lite0(self):
    student = make_student('efficientnet_lite0', 64)
    config = formats.configuration(student, 'safetensors')
    assert config == {
      'architecture': 'tf_efficientnet_lite0',
      'library': 'timm',
      'num_classes': 5,
      'num_features': 1280,
      'label_names': CLASSES,
      'licences': [],
      'pretrained_cfg': {
        'num_classes': 5,
        'input_size': [3, 64, 64],
        'interpolation': 'bilinear',
        'crop_pct': 0.9,
        'crop_mode': 'center',
        # The package's own, not timm's 0.5.
        'mean': [127 / 255] * 3,
        'std': [128 / 255] * 3,
        'first_conv': 'conv_stem',
        'classifier': 'classifier',
      },
    }

  def test_a_distilled_transformer_has_two_heads_and_any_size(self):
    student = make_student('deit_tiny_distilled_patch16_224', 64)
    config = formats.configuration(student, 'safetensors')
    assert config['architecture'] == 'deit_tiny_distilled_patch16_224'
    assert config['model_args'] == {'dynamic_img_size': True}
    assert config['pretrained_cfg']['classifier'] == ['head', 'head_dist']
    assert config['pretrained_cfg']['first_conv'] == 'patch_embed.proj'

  def test_positions_of_another_grid_say_of_which(self):
    name = 'deit_tiny_distilled_patch16_224'
    model = models.create_model(name, num_classes=len(CLASSES))
    model = functional.with_positions(model, 2 + 36)
    student = students.Student(model, *random_variables(model), describe(name))
    config = formats.configuration(student, 'safetensors')
    expected = {'dynamic_img_size': True, 'img_size': 96}
    assert config['model_args'] == expected

  @pytest.mark.parametrize(
    ('format', 'shape'),
    [('onnx', ['batch', 3, 16, 16]), ('stablehlo', ['batch', 16, 16, 3])],
  )
  def test_other_formats_say_what_they_take(self, format, shape):
    config = formats.configuration(make_student('tiny'), format)
    assert config['input']['shape'] == shape
    assert config['folded_norms'] is False


class TestStableHlo:
  @pytest.mark.parametrize('fold_norm', [False, True])
  def test_the_program_gives_the_students_logits(self, fold_norm, run):
    workdir, student = run
    exported = stablehlo.convert(
      students.load_student(workdir, fold_norm=fold_norm)
    )
    assert set(exported.platforms) == {'cpu', 'cuda', 'tpu'}
    assert exported.in_avals[0].shape[1:] == (16, 16, 3)
    assert_logits(exported.call, student)

  def test_the_file_gives_the_students_logits(self, run, tmp_path):
    pytest.importorskip('flatbuffers')
    workdir, student = run
    out = tmp_path / 'tiny.stablehlo'
    message = export.export_run(workdir, 'stablehlo', out)
    assert 'differs from the student by at most' in message
    content = bytearray(out.read_bytes())
    assert_logits(jax_export.deserialize(content).call, student)
    config = json.loads((tmp_path / 'tiny.stablehlo.json').read_text())
    assert config['input']['shape'] == ['batch', 16, 16, 3]

  def test_a_model_that_differs_is_not_written(self, run):
    student = run[1]
    images = []

    def wrong(x):
      images.append(x)
      return jax.jit(student.logits)(x) + (0.01 if len(images) == 2 else 0.0)

    out = pathlib.Path('tiny.stablehlo')
    with pytest.raises(RuntimeError, match='is not written: a runtime differs'):
      students.checked(student, wrong, out, 'a runtime')
    assert [len(x) for x in images] == [1, 3]


def assert_logits(function, student):
  images = np.random.default_rng(7).normal(size=(5, 16, 16, 3))
  images = images.astype(np.float32)
  logits = np.asarray(function(images))
  assert logits.shape == (5, len(CLASSES)) and np.ptp(logits) > 0.1
  expected = jax.jit(student.logits)(images)
  np.testing.assert_allclose(logits, expected, atol=1e-5)


class TestFolding:
  @pytest.mark.parametrize('name', ['tiny', 'vgg11_bn', 'densenet121'])
  def test_structure(self, name):
    model = models.create_model(name, num_classes=5)
    params, model_state = jax.tree.map(
      lambda x: np.broadcast_to(np.float32(1), x.shape),
      (model.params_shape, model.model_state_shape),
    )
    folded, new_params, new_state = folding.fold_norms(
      model, params, model_state
    )
    assert jax.tree.structure(new_params) == jax.tree.structure(
      folded.params_shape
    )
    assert jax.tree.structure(new_state) == jax.tree.structure(
      folded.model_state_shape
    )
    left = len(jax.tree.leaves(new_state)) // 2
    # DenseNet's norms are before convolutions, but for one in each layer.
    assert left == (62 if name == 'densenet121' else 0)

  def test_equal_logits(self):
    student = make_student('tiny')
    folded, params, model_state = folding.fold_norms(
      student.model, student.params, student.model_state
    )
    images = students.sample_images(student, 2)

    @jax.jit
    def both(images):
      outputs, _ = folded.apply(params, model_state, images)
      return student.logits(images), outputs['logits']

    expected, logits = both(images)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-5)

  def test_a_transformer_has_nothing_to_fold(self):
    student = make_student('vit_tiny_patch16_224')
    with pytest.raises(ValueError, match='has no BatchNorm after'):
      folding.fold_norms(student.model, student.params, student.model_state)


class TestBranches:
  """A student that is trained in branches, fused to a file for timm."""

  @pytest.fixture
  def small(self, tmp_path, monkeypatch):
    design = mobileone.Design((16, 16, 32, 32), 2, depths=(1, 1, 1, 1))
    for name, fused in (('small', False), ('small_fused', True)):
      spec = mobileone._spec(dataclasses.replace(design, fused=fused))
      monkeypatch.setitem(models.MODELS, name, spec)
      monkeypatch.setitem(models.MODELS, f'timm/{name}', spec)
    return tmp_path / 'run', save_run(tmp_path / 'run', 'small', 64)

  def test_the_file_has_the_names_of_the_fused_form(self, small, tmp_path):
    folder, student = small
    out = tmp_path / 'a.safetensors'
    message = export.export_run(folder, 'safetensors', out, fold_norm=True)
    assert 'keys of timm/small_fused' in message
    fused, *variables = folding.fuse(
      student.model, student.params, student.model_state
    )
    back = torch_files.read_state_dict(out)
    assert 'stages.0.1.reparam_conv.bias' in back
    jax.tree.map(
      np.testing.assert_array_equal,
      back,
      pretrained.to_torch(fused, *variables),
    )
    # Without the norms of two branches and of the identity.
    left_out = tmp_path / 'b.safetensors'
    export.export_run(folder, 'safetensors', left_out)
    assert left_out.stat().st_size > out.stat().st_size

  def test_what_lies_beside_it_says_the_form(self, small, tmp_path):
    out = tmp_path / 'a.safetensors'
    export.export_run(small[0], 'safetensors', out, fold_norm=True)
    config = json.loads((tmp_path / 'a.safetensors.json').read_text())
    assert config['architecture'] == 'small' and config['fused'] is True
    first = config['pretrained_cfg']['first_conv']
    assert first == 'stem.reparam_conv'
    keep = {'key': jax.random.key(0), 'head': 'keep', 'class_names': CLASSES}
    fused = models.create_model('small_fused', num_classes=5)
    found = loading.load(fused, str(out), **keep)
    assert found.source.networks == ('timm/small_fused',)
    with pytest.raises(ValueError, match='are of timm/small_fused, another'):
      loading.load(small[1].model, str(out), **keep)

  def test_in_branches_it_has_two_first_convolutions(self, small):
    config = formats.configuration(small[1], 'safetensors')
    assert 'fused' not in config
    assert config['pretrained_cfg']['first_conv'] == [
      'stem.conv_kxk.0.conv',
      'stem.conv_scale.conv',
    ]

  def test_a_fused_student_is_written_as_it_is(self, small, tmp_path):
    save_run(tmp_path / 'other', 'small_fused', 64)
    out = tmp_path / 'a.safetensors'
    with pytest.raises(UserError, match='folded norms fit no file'):
      export.export_run(tmp_path / 'other', 'safetensors', out, fold_norm=True)
    export.export_run(tmp_path / 'other', 'safetensors', out)
    config = json.loads((tmp_path / 'a.safetensors.json').read_text())
    assert config['architecture'] == 'small' and config['fused'] is True


class TestMistakes:
  @pytest.mark.parametrize(
    ('format', 'name', 'fold_norm', 'message'),
    [
      ('tflite', 'a.tflite', False, "unknown format 'tflite'; accepted: saf"),
      ('onnx', 'a.pth', False, 'needs the suffix .onnx'),
      ('safetensors', 'a.safetensors', True, 'folded norms fit no'),
    ],
  )
  def test_arguments(self, format, name, fold_norm, message, run, tmp_path):
    with pytest.raises(UserError, match=message):
      export.export_run(run[0], format, tmp_path / name, fold_norm=fold_norm)

  @pytest.mark.parametrize(
    ('format', 'opset', 'message'),
    [
      ('onnx', 12, '--opset 12; accepted: 13 to 26'),
      ('onnx', 27, '--opset 27; accepted: 13 to 26'),
      ('onnx', 0, '--opset 0; accepted: 13 to 26'),
      ('onnx', -1, '--opset -1; accepted: 13 to 26'),
      ('stablehlo', 17, '--opset 17: a stablehlo file has no operator set'),
      ('safetensors', 23, '--opset 23: a safetensors file has no operator'),
    ],
  )
  def test_operator_sets(self, format, opset, message, run, tmp_path):
    out = tmp_path / f'a.{format}'
    with pytest.raises(UserError, match=message):
      export.export_run(run[0], format, out, opset=opset)

  @pytest.mark.parametrize(
    ('arguments', 'expected'),
    [([], 23), (['--opset', '13'], 13), (['--opset=26'], 26)],
  )
  def test_the_operator_set_reaches_the_converter(
    self, arguments, expected, run, tmp_path, monkeypatch
  ):
    folder, student = run
    asked = []

    def convert(function, image_size, opset=onnx.DEFAULT_OPSET):
      asked.append(opset)
      return b'a file'

    monkeypatch.setattr(onnx, 'convert', convert)
    monkeypatch.setattr(onnx, 'described', lambda content, student: content)
    monkeypatch.setattr(onnx, 'load', lambda path, out: jax.jit(student.logits))
    free = dataclasses.replace(formats.FORMATS['onnx'], needs=())
    monkeypatch.setitem(formats.FORMATS, 'onnx', free)
    out = tmp_path / 'a.onnx'
    command.main(
      [f'--checkpoint={folder}', '--format=onnx', f'--out={out}', *arguments]
    )
    assert asked == [expected]

  def test_a_teacher_is_never_exported(self, tmp_path):
    save_run(tmp_path / 'teacher', arm='teacher')
    with pytest.raises(UserError, match='is the run of a teacher'):
      export.export_run(
        tmp_path / 'teacher', 'safetensors', tmp_path / 'a.safetensors'
      )

  def test_a_run_without_an_arm_is_not_taken_for_a_students(self, tmp_path):
    save_run(tmp_path / 'run')
    change_description(tmp_path / 'run', arm=None)
    with pytest.raises(UserError, match='metadata: it lacks arm'):
      export.export_run(
        tmp_path / 'run', 'safetensors', tmp_path / 'a.safetensors'
      )

  def test_a_missing_converter_names_the_command(
    self, run, tmp_path, monkeypatch
  ):
    needy = dataclasses.replace(
      formats.FORMATS['onnx'], needs=('jax2no_such', 'numpy')
    )
    monkeypatch.setitem(formats.FORMATS, 'onnx', needy)
    with pytest.raises(
      UserError, match='needs jax2no_such, .*requirements-export.txt'
    ):
      export.export_run(run[0], 'onnx', tmp_path / 'a.onnx')

  def test_the_command_prints_one_line_and_exits_with_2(self, tmp_path, capsys):
    arguments = ['--checkpoint', str(tmp_path), '--format', 'safetensors']
    with pytest.raises(SystemExit) as stop:
      command.main([*arguments, '--out', str(tmp_path / 'a.safetensors')])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith('error: no checkpoint in')


def test_the_door_imports_nothing_heavy():
  code = (
    'import sys; from tlkd_jax import export\n'
    'assert callable(export.export_run)\n'
    "assert not {'jax', 'numpy', 'orbax'} & set(sys.modules)"
  )
  root = pathlib.Path(__file__).resolve().parent.parent
  subprocess.run([sys.executable, '-c', code], cwd=root, check=True)


# --- With the other libraries ---


@pytest.mark.slow
@pytest.mark.parametrize(
  ('fold_norm', 'opset'), [(False, None), (True, None), (False, 13), (True, 26)]
)
@pytest.mark.parametrize('name', ['mobilenetv2_050', 'mobilenet_v3_small'])
def test_onnxruntime_gives_the_students_logits(
  name, fold_norm, opset, tmp_path
):
  pytest.importorskip('jax2onnx', exc_type=ImportError)
  onnxruntime = pytest.importorskip('onnxruntime')
  student = save_run(tmp_path / 'run', name, 32)
  out = tmp_path / 'student.onnx'
  export.export_run(
    tmp_path / 'run', 'onnx', out, fold_norm=fold_norm, opset=opset
  )
  # No second file with weights that would have to be moved along.
  assert sorted(p.name for p in tmp_path.glob('student*')) == [
    'student.onnx',
    'student.onnx.json',
  ]
  session = onnxruntime.InferenceSession(
    out.read_bytes(), providers=['CPUExecutionProvider']
  )
  images = students.sample_images(student, 4)
  (logits,) = session.run(
    ['logits'], {'images': images.transpose(0, 3, 1, 2).copy()}
  )
  expected = np.asarray(jax.jit(student.logits)(images))
  np.testing.assert_allclose(
    logits, expected, atol=1e-4 * np.abs(expected).max()
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'image_size'),
  [
    ('efficientnet_lite0', 64),
    ('mobilenet_v2', 64),
    ('resnet18', 64),
    ('vit_tiny_patch16_224', 64),
    ('deit_tiny_distilled_patch16_224', 224),
    ('regnet_y_400mf', 64),
    ('torchvision/convnext_tiny', 64),
    ('densenet121', 64),
  ],
)
def test_timm_loads_the_student(name, image_size, tmp_path):
  torch = pytest.importorskip('torch', exc_type=ImportError)
  timm = pytest.importorskip('timm', exc_type=ImportError)
  student = save_run(tmp_path / 'run', name, image_size)
  out = tmp_path / 'model.safetensors'
  export.export_run(tmp_path / 'run', 'safetensors', out)
  config = json.loads((tmp_path / 'model.safetensors.json').read_text())
  model = timm.create_model(
    config['architecture'],
    num_classes=config['num_classes'],
    checkpoint_path=str(out),
    **config.get('model_args', {}),
  )
  images = students.sample_images(student, 2)
  expected = np.asarray(jax.jit(student.logits)(images))
  assert_torch_agrees(torch, model, images, expected)
  # As a folder that timm and its hub read by itself.
  (tmp_path / 'config.json').write_text(json.dumps(config))
  model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
  assert_torch_agrees(torch, model, images, expected)
  assert model.pretrained_cfg['mean'] == config['pretrained_cfg']['mean']
  assert list(model.pretrained_cfg['label_names']) == CLASSES


@pytest.mark.slow
@pytest.mark.parametrize('name', BRANCHED)
def test_fused_branches_are_a_smaller_graph_of_the_same_logits(name, tmp_path):
  pytest.importorskip('jax2onnx', exc_type=ImportError)
  pytest.importorskip('onnxruntime')
  student = save_run(tmp_path / 'run', name, 64, student=make_branched(name))
  images = students.sample_images(student, 8)
  expected = np.asarray(jax.jit(student.logits)(images))
  for format, load in (
    ('onnx', onnx.load),
    (
      'stablehlo',
      lambda path: jax_export.deserialize(bytearray(path.read_bytes())).call,
    ),
  ):
    sizes = []
    for fold_norm in (False, True):
      out = tmp_path / f'{fold_norm}.{format}'
      export.export_run(tmp_path / 'run', format, out, fold_norm=fold_norm)
      sizes.append(out.stat().st_size)
      logits = np.asarray(load(out)(images))
      np.testing.assert_allclose(
        logits, expected, atol=1e-4 * np.abs(expected).max()
      )
      np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))
    assert sizes[1] < sizes[0]
    config = json.loads((tmp_path / f'True.{format}.json').read_text())
    assert config['architecture'] == name and config['fused'] is True


@pytest.mark.slow
@pytest.mark.parametrize('name', BRANCHED)
def test_timm_loads_the_fused_student(name, tmp_path):
  torch = pytest.importorskip('torch', exc_type=ImportError)
  timm = pytest.importorskip('timm', exc_type=ImportError)
  torch_safetensors = pytest.importorskip('safetensors.torch')
  student = save_run(tmp_path / 'run', name, 64, student=make_branched(name))
  out = tmp_path / 'model.safetensors'
  export.export_run(tmp_path / 'run', 'safetensors', out, fold_norm=True)
  config = json.loads((tmp_path / 'model.safetensors.json').read_text())
  model = timm.utils.reparameterize_model(
    timm.create_model(config['architecture'], num_classes=config['num_classes'])
  )
  model.load_state_dict(torch_safetensors.load_file(out))
  images = students.sample_images(student, 2)
  expected = np.asarray(jax.jit(student.logits)(images))
  assert_torch_agrees(torch, model, images, expected)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['vgg11_bn', 'efficientnet_v2_s'])
def test_torchvision_loads_the_student(name, tmp_path):
  torch = pytest.importorskip('torch', exc_type=ImportError)
  torchvision = pytest.importorskip('torchvision', exc_type=ImportError)
  torch_safetensors = pytest.importorskip('safetensors.torch')
  student = save_run(tmp_path / 'run', name, 64)
  out = tmp_path / 'model.safetensors'
  export.export_run(tmp_path / 'run', 'safetensors', out)
  config = json.loads((tmp_path / 'model.safetensors.json').read_text())
  assert config['library'] == 'torchvision'
  model = torchvision.models.get_model(
    config['architecture'], num_classes=config['num_classes']
  )
  model.load_state_dict(torch_safetensors.load_file(out))
  images = students.sample_images(student, 2)
  expected = np.asarray(jax.jit(student.logits)(images))
  assert_torch_agrees(torch, model, images, expected)


def assert_torch_agrees(torch, model, images, expected):
  model.eval()
  with torch.no_grad():
    logits = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
  difference = np.abs(logits.numpy() - expected).max() / expected.std()
  print(f'max difference / std {difference:.1e}')
  assert difference < 5e-5
