"""What holds for every loss: finite, no teacher gradient, one device or four.

The tests loop over the dict, so that a new loss is covered by its line there.
A loss is compiled once for each precision; all inputs share one shape.
"""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.outputs import (
  BATCH,
  NAMES,
  TEACHER_STAGES,
  call,
  make_extras,
  make_outputs,
  make_sides,
  run,
  shapes_of,
)
from tlkd_jax import losses
from tlkd_jax.losses import LOSSES


def extremes(student, teacher):
  """Name -> (student outputs, teacher outputs)."""

  def sides(s, t):
    return jax.tree.map(s, student), jax.tree.map(t, teacher)

  def same(x):
    return x

  def confident(x):
    return np.float32(1000) * np.sign(x)

  def ones(x):
    return np.full_like(x, 3.3)

  def duplicates(x):
    return np.tile(x[:1], (BATCH,) + (1,) * (x.ndim - 1))

  def huge(x):
    return np.float32(1e20) * x

  def mixed(x):
    factors = np.array([0, 1e20, 1e-20, 1], np.float32)
    return x * factors.reshape((BATCH,) + (1,) * (x.ndim - 1))

  return {
    'both confident': sides(confident, lambda x: -confident(x)),
    'confident student': sides(confident, same),
    'confident teacher': sides(same, confident),
    'zero student': sides(np.zeros_like, same),
    'zero teacher': sides(same, np.zeros_like),
    'both zero': sides(np.zeros_like, np.zeros_like),
    'constant student': sides(ones, same),
    'both constant': sides(ones, lambda x: -ones(x)),
    'duplicates': sides(duplicates, same),
    'both duplicates': sides(duplicates, duplicates),
    'huge student': sides(huge, same),
    'huge teacher': sides(same, huge),
    'largest': sides(lambda x: np.float32(3e38) * np.sign(x), huge),
    'tiny': sides(lambda x: np.float32(1e-20) * x, same),
    'mixed': sides(mixed, same),
    'mixed teacher': sides(same, mixed),
  } | ({} if shapes_of(student) != shapes_of(teacher) else {
    'equal': (student, student),
    'opposite': (student, jax.tree.map(lambda x: -x, student)),
  })  # fmt: skip


# One loss for each way that outputs are read; test_computes_in_float32 shows
# for all that bfloat16 changes the inputs alone.
IN_BFLOAT16 = ['kd', 'logit_mse', 'at', 'rkd', 'srd', 'srrl', 'crd']


@pytest.mark.parametrize(
  'name, dtype',
  [(name, jnp.float32) for name in NAMES]
  + [(name, jnp.bfloat16) for name in IN_BFLOAT16],
)
def test_finite_for_any_finite_input(name, dtype):
  student, teacher = make_sides(name)
  extras = make_extras(name)
  for case, sides in extremes(student, teacher).items():
    sides = jax.tree.map(lambda x: np.asarray(x, dtype), sides)
    (loss, memory), gradients = run(name, *sides, *extras)
    assert loss.dtype == jnp.float32 and loss.shape == (), case
    assert np.isfinite(loss), (case, loss)
    for path, leaf in jax.tree_util.tree_leaves_with_path((gradients, memory)):
      finite = np.all(np.isfinite(np.asarray(leaf, np.float32)))
      assert finite, (case, jax.tree_util.keystr(path), leaf)
    for leaf in jax.tree.leaves(gradients[0]):
      assert leaf.dtype == dtype
    for leaf in jax.tree.leaves(gradients[1]):
      assert not np.any(leaf), f'{case}: the teacher has a gradient'


@pytest.mark.parametrize('name', NAMES)
def test_computes_in_float32(name):
  sides = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), make_sides(name)
  )
  jaxpr = jax.make_jaxpr(functools.partial(call, name))(
    *sides, *make_extras(name)
  )
  readers = 0
  for equation in _equations(jaxpr.jaxpr):
    if any(v.aval.dtype == jnp.bfloat16 for v in equation.invars):
      assert equation.primitive.name in ('convert_element_type', 'jit')
      readers += 1
  assert readers


def _equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from _equations(inner)


# Two batch normalisations in a row multiply what constant maps, which have no
# variance, give by 1 / eps.
@pytest.mark.parametrize('name', [n for n in NAMES if n != 'reviewkd'])
def test_gradient_is_bounded_at_singular_points(name):
  """A zero or constant start (a fresh head) gives no exploding gradient."""
  student, teacher = make_sides(name)
  extras = make_extras(name)
  cases = extremes(student, teacher)
  for case in ('zero student', 'constant student', 'duplicates', 'both zero'):
    _, gradients = run(name, *cases[case], *extras)
    for leaf in jax.tree.leaves(gradients[0]):
      assert np.max(np.abs(leaf)) < 1e3, case


