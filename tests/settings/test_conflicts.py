"""Values that are right alone and exclude each other; options of losses."""

import pytest

from tlkd_jax import losses, settings
from tlkd_jax.models.network import DTYPES
from tlkd_jax.settings import Settings, WrongSettings, distillation
from tlkd_jax.settings import sections as parts
from tlkd_jax.training import lessons, target_store

MIXED = {'augment.mixup_alpha': 0.2}
CACHED = {'targets.mode': 'cached', 'targets.views': 2}
MUTUAL = {'distillation.mutual': True}
CHAIN = {'distillation.generations': 2}
MORE = {'distillation.more_teachers': ('runs/a',)}
REST = {'distillation.unlabelled': 'rest'}
NO_IMAGES = {'distillation.unlabelled': ''}
SELF_TRAINED = REST | {'distillation.self_training': 'hard'}
FIXMATCH = REST | {'arm': 'tl', 'student.fit': 'fixmatch'}
DKD = {'distillation.loss': 'dkd'}
AT = {'distillation.loss': 'at'}
SHAM = {'distillation.sham': 'uniform'}
QAT = {'quantize.mode': 'qat', 'student.checkpoint': 'runs/tl'}
OPTIONS = 'distillation.options'
TOKEN = {
  'student.name': 'timm/deit_tiny_distilled_patch16_224',
  'distillation.token': True,
}

