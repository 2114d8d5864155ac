"""The random views of a run: how a network's images are drawn in a step."""

import functools
from collections.abc import Callable, Collection

from flax.core import FrozenDict

from tlkd_jax import data
from tlkd_jax.data import Look, augment, mixing
from tlkd_jax.settings import Settings
from tlkd_jax.training import preparation, shares
from tlkd_jax.training.showing import Mixing, Views

# Strengths of FixMatch's RandAugment and Cutout; and its own views.
_STRONG = {
  'randaugment_ops': 2,
  'randaugment_magnitude': 5.0,
  'cutout': 0.5,
}
_STRONG_SEED = 2**29 - 1
_CLEAN = {
  'crop': 'centre',
  'flip': False,
  'brightness': 0.0,
  'contrast': 0.0,
  'saturation': 0.0,
  'randaugment_ops': 0,
}
# All that an image as it is evaluated depends on.
OF_CLEAN = ('image_size', 'square', 'interpolation', 'crop')


def make_augmentation(
  settings: Settings, dataset: data.Dataset
) -> functools.partial:
  """The random view of a run: (uint8 images, index, view) -> float images."""
  section = settings.augment
  flips = {'auto': dataset.flip_ok, 'on': True, 'off': False}
  return functools.partial(
    _draw_view,
    seed=settings.seed_of_draws,
    image_size=dataset.image_size,
    crop=section.crop,
    scale=tuple(section.scale),
    ratio=tuple(section.ratio),
    **preparation.resampling(dataset),
    flip=flips[section.flip],
    brightness=section.brightness,
    contrast=section.contrast,
    saturation=section.saturation,
    randaugment_ops=section.randaugment_ops,
    randaugment_magnitude=section.randaugment_magnitude,
  )


def _draw_view(images, index, view, *, seed, **options):
  return augment.augment(images, seed, index, view, **options)


def make_strong(augmentation: functools.partial) -> functools.partial:
  """FixMatch's strong view: another crop, RandAugment, then Cutout.

  Sohn et al., NeurIPS 2020, arXiv:2001.07685, section 2.3. Operations have the
  mean of the strengths that are drawn there.

  Args:
    augmentation: from `make_augmentation`, the weak view.
  """
  options = augmentation.keywords | _STRONG
  return functools.partial(_draw_strong_view, **options)


def _draw_strong_view(images, index, view, *, seed, **options):
  return _draw_view(images, index, view, seed=seed ^ _STRONG_SEED, **options)


def make_clean(augmentation: functools.partial) -> functools.partial:
  """The image as it is evaluated, whatever the view.

  Args:
    augmentation: from `make_augmentation`.
  """
  return functools.partial(augmentation, **_CLEAN)


def is_clean(augmentation: functools.partial) -> bool:
  """Whether nothing is drawn: every view is the image as it is evaluated."""
  options = augmentation.keywords
  return all(options.get(name) == value for name, value in _CLEAN.items())


def heard_through(
  settings: Settings, dataset: data.Dataset
) -> functools.partial:
  """The views that a frozen teacher sees, cut as in `dataset`."""
  augmentation = make_augmentation(settings, dataset)
  clean = settings.distillation.teacher_view == 'clean'
  return make_clean(augmentation) if clean else augmentation


def unseeded(drawn: functools.partial) -> functools.partial:
  """The same without its seed, which a program is given for each run.

  One object for the same options, by which runs know that they have one
  program.
  """
  options = {k: v for k, v in drawn.keywords.items() if k != 'seed'}
  return _of_options(drawn.func, tuple(sorted(options.items())))


@functools.lru_cache(maxsize=64)
def _of_options(function: Callable, options: tuple) -> functools.partial:
  return functools.partial(function, **dict(options))


def make_mixing(settings: Settings) -> Mixing | None:
  """Mixup and CutMix of a run, None without."""
  mixup, cutmix = settings.augment.mixup_alpha, settings.augment.cutmix_alpha
  if max(mixup, cutmix) == 0:
    return None
  return unseeded(
    functools.partial(mixing.mix, mixup_alpha=mixup, cutmix_alpha=cutmix)
  )


def make_views(
  settings: Settings, dataset: data.Dataset, looks: Collection[Look] = ()
) -> Views:
  """How the images of a run's batches are drawn.

  Args:
    settings: of the run.
    dataset: from inputs.training_data, as the run's own network sees it.
    looks: of networks that have images of their own in the batch.
  """
  section, taught = settings.distillation, settings.arm == 'kd'
  augmentation = make_augmentation(settings, dataset)
  strong, clean = None, {}
  if settings.fit == 'fixmatch':
    strong = unseeded(make_strong(augmentation))
  if taught and section.teacher_view == 'clean':
    clean = {
      look: unseeded(heard_through(settings, dataset.seen(look)))
      for look in (None, *looks)
    }
  return Views(
    plain=unseeded(augmentation),
    others=FrozenDict(
      {
        look: unseeded(make_augmentation(settings, dataset.seen(look)))
        for look in looks
      }
    ),
    mixing=make_mixing(settings),
    mixed_apart=taught and section.mixed == 'soft',
    taught_from=shares.taught_from(settings),
    strong=strong,
    clean=FrozenDict(clean),
  )
