import jax
import numpy as np
import pytest

from tlkd_jax import models
from tlkd_jax.models.weights import (
  loading,
  pretrained,
  surgery,
  torch_files,
)
from tlkd_jax.runtime.trees import flatten


def random_state_dict(name, num_classes=1000):
  """A state dict as a file of the variant would hold it."""
  model = models.create_model(name, num_classes=num_classes)
  rng = np.random.default_rng(0)
  flat = {
    path: rng.normal(size=shape).astype(np.float32)
    for path, (shape, _) in pretrained.leaf_table(model).items()
  }
  table = pretrained.leaf_table(model)
  return {leaf.key: leaf.to_torch(flat[p]) for p, (_, leaf) in table.items()}


class TestNewHead:
  name = 'timm/deit_tiny_distilled_patch16_224'

  def params(self):
    model = models.create_model(self.name)
    state_dict = random_state_dict(self.name)
    return pretrained.from_torch(model, state_dict)[0]

  @pytest.mark.parametrize('init', surgery.HEAD_INITS)
  def test_both_heads_get_the_new_class_count_and_nothing_else_changes(
    self, init
  ):
    model = models.create_model(self.name, num_classes=7)
    old = self.params()
    new = surgery.new_head(model, old, jax.random.key(0), init)
    assert new['head']['kernel'].shape == (192, 7)
    assert new['head_distillation']['kernel'].shape == (192, 7)
    assert jax.tree.structure(new) == jax.tree.structure(model.params_shape)
    for part in ('patch', 'blocks', 'norm', 'position'):
      for a, b in zip(
        jax.tree.leaves(new[part]), jax.tree.leaves(old[part]), strict=True
      ):
        assert a is b
    assert old['head']['kernel'].shape == (192, 1000)

  def test_zero_gives_uniform_predictions(self):
    model = models.create_model(self.name, num_classes=7)
    new = surgery.new_head(model, self.params(), jax.random.key(0))
    for head in ('head', 'head_distillation'):
      assert not np.any(new[head]['kernel'])
      assert not np.any(new[head]['bias'])

  def test_small_random_is_small_differs_by_head_and_follows_the_key(self):
    model = models.create_model(self.name, num_classes=50)
    params = self.params()

    def heads(seed):
      key = jax.random.key(seed)
      new = surgery.new_head(model, params, key, 'small_random')
      assert not np.any(new['head']['bias'])
      names = ('head', 'head_distillation')
      return [np.asarray(new[name]['kernel']) for name in names]

    first, again, other = heads(0), heads(0), heads(1)
    assert 0.009 < first[0].std() < 0.011
    assert not np.array_equal(first[0], first[1])
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], other[0])

  def test_an_unknown_initialisation_is_named(self):
    model = models.create_model(self.name)
    with pytest.raises(ValueError, match="'ones'.*small_random.*zero"):
      surgery.new_head(model, {}, jax.random.key(0), 'ones')


class TestAdaptStem:
  kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 8)).astype(np.float32)

  def test_one_channel_gives_what_a_grey_rgb_image_gave(self):
    grey = np.random.default_rng(1).normal(size=(3, 3, 1))
    adapted = surgery.adapt_stem(self.kernel, 1)
    assert adapted.shape == (3, 3, 1, 8)
    np.testing.assert_allclose(
      np.tensordot(grey, adapted, 3),
      np.tensordot(np.repeat(grey, 3, axis=2), self.kernel, 3),
      rtol=1e-5,
    )

  @pytest.mark.parametrize('channels', [2, 4, 7])
  def test_other_counts_tile_rgb_and_scale(self, channels):
    adapted = surgery.adapt_stem(self.kernel, channels)
    tiled = np.concatenate([self.kernel] * 3, axis=2)[:, :, :channels]
    np.testing.assert_allclose(adapted, tiled * (3 / channels), rtol=1e-6)
    assert adapted.dtype == np.float32

  def test_three_channels_are_left_alone(self):
    assert surgery.adapt_stem(self.kernel, 3) is self.kernel

  def test_half_precision_is_summed_in_float32(self):
    kernel = np.full((1, 1, 3, 1), 1.0, np.float16)
    kernel[0, 0, :, 0] = [2048, 1, 1]
    assert surgery.adapt_stem(kernel, 1)[0, 0, 0, 0] == 2050

  @pytest.mark.parametrize(
    'shape, channels', [((3, 3, 4, 8), 1), ((3, 3, 3, 8), 0)]
  )
  def test_what_does_not_fit_is_refused(self, shape, channels):
    with pytest.raises(ValueError, match='kh, kw, 3, out'):
      surgery.adapt_stem(np.zeros(shape), channels)


class TestAdaptStateDict:
  @pytest.mark.parametrize(
    'name', ['efficientnet_lite0', 'convnext_atto', 'vit_tiny_patch16_224']
  )
  @pytest.mark.parametrize('channels', [1, 4])
  def test_a_file_for_rgb_fits_a_model_of_other_channels(self, name, channels):
    state_dict = random_state_dict(name)
    model = models.create_model(name, in_channels=channels)
    adapted = surgery.adapt_state_dict(model, state_dict)
    params = flatten(pretrained.from_torch(model, adapted)[0])
    kernel = params[f'{model.spec.stem}.kernel']
    original = pretrained.from_torch(models.create_model(name), state_dict)[0]
    original = flatten(original)[f'{model.spec.stem}.kernel']
    expected = surgery.adapt_stem(original, channels)
    np.testing.assert_array_equal(kernel, expected)

  def test_a_fitting_file_is_not_changed(self):
    name = 'timm/vit_tiny_patch16_224'
    state_dict = random_state_dict(name)
    adapted = surgery.adapt_state_dict(models.create_model(name), state_dict)
    assert set(adapted) == set(state_dict)
    assert all(adapted[key] is value for key, value in state_dict.items())

  @pytest.mark.parametrize(
    'name, prefix',
    [
      ('timm/vit_tiny_patch16_224', 1),
      ('timm/deit_tiny_distilled_patch16_224', 2),
      ('timm/deit3_small_patch16_224', 0),
      ('transformers/vit_tiny_patch16_224', 1),
    ],
  )
  def test_positions_of_a_file_for_other_images_stay_its_own(
    self, name, prefix, tmp_path
  ):
    """At its own size they are used as they are, at others resampled once."""
    state_dict = random_state_dict(name)
    model = models.create_model(name)
    shape, leaf = pretrained.leaf_table(model)['position']
    own = np.random.default_rng(1).normal(size=(1, prefix + 24**2, shape[2]))
    own = own.astype(np.float32)
    state_dict[leaf.key] = leaf.to_torch(own)
    path = tmp_path / 'model.safetensors'
    torch_files.write_safetensors(path, state_dict)
    found = loading.load(model, str(path), jax.random.key(0), head='keep')
    np.testing.assert_array_equal(found.params['position'], own)
    shapes = jax.tree.map(np.shape, found.params)
    expected = jax.tree.map(lambda leaf: leaf.shape, found.model.params_shape)
    assert shapes == expected
    again = loading.load(model, str(path), jax.random.key(0), head='keep')
    assert again.model is found.model
    for side in (224, 384):
      images = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
      out, _ = jax.eval_shape(found.model.apply, found.params, {}, images)
      assert out['logits'].shape == (1, 1000)