# Two parts that are accepted alone, and how the line about both begins.
CONFLICTS = [
  (DKD, MIXED, "distillation.loss is 'dkd', which needs the one class"),
  (DKD, {'augment.cutmix_alpha': 1}, "distillation.loss is 'dkd', which"),
  (
    {'distillation.extra.dkd.weight': 1.0},
    MIXED,
    "distillation.extra.dkd is 'dkd', which needs the one class",
  ),
  (
    DKD,
    {'distillation.unlabelled': 'folder:x'},
    "distillation.loss is 'dkd', which needs labels",
  ),
  (SHAM, AT, "distillation.sham is 'uniform', and distillation.loss 'at'"),
  (
    {'distillation.sham': 'permuted'},
    {'distillation.loss': 'kd_logit_std'},
    "distillation.sham is 'permuted', and distillation.loss 'kd_logit_std'",
  ),
  (
    SHAM,
    {'distillation.loss': 'wsld'},
    "distillation.sham is 'uniform', and distillation.loss 'wsld' reads more",
  ),
  (
    SHAM,
    {'distillation.extra.rkd.weight': 1.0},
    "distillation.sham is 'uniform', and distillation.extra.rkd 'rkd' reads",
  ),
  (SHAM, MIXED, "distillation.sham is 'uniform', which needs the one class"),
  (
    SHAM,
    {'distillation.unlabelled': 'folder:x'},
    "distillation.sham is 'uniform', which needs labels: not with",
  ),
  (MUTUAL, SHAM, "distillation.sham is 'uniform', and with distillation.mut"),
  (AT, MORE, "distillation.ensemble is 'probabilities', and distill"),
  (
    {'distillation.extra.at.weight': 1.0},
    MORE,
    "distillation.ensemble is 'probabilities', and distillation.extra.at 'at'",
  ),
  (
    DKD,
    {'distillation.extra.dkd.weight': 1},
    "distillation.extra.dkd names 'dkd'",
  ),
  (CHAIN, MORE, 'distillation.more_teachers cannot be combined'),
  (
    {'distillation.assistants': ('resnet18',)},
    MORE,
    'distillation.more_teachers cannot be combined',
  ),
  (MUTUAL, MORE, "distillation.more_teachers is ('runs/a',), and with"),
  (MUTUAL, CHAIN, 'distillation.generations is 2, and with distillation.mut'),
  (
    MUTUAL,
    {'distillation.assistants': ('resnet18',)},
    "distillation.assistants is ('resnet18',), and with distillation.mutual",
  ),
  (MUTUAL, CACHED, "targets.mode is 'cached', and with distillation.mutual"),
  (MUTUAL, {'teacher.num_steps': 7}, 'teacher.num_steps is 7, and with dis'),
  (
    MUTUAL,
    {'distillation.hard_weight': 0},
    'distillation.hard_weight is 0.0, and with distillation.mutual',
  ),
  (CACHED, MIXED, "targets.mode is 'cached', and with augment.mixup_alpha"),
  (CACHED, AT, "targets.mode is 'cached', and distillation.loss 'at'"),
  (
    CACHED,
    {'distillation.extra.at.weight': 1.0},
    "targets.mode is 'cached', and distillation.extra.at 'at'",
  ),
  (
    CACHED | {'distillation.loss': 'srrl'},
    {'distillation.options': {'stages': ('stage1',)}},
    "targets.mode is 'cached', and distillation.loss 'srrl'",
  ),
  ({'transfer.co_tuning': 1}, MIXED, 'transfer.co_tuning needs the one class'),
  (
    {'transfer.co_tuning': 1},
    {'distillation.unlabelled': 'folder:x'},
    'transfer.co_tuning needs the one class',
  ),
  (
    {'transfer.lwf': 1},
    {'student.weights': 'scratch'},
    'transfer.lwf needs pretrained weights',
  ),
  (
    {'transfer.co_tuning': 1},
    {'student.name': 'timm/deit_tiny_distilled_patch16_224'},
    'transfer.co_tuning needs one head; student.name timm/deit',
  ),
  (
    {'transfer.lwf': 1},
    {
      'student.name': 'torchvision/squeezenet1_1',
      'student.head_init': 'small_random',
    },
    'transfer.lwf needs one head; student.name torchvision/squeezenet1_1 has '
    'one with a ReLU behind',
  ),
  (
    {'student.head_init': 'zero'},
    {'student.name': 'squeezenet1_0', 'student.weights': 'x.pth'},
    "student.head_init is 'zero', from which squeezenet1_0 does not learn",
  ),
  (
    {'teacher.head_init': 'zero'},
    {'teacher.name': 'torchvision/squeezenet1_1', 'teacher.weights': 'x.pth'},
    "teacher.head_init is 'zero', from which torchvision/squeezenet1_1 does",
  ),
  (
    {'student.name': 'timm/mixer_b16_224'},
    {'image_size': 128},
    'image_size is 128; timm/mixer_b16_224 takes images of one size; accepted: '
    '224, or 0',
  ),
  (
    {'teacher.name': 'mixer_s32_224'},
    {'teacher.image_size': 256},
    'teacher.image_size is 256; mixer_s32_224 takes images of one size',
  ),
  (
    {'teacher.name': 'timm/vit_small_patch14_dinov2'},
    {'teacher.image_size': 96},
    'teacher.image_size is 96; timm/vit_small_patch14_dinov2 takes images of '
    'whole patches of 14 pixels; accepted: 98, or another multiple of 14',
  ),
  (
    {'student.name': 'vit_tiny_patch16_224'},
    {'image_size': 100},
    'image_size is 100; vit_tiny_patch16_224 takes images of whole patches',
  ),
  ({'transfer.bss_k': 8}, {'batch_size': 4}, 'transfer.bss_k is 8; accepted:'),
  (
    {'transfer.delta_stages': ('stage7',)},
    {'student.name': 'resnet18'},
    "transfer.delta_stages names 'stage7'; resnet18 has stage1, stage2",
  ),
  (
    {'distillation.loss': 'at', 'distillation.options.stages': 'stage5'},
    {'student.name': 'vgg11_bn', 'teacher.name': 'resnet18'},
    "distillation.options.stages names 'stage5'; vgg11_bn has stage1, stage2",
  ),
  *(
    (
      {'distillation.loss': loss, 'teacher.name': 'timm/' + teacher}
      | {f'{place}.embedding': chosen},
      {changed: 'resnet18' if changed == 'teacher.name' else ('resnet18',)},
      f'{place}.embedding is {chosen!r}, which resnet18 does not give; accepte',
    )
    for loss, place, teacher, chosen, changed in (
      ('rkd', OPTIONS, 'vit_small_patch14_dinov2', 'class', 'teacher.name'),
      ('cosine', OPTIONS, 'vit_small_patch14_dinov2', 'mean', 'teacher.name'),
      (
        *('kd', 'distillation.extra.smooth_l1.options'),
        *('vit_base_patch16_siglip_224', 'attention', 'teacher.name'),
      ),
      (
        *('crd', OPTIONS, 'vit_small_patch14_dinov2', 'mean'),
        'distillation.assistants',
      ),
    )
  ),
  *(
    (
      {'distillation.loss': 'pkt', f'{OPTIONS}.embedding': 'mean'}
      | {'teacher.name': 'timm/vit_base_patch16_gap_224'},
      change,
      f"{OPTIONS}.embedding is 'mean', which efficientnet_lite0 does not give",
    )
    for change in (CHAIN, MUTUAL)
  ),
  (
    {'distillation.loss': 'cosine', f'{OPTIONS}.embedding': 'class'}
    | {'teacher.name': 'timm/vit_small_patch16_224'},
    {'teacher.name': 'timm/vit_base_patch16_siglip_224'},
    f"{OPTIONS}.embedding is 'class', which timm/vit_base_patch16_siglip_224 "
    'does not give; accepted: pooled, mean, attention',
  ),
  (TOKEN, {'student.name': 'resnet18'}, 'distillation.token is True, and resn'),
  (
    TOKEN,
    {'distillation.assistants': ('resnet18',)},
    'distillation.token is True, and resnet18 has no distillation token',
  ),
  (TOKEN, AT, 'distillation.token is True, and no loss is on logits: distill'),
  (TOKEN, MUTUAL, 'distillation.token is True, and with distillation.mutual'),
  (
    {'data.balance': 'sampling'},
    {'distillation.unlabelled': 'folder:x'},
    "data.balance is 'sampling', which draws images by their class: not with",
  ),
  (
    REST,
    {'num_train_per_class': 0},
    "distillation.unlabelled is 'rest', and num_train_per_class 0 with",
  ),
  (REST, {'batch_size': 1}, 'batch_size is 1, and with distillation.unlabel'),
  (
    REST | {'distillation.labelled_fraction': 0.25},
    NO_IMAGES,
    'distillation.labelled_fraction is 0.25, and distillation.unlabelled names',
  ),
  (
    REST | {'distillation.taught': 'unlabelled'},
    NO_IMAGES,
    "distillation.taught is 'unlabelled', and distillation.unlabelled names",
  ),
  (
    SELF_TRAINED,
    NO_IMAGES,
    "distillation.self_training is 'hard', and distillation.unlabelled names",
  ),
  (FIXMATCH, NO_IMAGES, "student.fit is 'fixmatch', which learns from images"),
  (FIXMATCH, MIXED, "student.fit is 'fixmatch', which compares two views"),
  (FIXMATCH, {'arm': 'kd'}, "student.fit is 'fixmatch', of arm tl, which no"),
  (
    FIXMATCH,
    {'data.balance': 'sampling'},
    "data.balance is 'sampling', which draws images by their class: not with",
  ),
  (
    MIXED | {'distillation.mixed': 'soft'},
    {'augment.mixup_alpha': 0},
    "distillation.mixed is 'soft', and no image is mixed",
  ),
  (
    {'distillation.teacher_view': 'clean'},
    MIXED,
    "distillation.teacher_view is 'clean', and the student sees mixtures",
  ),
  (
    {'distillation.finish_fraction': 0.2},
    {'distillation.hard_weight': 0},
    'distillation.finish_fraction is 0.2, in which labels alone are learned',
  ),
  (
    {'distillation.teacher_view': 'clean'},
    MUTUAL,
    "distillation.teacher_view is 'clean', and with distillation.mutual",
  ),
  (
    SELF_TRAINED,
    MUTUAL,
    'distillation.mutual is True, and with distillation.s',
  ),
  (SELF_TRAINED, MORE, "distillation.more_teachers is ('runs/a',), and with"),
  (SELF_TRAINED, CHAIN, 'distillation.generations is 2, and with distilla'),
  (
    SELF_TRAINED,
    {'distillation.assistants': ('resnet18',)},
    "distillation.assistants is ('resnet18',), and with distillation.self_tra",
  ),
  (
    SELF_TRAINED,
    {'teacher.fit': 'probed'},
    "teacher.fit is 'probed', and with distillation.self_training",
  ),
  (
    SELF_TRAINED,
    {'teacher.image_size': 96},
    'teacher.image_size is 96, and with distillation.self_training',
  ),
  (
    SELF_TRAINED,
    {'distillation.loss': 'rkd'},
    "distillation.self_training is 'hard', which brings its own loss",
  ),
  (
    SELF_TRAINED | {'distillation.self_training': 'soft'},
    {'distillation.loss': 'pseudo_label'},
    "distillation.self_training is 'soft', which brings its own loss, 'kd'",
  ),
  (
    SELF_TRAINED,
    {'distillation.extra.rkd.weight': 1.0},
    "distillation.self_training is 'hard', which brings its own loss",
  ),
  (
    SELF_TRAINED,
    {'augment.cutmix_alpha': 1.0},
    "distillation.self_training is 'hard', which labels single images: not",
  ),
  (
    {'optimizer.accumulate_steps': 4},
    {'num_steps': 3},
    'optimizer.accumulate_steps is 4, so that 3 steps (num_steps)',
  ),
  (
    {'optimizer.accumulate_steps': 4},
    {'teacher.num_steps': 2},
    'optimizer.accumulate_steps is 4, so that 2 steps (teacher.num_steps)',
  ),
  (
    {'optimizer.accumulate_steps': 4},
    {'transfer.probe_steps': 1},
    'optimizer.accumulate_steps is 4, so that 1 steps (transfer.probe_steps)',
  ),
  (
    {'optimizer.freeze_until_step': 7},
    {'num_steps': 7},
    'optimizer.freeze_until_step is 7, so that in 7 steps (num_steps) nothing',
  ),
  (
    {'optimizer.freeze_until_step': 7, 'teacher.fit': 'finetuned'},
    {'teacher.num_steps': 7},
    'optimizer.freeze_until_step is 7, so that in 7 steps (teacher.num_steps)',
  ),
  (
    {'distillation.hard_weight': 0},
    {'distillation.soft_weight': 0},
    'distillation.hard_weight is 0.0, and so are distillation.soft_weight',
  ),
  (
    {'distillation.hard_weight': 0, 'distillation.extra.at.weight': 1.0},
    {'distillation.soft_weight': 0, 'distillation.extra.at.weight': 0.0},
    'distillation.hard_weight is 0.0, and so are distillation.soft_weight',
  ),
  (
    {'train_fraction': 0.5, 'num_train_per_class': 0},
    {'num_train_per_class': 5},
    'train_fraction is 0.5 and num_train_per_class is 5: give one',
  ),
  (
    {'student.head': 'keep'},
    {'student.weights': 'scratch'},
    "student.head is 'keep', and weights from scratch have no head",
  ),
  *(
    (
      {f'{place}.head': 'keep', 'arm': 'tl'},
      {f'{place}.fit': fit},
      f"{place}.head is 'keep', and {place}.fit '{fit}' fits a last layer",
    )
    for place, fit in (
      ('teacher', 'probed'),
      ('teacher', 'crossfitted'),
      ('student', 'probed'),
    )
  ),
  *(
    (
      {'arm': 'tl', 'student.fit': 'ensemble'},
      {'arm': arm},
      "student.fit is 'ensemble', of arm tl, which no teacher guides; arm",
    )
    for arm in ('kd', 'compare')
  ),
  (
    {'arm': 'kd'} | MUTUAL,
    {'student.fit': 'ensemble'},
    "student.fit is 'ensemble', of arm tl, which no teacher guides; arm",
  ),
  (
    {'arm': 'tl', 'student.fit': 'ensemble'},
    {'cost_matched': True},
    "student.fit is 'ensemble', and cost_matched counts a student that is",
  ),
  *(
    (
      {'arm': 'tl', 'student.member': 2},
      {'arm': arm},
      'student.member is 2, of a part of an ensemble, which is of arm tl; arm',
    )
    for arm in ('teacher', 'kd', 'compare')
  ),
  *(
    (
      {'arm': 'tl', 'student.fit': fit},
      {'student.member': 1},
      f"student.member is 1, and student.fit is '{fit}'; accepted: 0, or",
    )
    for fit in ('probed', 'ensemble')
  ),
  (
    {'arm': 'tl', 'student.members': 3, 'student.member': 3},
    {'student.members': 2},
    'student.member is 3; accepted: at most student.members, 2',
  ),
  (
    {'targets.views': 0},
    {'targets.mode': 'cached', 'targets.dtype': 'float32'},
    "targets.views is 0, a new view each epoch, and targets.mode is 'cached'",
  ),
  # A student that rounds.
  ({}, {'quantize.mode': 'qat'}, 'student.checkpoint is None, and quantize.mo'),
  (QAT, {'compute_dtype': 'bfloat16'}, "compute_dtype is 'bfloat16', and qua"),
  (QAT, {'remat': 'blocks'}, "remat is 'blocks', and quantize.mode is 'qat'"),
  (
    QAT,
    {'optimizer.train_only': 'head'},
    "optimizer.train_only is 'head', and quantize.mode is 'qat'",
  ),
  (QAT, {'transfer.probe_steps': 3}, 'transfer.probe_steps is 3, and quantize'),
  (QAT, {'transfer.lwf': 1.0}, 'transfer.lwf is 1.0, and quantize.mode is'),
  (QAT, CHAIN, 'distillation.generations is 2, and quantize.mode is'),
  (QAT, MUTUAL, "distillation.mutual is True, and quantize.mode is 'qat'"),
  (
    QAT,
    {'student.name': 'timm/vit_tiny_patch16_224'},
    "student.name is 'timm/vit_tiny_patch16_224', and quantize.mode is 'qat', "
    'which needs norms that can be folded: 25 of its norms',
  ),
  (
    QAT,
    {'student.name': 'densenet121'},
    "student.name is 'densenet121', and quantize.mode is 'qat', which needs",
  ),
  (
    QAT,
    {'student.name': 'convnext_tiny'},
    "student.name is 'convnext_tiny', and quantize.mode is 'qat', which needs",
  ),
]