@pytest.mark.parametrize(
  'name',
  # Cross-entropy forms, stochastic masks, the label's own losses and CRD,
  # whose minimum is not at the teacher, are left out; AB wants a margin.
  [
    name
    for name in NAMES
    if name
    not in ('nkd', 'wsld', 'mgd', 'ce_label_smoothing', 'crd', 'ab', 'vid')
    and name not in ('srd', 'srrl', 'pseudo_label')
  ],
)
def test_least_value_is_zero_at_the_teacher(name):
  # Positive, as fitnet_convreg ends in a ReLU; not so confident that the eps
  # of dist matters.
  outputs = jax.tree.map(np.abs, make_outputs(0))
  loss, gradients = jax.jit(
    jax.value_and_grad(
      lambda s: LOSSES[name].function(s, outputs, np.arange(BATCH) % 3)
    ),
  )(outputs)
  np.testing.assert_allclose(loss, 0.0, atol=1e-6)
  if name != 'ft':  # An absolute value has a kink there.
    for leaf in jax.tree.leaves(gradients):
      np.testing.assert_allclose(leaf, 0.0, atol=1e-5)


def test_stated_minima_at_the_teacher():
  usual = make_outputs(0)

  def at_teacher(name, **arguments):
    loss_fn = functools.partial(
      LOSSES[name].function, usual, usual, None, **arguments
    )
    return jax.jit(loss_fn)()

  # Two stages with log(v) / 2 each; the cut of the logarithm.
  vid = at_teacher('vid', init_pred_var=5.0)
  np.testing.assert_allclose(vid, 2 * 0.5 * np.log(5.0), rtol=1e-6)
  np.testing.assert_allclose(at_teacher('srd'), 8 * np.log(1e-10), rtol=1e-6)
  logits = usual['logits']
  assert at_teacher('srrl', student_logits_via_teacher_head=logits) == 0.0
  assert at_teacher('mgd', lambda_mgd=0.0, key=jax.random.key(0)) == 0.0
  # Beyond the margin on the teacher's side.
  beyond = jax.tree.map(lambda x: np.where(x > 0, 2.0, -2.0), usual)
  assert LOSSES['ab'].function(beyond, usual, None) == 0.0


# The consecutive form of cc depends on the order by definition; mgd and crd
# draw per position.
ORDERED = ('cc', 'mgd', 'crd')


@pytest.mark.parametrize('name', [n for n in NAMES if n not in ORDERED])
def test_order_of_the_batch_does_not_matter(name):
  student, teacher = make_sides(name)
  extras = make_extras(name)
  # Labels are by position in `call`; this keeps them.
  order = np.array([3, 1, 2, 0])
  (loss, _), gradients = run(name, student, teacher, *extras)
  (again, _), permuted = run(
    name, *jax.tree.map(lambda x: x[order], (student, teacher)), *extras
  )
  np.testing.assert_allclose(again, loss, rtol=2e-5, atol=1e-6)
  for a, b in zip(
    jax.tree.leaves(gradients[0]), jax.tree.leaves(permuted[0]), strict=True
  ):
    scale = jnp.max(jnp.abs(a)) + 1e-6
    np.testing.assert_allclose(b / scale, a[order] / scale, atol=2e-5)


# Losses that couple the batch or hold state, and one of each other kind.
COUPLED = [
  'kd', 'dist', 'mlkd', 'sp', 'rkd', 'pkt', 'cc', 'crd', 'ofd', 'mgd',
  'fitnet_convreg',
]  # fmt: skip


