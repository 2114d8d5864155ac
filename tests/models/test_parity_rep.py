"""Networks that are trained in branches, in both forms, against timm."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

from tests.models import parity
from tlkd_jax import models
from tlkd_jax.models.describe import describe
from tlkd_jax.models.families import fastvit, mobileone, repvit
from tlkd_jax.models.weights import folding, loading, pretrained, surgery
from tlkd_jax.runtime.trees import flatten

FIXTURES = pathlib.Path(__file__).parent.parent / 'fixtures' / 'parity'
CASES = ('timm__fastvit_t8', 'timm__mobileone_s0', 'timm__repvit_m0_9')
# Of blocks so much alike that each once compiles faster than the whole.
BY_BLOCKS = {'timm/mobileone_s0', 'timm/repvit_m0_9'}
# By tests/fixtures/make_timm.py: attention, two forms of squeeze-excite, one
# branch, another depth.
MORE = (
  'timm__fastvit_mci0@64x96',
  'timm__fastvit_sa12@64x96',
  'timm__mobileone_s4@64x96',
  'timm__repvit_m1_1@64x96',
)
LARGE = ('timm__fastvit_mci0@64x96', 'timm__mobileone_s4@64x96')

# Of each family one network with all its parts, at 64 x 96 pixels.
_WIDTHS = (16, 32, 64, 128)
SMALL = {
  'repvit': (repvit, repvit.Design(_WIDTHS, (2, 1, 1, 1))),
  'mobileone': (
    mobileone,
    mobileone.Design(
      _WIDTHS, count=2, squeezed=(0, 0, 1, 1), depths=(2, 1, 1, 1)
    ),
  ),
  'fastvit': (
    fastvit,
    fastvit.Design((2, 1, 1, 1), _WIDTHS, 2, attends=True, active=True),
  ),
}

# Entries of the state dict and parameters in timm 1.0.31, in branches and as
# its `reparameterize_model` leaves them.
FIGURES = {
  'fastvit_ma36': (1264, 44068004, 538, 43984632),
  'fastvit_mci0': (784, 11907176, 310, 11857704),
  'fastvit_mci1': (1436, 22041832, 584, 21961256),
  'fastvit_mci2': (1572, 36440360, 636, 36328120),
  'fastvit_s12': (530, 9473576, 182, 9428712),
  'fastvit_sa12': (504, 11580968, 198, 11545320),
  'fastvit_sa24': (884, 21554216, 368, 21501288),
  'fastvit_sa36': (1264, 31527464, 538, 31457256),
  'fastvit_t12': (530, 7553704, 182, 7508840),
  'fastvit_t8': (462, 4026232, 156, 3996040),
  'mobileone_s0': (1323, 5293272, 88, 2078504),
  'mobileone_s1': (562, 4825192, 88, 4764840),
  'mobileone_s2': (562, 7884648, 88, 7808168),
  'mobileone_s3': (562, 10170600, 88, 10078312),
  'mobileone_s4': (610, 14951248, 136, 14838352),
  'repvit_m0_9': (713, 5489328, 208, 5067056),
  'repvit_m1_0': (713, 7302796, 208, 6810312),
  'repvit_m1_1': (659, 8802912, 192, 8244312),
  'repvit_m1_5': (1145, 14644432, 336, 14049992),
  'repvit_m2_3': (1469, 23688792, 432, 22926792),
}


# Module scope keeps the tests of one fixture together, which then load it once.
@pytest.fixture(params=CASES, scope='module')
def case(request) -> tuple[str, pathlib.Path]:
  return name_of(request.param), FIXTURES / f'{request.param}.npz'


def name_of(fixture: str) -> str:
  return fixture.partition('@')[0].replace('__', '/')


def test_logits_and_features_match_the_reference_in_float64(case):
  assert_agrees(*case)


def test_weights_survive_the_round_trip(case):
  parity.assert_round_trip(*case)


@pytest.mark.slow
def test_macs_are_those_of_all_branches(case):
  name, path = case
  meta = parity.load(path)[0]
  figures = describe(name, tuple(meta['input_hw']))
  assert figures.macs == meta['macs_per_image']
  assert figures.attention_macs == 0


def assert_agrees(name, path):
  options = {'x64': True, 'by_blocks': name in BY_BLOCKS}
  assert parity.logits_error(name, path, **options) < 1e-6
  outputs = parity.outputs(name, path, **options)
  reference = parity.load(path)[2]
  assert parity.error(outputs['pre_logits'], reference['features']) < 5e-5
  assert tuple(outputs['features']) == models.MODELS[name].stages
  for i, mean in enumerate(outputs['features'].values()):
    assert parity.error(mean, reference[f'stage/stages.{i}']) < 5e-5, i


@pytest.mark.slow
@pytest.mark.parametrize('fixture', MORE)
def test_further_variants_match_the_reference(fixture):
  name, path = name_of(fixture), FIXTURES / f'{fixture}.npz'
  assert_agrees(name, path)
  parity.assert_round_trip(name, path)


@pytest.mark.slow
@pytest.mark.parametrize('fixture', CASES)
def test_logits_match_the_reference_in_float32(fixture):
  path = FIXTURES / f'{fixture}.npz'
  assert parity.logits_error(name_of(fixture), path, x64=False) < 5e-5


def variables_of(model, state_dict, dtype):
  params, model_state = pretrained.from_torch(model, state_dict)
  return jax.tree.map(lambda x: x.astype(dtype), (params, model_state))


@pytest.mark.slow
@pytest.mark.parametrize(
  'fixture, x64, bound',
  [(fixture, True, 1e-10) for fixture in CASES + MORE]
  + [(fixture, False, 5e-5) for fixture in CASES],
)
def test_the_fused_form_gives_the_logits_of_the_reference(fixture, x64, bound):
  meta, state_dict, arrays = parity.load(FIXTURES / f'{fixture}.npz')
  classes = meta['num_classes']
  model = models.create_model(name_of(fixture), num_classes=classes)
  dtype = np.float64 if x64 else np.float32
  fused, *variables = folding.fuse(
    model, *variables_of(model, state_dict, dtype)
  )
  with jax.enable_x64(x64):
    images = parity.fill_rule.make_input(*meta['input_hw']).astype(dtype)
    apply = jax.jit(lambda *v: fused.apply(*v)[0]['logits'])
    logits = np.asarray(apply(*variables, images))
  assert logits.dtype == dtype
  assert parity.error(logits, arrays['logits64']) < bound


@pytest.mark.parametrize(
  'fixture',
  [
    pytest.param(fixture, marks=pytest.mark.slow if fixture in LARGE else ())
    for fixture in MORE
  ],
)
def test_fused_weights_are_those_of_timm(fixture):
  meta, state_dict, arrays = parity.load(FIXTURES / f'{fixture}.npz')
  classes = meta['num_classes']
  model = models.create_model(name_of(fixture), num_classes=classes)
  fused, *variables = folding.fuse(
    model, *variables_of(model, state_dict, np.float32)
  )
  ours = pretrained.to_torch(fused, *variables)
  entries = json.loads(str(arrays['fused']))
  assert {k: list(v.shape) for k, v in ours.items()} == {
    name: shape for name, shape, _ in entries
  }
  for (name, *_), expected in zip(entries, arrays['fused_sums'], strict=True):
    value = ours[name].astype(np.float64)
    size = np.abs(value).sum()
    assert abs(value.sum() - expected) <= 1e-6 * size, name
  again = pretrained.to_torch(fused, *pretrained.from_torch(fused, ours))
  jax.tree.map(np.testing.assert_array_equal, again, ours)


@pytest.mark.slow
@pytest.mark.parametrize('name', FIGURES)
def test_entries_and_parameters_of_every_variant(name):
  found = []
  for suffix in ('', '_fused'):
    model = models.create_model(f'timm/{name}{suffix}')
    keys = [leaf.key for _, leaf in pretrained.leaf_table(model).values()]
    counters = sum(key.endswith('.running_var') for key in keys)
    found.append(len(keys) + counters)
    found.append(pretrained.count_params(model.params_shape))
  assert tuple(found) == FIGURES[name]


def test_every_variant_is_in_the_table():
  families = (repvit, mobileone, fastvit)
  names = {name for family in families for name in family.VARIANTS}
  assert names == {f'timm/{n}{s}' for n in FIGURES for s in ('', '_fused')}


# --- Both forms of small networks ---


@pytest.fixture(params=SMALL)
def small(request, monkeypatch):
  """A small network of a family, with weights in which no norm is trivial."""
  return register(request.param, monkeypatch)


@functools.cache
def specs(family):
  """Of both forms; the same objects again, so that a model is traced once."""
  module, design = SMALL[family]
  return {
    name: module._spec(dataclasses.replace(design, fused=fused))
    for name, fused in (('small', False), ('small_fused', True))
  }


def register(family, monkeypatch):
  for name, spec in specs(family).items():
    monkeypatch.setitem(models.MODELS, name, spec)
    monkeypatch.setitem(models.MODELS, f'timm/{name}', spec)
  model = models.create_model('small', num_classes=5)
  return model, random_variables(model)


def random_variables(model, dtype=np.float32):
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key == 'kernel':
      scale = np.prod(leaf.shape[:-1]) ** -0.5
      return (scale * rng.normal(size=leaf.shape)).astype(dtype)
    return (0.5 + rng.uniform(size=leaf.shape)).astype(dtype)

  shapes = model.params_shape, model.model_state_shape
  return jax.tree_util.tree_map_with_path(draw, shapes)


def test_both_forms_are_one_function(small):
  model, _ = small
  variables = random_variables(model, np.float64)
  fused, *fused_variables = folding.fuse(model, *variables)
  images = np.random.default_rng(1).normal(size=(2, 64, 96, 3))

  def both(images, variables, fused_variables):
    return (
      model.apply(*variables, images)[0],
      fused.apply(*fused_variables, images)[0],
    )

  with jax.enable_x64(True):
    expected, found = jax.jit(both)(images, variables, fused_variables)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for name, value in flatten(expected).items():
      value = np.asarray(value)
      assert value.std() > 1e-3, name
      assert parity.error(np.asarray(flatten(found)[name]), value) < 1e-10, name


@pytest.mark.parametrize(
  ('family', 'kept', 'left'),
  [('repvit', 0, 0), ('mobileone', 0, 0), ('fastvit', 6, 1)],
)
def test_norms_that_stay(family, kept, left, monkeypatch):
  """timm keeps those of FastViT's MLPs; attention's follows no convolution."""
  model, variables = register(family, monkeypatch)
  for fold, count in ((folding.fuse, kept), (folding.fold_norms, left)):
    folded, params, model_state = fold(model, *variables)
    assert jax.tree.structure(params) == jax.tree.structure(folded.params_shape)
    assert jax.tree.structure(model_state) == jax.tree.structure(
      folded.model_state_shape
    )
    assert len(jax.tree.leaves(model_state)) == 2 * count
    assert folded.num_classes == 5


def test_what_has_no_branches_is_not_fused():
  model = models.create_model('convnext_atto')
  with pytest.raises(
    ValueError, match='convnext_atto is not trained in branch'
  ):
    folding.fuse(model, {}, {})


def test_a_fused_network_keeps_the_pixels_of_its_weights(small):
  model, variables = small
  model = loading.with_preprocessing(model, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
  spec = folding.fuse(model, *variables)[0].spec
  assert (spec.mean, spec.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


def test_bfloat16_images_give_bfloat16_features(small):
  for name in ('small', 'small_fused'):
    model = models.create_model(name, num_classes=7, in_channels=4)
    images = jax.ShapeDtypeStruct((2, 64, 96, 4), jnp.bfloat16)
    outputs, _ = jax.eval_shape(
      model.apply, model.params_shape, model.model_state_shape, images
    )
    assert outputs['logits'].shape == (2, 7)
    assert outputs['logits'].dtype == jnp.float32
    assert outputs['pre_logits'].dtype == jnp.bfloat16
    sizes = [v.shape[1:3] for v in outputs['features'].values()]
    # MobileOne's first stage strides.
    assert sizes[-3:] == [(8, 12), (4, 6), (2, 3)]
    for value in outputs['features'].values():
      assert value.dtype == jnp.bfloat16


@pytest.mark.parametrize('channels', [1, 4])
@pytest.mark.parametrize('form', ['small', 'small_fused'])
def test_every_branch_of_the_first_layer_is_adapted(small, form, channels):
  model = models.create_model(form, num_classes=5)
  variables = random_variables(model)
  state_dict = pretrained.to_torch(model, *variables)
  other = models.create_model(form, num_classes=5, in_channels=channels)
  adapted = surgery.adapt_state_dict(other, state_dict)
  params = flatten(pretrained.from_torch(other, adapted)[0])
  original = flatten(variables[0])
  changed = [k for k in params if params[k].shape != original[k].shape]
  stems = (model.spec.stem, *model.spec.more_stems)
  assert changed == [f'{stem}.kernel' for stem in sorted(stems)]
  for path in changed:
    expected = surgery.adapt_stem(original[path], channels)
    np.testing.assert_array_equal(params[path], expected)


# --- Files ---


@pytest.mark.parametrize('prefix', ['', 'model.'])
def test_a_file_of_the_other_form_is_named(small, prefix, tmp_path):
  model, variables = small
  fused, *fused_variables = folding.fuse(model, *variables)
  files = {}
  for one, values in ((model, variables), (fused, fused_variables)):
    state_dict = pretrained.to_torch(one, *values)
    files[one.name] = tmp_path / f'{one.name}.safetensors'
    save_file({prefix + k: v for k, v in state_dict.items()}, files[one.name])
  load = functools.partial(loading.load, key=jax.random.key(0), head='keep')
  for one, values in ((model, variables), (fused, fused_variables)):
    found = load(one, str(files[one.name]))
    jax.tree.map(
      np.testing.assert_array_equal,
      (found.params, found.model_state),
      tuple(values),
    )
  if prefix:
    return
  with pytest.raises(ValueError, match='those of small_fused, whose branches'):
    load(model, str(files['small_fused']))
  with pytest.raises(ValueError, match='those of small, in branches'):
    load(fused, str(files['small']))


@pytest.mark.parametrize(
  'lost', [('head_dist.',), ('head_dist.l.', 'head_dist.bn.')]
)
def test_a_repvit_that_was_fine_tuned_with_one_head_is_read(lost, monkeypatch):
  model, variables = register('repvit', monkeypatch)
  state_dict = {
    key: value
    for key, value in pretrained.to_torch(model, *variables).items()
    if not any(part in key for part in lost)
  }
  adapted = surgery.adapt_state_dict(model, state_dict)
  params, model_state = pretrained.from_torch(model, adapted)
  _, fused, _ = folding.fuse(model, params, model_state)
  norm = {
    **variables[0]['classifier']['head_norm'],
    **variables[1]['classifier']['head_norm'],
  }
  own = variables[0]['classifier']['head']
  features = np.random.default_rng(2).normal(size=(3, _WIDTHS[-1]))
  normal = (features - norm['mean']) / np.sqrt(norm['var'] + 1e-5)
  expected = (normal * norm['scale'] + norm['bias']) @ own['kernel']
  expected += own['bias']
  head = fused['classifier']['head']
  found = features @ head['kernel'] + head['bias']
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# --- Training ---


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'fused'),
  [
    ('repvit_m0_9', False),
    ('mobileone_s1', False),
    ('fastvit_sa12', False),
    ('repvit_m0_9', True),
  ],
)
def test_the_loss_falls(name, fused):
  model = models.create_model(name, num_classes=4, drop_path=0.1)
  params, model_state = jax.jit(model.init)(jax.random.key(0))
  images = jax.random.normal(jax.random.key(1), (8, 64, 64, 3))
  if fused:
    # Without norms random weights say nothing: it begins as files of it do,
    # from a network whose norms have seen images.
    seen = jax.jit(
      lambda state: model.apply(params, state, images, norm_train=True)[1]
    )
    for _ in range(40):
      model_state = seen(model_state)
    model, params, model_state = folding.fuse(model, params, model_state)
  labels = jnp.arange(8) % 4
  optimizer = optax.adam(1e-3)

  def loss_of(params, model_state, key):
    outputs, model_state = model.apply(
      params, model_state, images, train=True, norm_train=True, key=key
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(
      outputs['logits'], labels
    )
    return losses.mean(), model_state

  @jax.jit
  def step(params, model_state, state, key):
    (loss, model_state), grads = jax.value_and_grad(loss_of, has_aux=True)(
      params, model_state, key
    )
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), model_state, state, loss

  state = optimizer.init(params)
  losses = []
  for number in range(20):
    params, model_state, state, loss = step(
      params, model_state, state, jax.random.key(number)
    )
    losses.append(float(loss))
  assert np.all(np.isfinite(losses))
  assert np.mean(losses[-3:]) < 0.7 * losses[0], losses