@pytest.mark.parametrize(('first', 'second', 'start'), CONFLICTS)
def test_what_excludes_each_other_is_one_line(first, second, start):
  settings.with_values(Settings(), first)
  with pytest.raises(WrongSettings) as error:
    settings.with_values(Settings(), first | second)
  (line,) = error.value.problems
  assert line.startswith(start), line


@pytest.mark.parametrize(
  'values',
  [
    {'arm': 'tl'},
    {'distillation.schedule': 'linear', 'distillation.end_weight': 1.0},
    {'distillation.extra.at.weight': 1.0},
    {'distillation.extra.at': {'weight': 0, 'schedule': 'cosine'}},
  ],
)
def test_weights_of_which_one_is_above_0_at_some_step(values):
  zeros = {'distillation.hard_weight': 0, 'distillation.soft_weight': 0}
  if isinstance(values.get('distillation.extra.at'), dict):
    with pytest.raises(WrongSettings, match='nothing would be learned'):
      settings.with_values(Settings(), zeros | values)
    values['distillation.extra.at']['end_weight'] = 2.0
  settings.with_values(Settings(), zeros | values)


def test_stages_of_chains_are_not_judged_by_their_ends():
  settings.with_values(
    Settings(),
    {
      'distillation.loss': 'at',
      'distillation.options.stages': ('stage5:stage5',),
      'distillation.assistants': ('vgg11_bn',),
      'teacher.name': 'resnet18',
    },
  )