@pytest.mark.parametrize('name', COUPLED)
def test_four_devices_give_what_one_gives(name):
  student, teacher = make_sides(name)
  extras = make_extras(name)
  mesh = jax.make_mesh(
    (4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  split = jax.NamedSharding(mesh, jax.P('data'))
  copied = jax.NamedSharding(mesh, jax.P())
  memory = {
    k: jax.device_put(v, split if v.ndim else copied)
    for k, v in extras[1].items()
  }
  expected = run(name, student, teacher, *extras)
  found = run(
    name,
    *jax.device_put((student, teacher), split),
    jax.device_put(extras[0], copied),
    memory,
  )
  assert len(jax.tree.leaves(found[1][0])[0].sharding.device_set) == 4
  for a, b in zip(
    jax.tree.leaves(expected), jax.tree.leaves(found), strict=True
  ):
    scale = jnp.max(jnp.abs(a)) + 1e-6
    np.testing.assert_allclose(b / scale, a / scale, atol=2e-5)


WITH_PROJECTOR = [n for n in NAMES if LOSSES[n].projector is not None]


@pytest.mark.parametrize('name', WITH_PROJECTOR)
def test_projectors_bridge_widths_and_resolutions(name):
  student, teacher = make_sides(name)
  extras = make_extras(name)
  shapes = shapes_of(extras[0])
  assert jax.tree.leaves(shapes)
  (loss, _), gradients = run(name, student, teacher, *extras)
  assert jnp.isfinite(loss)
  assert shapes_of(gradients[2]) == shapes
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients[2]):
    if 'bias' not in jax.tree_util.keystr(path):
      assert jnp.any(leaf), jax.tree_util.keystr(path)


@pytest.mark.parametrize('name', ['at', 'sp', 'nst', 'rkd', 'pkt'])
def test_losses_without_projector_bridge_widths(name):
  student = make_outputs(0)
  teacher = make_outputs(1, TEACHER_STAGES, width=9)
  loss_fn = jax.jit(LOSSES[name].function)
  assert jnp.isfinite(loss_fn(student, teacher, None))


BATCH_OF_ONE = [
  'kd', 'kd_logit_std', 'dkd', 'dkd_logit_std', 'dist', 'nkd', 'wsld', 'mlkd',
  'rkd', 'pkt', 'cc', 'sp', 'nst', 'at',
]  # fmt: skip


@pytest.mark.parametrize('name', BATCH_OF_ONE)
def test_batch_of_one_and_two_classes(name):
  student, teacher = [
    jax.tree.map(lambda x: x[:1], make_outputs(i, num_classes=2))
    for i in range(2)
  ]
  loss, gradient = jax.jit(jax.value_and_grad(LOSSES[name].function))(
    student, teacher, jnp.array([1])
  )
  assert jnp.isfinite(loss)
  assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(gradient))


def test_mistakes_are_named():
  outputs = make_outputs(0)
  with pytest.raises(ValueError, match="'rkdd'.*rkd"):
    losses.compute('rkdd', outputs, outputs, None)
  with pytest.raises(ValueError, match="'temprature'.*temperature"):
    losses.compute('kd', outputs, outputs, None, temprature=2.0)
  with pytest.raises(ValueError, match='stage9.*stage1'):
    losses.compute('at', outputs, outputs, None, stages=('stage9',))
  with pytest.raises(ValueError, match='key='):
    losses.compute('mgd', outputs, outputs, None)
  wider = make_outputs(1, TEACHER_STAGES)
  with pytest.raises(ValueError, match="5 channels.*7.*LOSSES\\['fitnet"):
    losses.compute('fitnet', outputs, wider, None)
  with pytest.raises(ValueError, match='pre_logits'):
    losses.compute('rkd', outputs, {'logits': outputs['logits']}, None)


def test_stages_are_chosen_by_name():
  student = make_outputs(0)
  teacher = make_outputs(1)
  at = jax.jit(
    LOSSES['at'].function,
    static_argnames='stages',
  )
  both = at(student, teacher, None)
  first = at(student, teacher, None, stages=('stage1',))
  second = at(student, teacher, None, stages='stage2')
  np.testing.assert_allclose(both, first + second, rtol=1e-6)
  crossed = at(student, teacher, None, stages=('stage1:stage2',))
  renamed = {'features': {'stage1': teacher['features']['stage2']}}
  np.testing.assert_allclose(
    crossed, at(student, renamed, None, stages=('stage1',)), rtol=1e-6
  )


def test_crd_negatives_are_of_other_classes():
  labels = np.random.default_rng(0).integers(0, 4, 30)
  index = np.arange(30)

  @jax.jit
  def draw(labels):
    memory = LOSSES['crd'].memory(jax.random.key(1), 30, labels, feat_dim=4)
    return losses.contrastive.draw_negatives(
      jax.random.key(2), memory, index, 200
    )

  drawn = np.asarray(draw(labels))
  assert np.all(drawn[:, 0] == index)
  assert np.all(labels[drawn[:, 1:]] != labels[:, None])
  for i in range(3):
    assert set(drawn[i, 1:]) == set(np.flatnonzero(labels != labels[i]))
  drawn = np.asarray(draw(None))
  assert np.all(drawn[:, 1:] != index[:, None])