def test_arm_and_section_study_go_together():
  for values in ({'arm': 'study'}, {'study.seeds': 2}):
    with pytest.raises(WrongSettings, match='^arm is .*with the section study'):
      settings.with_values(Settings(), values)


@pytest.mark.parametrize(
  ('loss', 'option', 'value', 'message'),
  [
    ('kd', 'tempe', 2.0, "unknown hyperparameter of 'kd' 'tempe': did you"),
    ('kd', 'temperature', 0.0, 'is 0.0; accepted: a number > 0'),
    ('dkd', 'beta', float('nan'), 'is nan; accepted: a number >= 0'),
    ('dkd', 'beta', True, 'is True; accepted: a number >= 0'),
    ('bv_distances', 'kind', 'kll', 'accepted: kl, hard.*did you mean kl'),
    ('cc', 'kernel', 'gauss', 'consecutive.*did you mean gaussian'),
    ('ft', 'p1', 0, 'is 0; accepted: a whole number >= 1'),
    ('crd', 'nce_m', 1, r'is 1; accepted: a number in \[0, 1\)'),
    ('cosine', 'embedding', 'clas', 'pooled, class, mean.*did you mean class'),
    ('pkt', 'embedding', 1, 'accepted: pooled, class, mean, attention'),
    ('rkd', 'smooth_l1_beta', 0.0, 'is 0.0; accepted: a number > 0'),
    ('smooth_l1', 'smooth_l1_beta', 0, 'is 0; accepted: a number > 0'),
    ('rkd', 'squared', 'yes', "is 'yes'; accepted: true or false"),
    ('reviewkd', 'levels', (2, 0.5), 'a tuple, each a whole number >= 0'),
    ('ofd', 'margin', float('inf'), 'is inf; accepted: None, a number'),
  ],
)
def test_options_of_a_loss(loss, option, value, message):
  changes = settings.loss_values(loss)
  settings.with_values(Settings(), changes)
  changes['distillation.options'] |= {option: value}
  match = rf'^distillation\.options.*{message}'
  with pytest.raises(WrongSettings, match=match):
    settings.with_values(Settings(), changes)
  extra = {'options': {option: value}}
  match = rf'^distillation\.extra\.{loss}\.options.*{message}'
  base = Settings(
    distillation=settings.Distillation(
      loss='dkd' if loss == 'kd' else 'kd', ensemble='losses'
    )
  )
  with pytest.raises(WrongSettings, match=match):
    settings.with_values(base, {f'distillation.extra.{loss}': extra})


CHOICES = [n for n, loss in losses.LOSSES.items() if loss.guide != 'start']


@pytest.mark.parametrize('name', CHOICES)
def test_every_loss_may_be_chosen_as_published(name):
  config = settings.make('kd', loss=name)
  assert config.distillation.loss == name
  found, published = config.distillation, losses.hyperparameters_of(name)
  own = 2.0 if name == 'kd' else published.pop('temperature', 2.0)
  assert found.temperature == own
  assert found.options == (published if name != 'kd' else {})


@pytest.mark.parametrize('name', sorted(set(losses.LOSSES) - set(CHOICES)))
def test_what_compares_a_student_with_its_start_is_no_distillation(name):
  """It would fail in the first step, after the teacher was fine-tuned."""
  key = 'l2_sp' if name == 'l2sp' else name
  told = f"is '{name}', which compares .*; set transfer.{key} in its place"
  with pytest.raises(WrongSettings, match=f'^distillation.loss {told}'):
    settings.make('kd', loss=name)
  with pytest.raises(WrongSettings, match=f'extra.{name} {told}'):
    settings.make('kd', loss=f'kd+{name}')


def test_an_extra_loss_that_does_not_exist():
  with pytest.raises(WrongSettings, match=r'^distillation.extra.dkdd is .*dkd'):
    settings.with_values(Settings(), {'distillation.extra.dkdd': {}})


def test_names_are_those_of_the_rooms_that_read_them():
  assert tuple(lessons.SCHEDULES) == distillation.SCHEDULES
  assert tuple(target_store.DTYPES) == parts.TARGET_DTYPES
  assert tuple(DTYPES) == ('float32', 'bfloat16')
