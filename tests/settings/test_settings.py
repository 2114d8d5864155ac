"""The typed configuration: checked at the door, the same keys outside."""

import dataclasses
import json
import math
import pathlib
import sys
import types
import typing
from collections.abc import Mapping

import ml_collections
import pytest
from absl import flags
from ml_collections.config_flags import config_flags

from configs import study as study_file
from tlkd_jax import settings
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.settings import Settings, WrongSettings, recorded
from tlkd_jax.training import workdir

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures' / 'settings'
BEFORE = json.loads((FIXTURES / 'configs.json').read_text())


def fields(kind=Settings, place=''):
  """(dotted key, field) of every key of every section."""
  for field in dataclasses.fields(kind):
    if 'section' in field.metadata:
      inner = field.metadata['section']
      yield from fields(inner, f'{place}{field.name}.')
    else:
      yield place + field.name, field


FIELDS = dict(fields())
# A study that has arms, so that names of arms are known.
STUDY = settings.from_config(study_file.get_config())


def problems(values, base=STUDY) -> list[str]:
  """The lines about what is wrong."""
  with pytest.raises(WrongSettings) as error:
    settings.with_values(base, values)
  assert isinstance(error.value, ValueError)
  lines = error.value.problems
  assert str(error.value) == '\n'.join(lines)
  return lines


def problem(key, value, base=STUDY) -> str:
  """The one line about a value, which names it."""
  (line,) = problems({key: value}, base)
  assert line.startswith(f'{key} is {value!r}; accepted: '), line
  return line.partition('accepted: ')[2]


WRONG = [
  # Once let pass before work began, or never refused.
  ('optimizer.name', 'adamx', 'sgd, adamw; did you mean adamw?'),
  ('optimizer.train_only', 'heads', 'all, head; did you mean head?'),
  ('augment.crop', 'centr', 'random_resized, random, centre; did you mean c'),
  ('augment.flip', 'maybe', 'auto, on, off'),
  ('compute_dtype', 'float8', 'float32, bfloat16; did you mean float32'),
  ('augment.randaugment_magnitude', 99, 'a number in [0, 10]'),
  ('student.head', 'kep', 'new, keep; did you mean keep?'),
  ('student.head_init', 'zeros', 'zero, small_random; did you mean zero?'),
  ('ema_decay', 7, 'a number in [0, 1)'),
  ('label_smoothing', 2, 'a number in [0, 1)'),
  ('optimizer.clip_norm', -1, 'a number >= 0'),
  ('optimizer.layer_decay', -1, 'a number in (0, 1]'),
  ('augment.scale', (2, 3), 'two numbers, the smaller first, each a number in'),
  # Once run to the end, or until a number was not finite.
  ('distillation.soft_weight', -1, 'a number >= 0'),
  ('distillation.extra.at.weight', -0.5, 'a number >= 0'),
  ('distillation.end_temperature', -2.0, 'a number > 0'),
  ('distillation.temperature', math.nan, 'a number > 0'),
  # 0 and infinity in float32.
  ('distillation.temperature', 1e-300, 'a number > 0'),
  ('optimizer.learning_rate', 1e300, 'a number >= 0'),
  ('label_smoothing', 1.5, 'a number in [0, 1)'),
  ('augment.scale', (0, 0), 'two numbers, the smaller first, each a number in'),
  ('augment.scale', (0.5, 0.2), 'two numbers, the smaller first, each a numb'),
  ('augment.ratio', (0, 1), 'two numbers, the smaller first, each a number >'),
  ('augment.mixup_alpha', -0.2, 'a number >= 0'),
  ('optimizer.weight_decay', -1, 'a number >= 0'),
  ('optimizer.head_multiplier', -1, 'a number >= 0'),
  ('transfer.l2_sp', -1, 'a number >= 0'),
  ('student.dropout', 1.0, 'a number in [0, 1), or None'),
  ('seed', -1, 'a whole number in [0, 2147483647]'),
  ('batch_size', 2**31, 'a whole number >= 1'),
  ('num_steps', 10**12, 'a whole number >= 1'),
  # The run.
  ('arm', 'kdd', 'teacher, tl, kd, compare, study; did you mean kd?'),
  ('seed', 2**31, 'a whole number in [0, 2147483647]'),
  ('dataset', '', 'a text'),
  ('image_size', 7, 'a whole number >= 8'),
  ('batch_size', 0, 'a whole number >= 1'),
  ('num_steps', 2.5, 'a whole number >= 1'),
  ('num_steps', True, 'a whole number >= 1'),
  ('train_fraction', 0, 'a number in (0, 1]'),
  ('batch_norm', 'frosen', 'frozen, train, stochastic; did you mean frozen?'),
  ('memory_check', 1, 'true or false'),
  ('remat', 'block', 'none, blocks; did you mean blocks?'),
  ('best_metric', 'top2', 'did you mean top5, top1, auto?'),
  ('early_stopping', -1, 'a whole number >= 0'),
  ('on_nonfinite', 'skipp', 'error, skip; did you mean skip?'),
  ('most_nonfinite', 0, 'a whole number >= 1'),
  # data
  ('data.on_bad_image', 'ignore', 'error, skip'),
  ('data.crop', 0.0, 'a number in (0, 1], or None'),
  ('data.train_size', 7, 'a whole number >= 8, or None'),
  ('data.train_size', 80.5, 'a whole number >= 8, or None'),
  ('data.interpolation', 'bicubik', 'did you mean bicubic'),
  ('data.cache_dir', '', 'a text, or None'),
  ('data.folds', 1, 'a whole number in [2, 1000], or 0'),
  ('data.folds', -5, 'a whole number in [2, 1000], or 0'),
  ('data.folds', 2.5, 'a whole number in [2, 1000], or 0'),
  ('data.fold', -1, 'a whole number >= 0, or None'),
  ('data.fold', 'first', 'a whole number >= 0, or None'),
  (
    'data.balance',
    'sample',
    'none, sampling, logit_adjustment; did you mean s',
  ),
  ('data.balance', 'weighted', 'none, sampling, logit_adjustment'),
  ('data.balance_tau', -0.5, 'a number >= 0'),
  ('data.label_column', '', 'a text, or None'),
  (
    'data.pattern',
    '*.jpg',
    "a name with {class} and *, such as '{class}.*.jpg'",
  ),
  ('data.pattern', '(', 'or a regular expression with a group (?P<class>...)'),
  ('data.pattern', 'cat_dog', 'with a group (?P<class>...), or None'),
  # augment
  ('augment.scale', (0.9, 0.1), 'two numbers, the smaller first'),
  ('augment.scale', (0.1, 0.5, 0.9), 'two numbers'),
  ('augment.ratio', (0, 1), 'each a number > 0'),
  ('augment.contrast', 1.5, 'a number in [0, 1]'),
  ('augment.mixup_alpha', -0.1, 'a number >= 0'),
  # optimizer
  ('optimizer.learning_rate', '1e-3', 'a number >= 0'),
  ('optimizer.beta2', 1.0, 'a number in [0, 1)'),
  ('optimizer.warmup_fraction', 1.1, 'a number in [0, 1]'),
  ('optimizer.accumulate_steps', 0, 'a whole number >= 1'),
  # student and teacher
  ('student.name', 'resnet19', 'did you mean resnet18'),
  ('student.dropout', 1.0, 'a number in [0, 1), or None'),
  ('student.drop_path', -0.1, 'a number in [0, 1)'),
  ('teacher.image_size', 7, 'a whole number >= 8, or 0'),
  ('teacher.num_steps', -1, 'a whole number >= 0'),
  ('teacher.fit', 'zeroshot', 'did you mean zero_shot'),
  ('teacher.prompts', (), "each a text with {class}, like 'a photo of a {cla"),
  ('teacher.prompts', ('a photo.',), 'a tuple, each a text with {class}, like'),
  ('teacher.prompts', ('a {class}.', ''), 'a tuple, each a text with {class}'),
  ('teacher.prompts', ('a photo of a {}.',), 'a tuple, each a text with {clas'),
  ('teacher.prompts', ('a {Class}',), 'a tuple, each a text with {class}'),
  ('teacher.prompts', 'a photo of a {class}.', 'a tuple, each a text with'),
  ('teacher.text_weights', '', 'a text, or None'),
  ('teacher.tokenizer', '', 'a text, or None'),
  # distillation
  ('distillation.loss', 'dkdd', 'did you mean dkd'),
  ('distillation.soft_weight', -1, 'a number >= 0'),
  ('distillation.temperature', 0, 'a number > 0'),
  ('distillation.end_temperature', 0.0, 'a number > 0'),
  ('distillation.schedule', 'cosin', 'constant, linear, cosine; did you mean'),
  ('distillation.assistants', ('resnet19',), 'a tuple of: '),
  ('distillation.unlabelled', 'pictures', "'rest', a text like 'folder:...'"),
  ('distillation.unlabelled', 'folder:', "'folder:...' or 'tfds:NAME:SPLIT'"),
  ('distillation.unlabelled', 'Rest', "'rest', a text like 'folder:...'"),
  ('distillation.unlabelled', 'rest:', "'rest', a text like 'folder:...'"),
  ('distillation.unlabelled', 'rest:train', "'rest', a text like 'folder:..."),
  ('distillation.unlabelled', 'tfds:', "'tfds:NAME:SPLIT', or '' for none"),
  ('distillation.unlabelled', 'tfds:a b', "'tfds:NAME:SPLIT', or '' for none"),
  ('distillation.unlabelled', 'tfds:stl10:a-b', "'tfds:NAME:SPLIT', or '' for"),
  ('distillation.labelled_fraction', 0.0, 'a number in (0, 1)'),
  ('distillation.labelled_fraction', 1.0, 'a number in (0, 1)'),
  ('distillation.finish_fraction', 1.0, 'a number in [0, 1)'),
  ('distillation.taught', 'rest', 'all, unlabelled'),
  ('distillation.teacher_view', 'cleen', 'same, clean; did you mean clean?'),
  ('distillation.mixed', 'hard', 'all, soft'),
  ('distillation.self_training', 'sof', 'none, hard, soft; did you mean soft'),
  ('distillation.fixmatch_weight', 0.0, 'a number > 0'),
  ('distillation.fixmatch_threshold', 1.1, 'a number in [0, 1]'),
  ('distillation.options', 3, 'a dict'),
  ('optimizer.sharding', 'states', 'none, state; did you mean state?'),
  ('optimizer.sharding', 'model', 'none, state'),
  ('optimizer.sharding', True, 'none, state'),
  ('optimizer.sharding', None, 'none, state'),
  ('teacher.sharding', 'models', 'none, auto, model; did you mean model'),
  ('teacher.sharding', None, 'none, auto, model'),
  # targets
  ('targets.mode', 'stored', 'online, cached'),
  ('targets.dtype', 'float8', 'float16, float32; did you mean float'),
  ('targets.views', -1, 'a whole number >= 0'),
  ('targets.features_mib', -1, 'a whole number >= 0'),
  ('targets.features_mib', 0.5, 'a whole number >= 0'),
  ('targets.features_dtype', 'float64', 'float16, float32; did you mean float'),
  # transfer
  ('transfer.l2_sp', -0.1, 'a number >= 0'),
  ('transfer.lwf_temperature', 0, 'a number > 0'),
  ('transfer.co_tuning_temperature', 0, 'a number > 0'),
  ('transfer.stoch_norm_p', 1.5, 'a number in [0, 1]'),
  ('transfer.bss_k', 0, 'a whole number >= 1'),
  # quantize
  ('quantize.mode', 'qatt', 'none, qat; did you mean qat?'),
  ('quantize.mode', 'int8', 'none, qat'),
  ('quantize.calibration_images', 0, 'a whole number >= 1'),
  ('quantize.observe_fraction', 1.5, 'a number in [0, 1]'),
  # study
  ('study.seeds', -1, 'a whole number >= 0'),
  ('study.sizes', (1.5,), 'each a whole number >= 0, or a fraction below 1'),
  ('study.reference', 'tll', 'did you mean tl'),
  ('study.run_arms', ('tl', 'kdd'), 'did you mean kd'),
  ('study.metrics', ('top1', 'brie'), 'did you mean brier?'),
  ('study.margin', 0.0, 'a number in (0, 0.5]'),
  ('study.margin', 0.51, 'a number in (0, 0.5]'),
  ('study.max_seeds', 4, 'a whole number in [5, 1000]'),
  ('study.cores', 0, 'a whole number in [1, 1024]'),
  ('study.keep', 'bets', 'all, best, needed; did you mean best?'),
  (
    'study.grid',
    {'seed': 0.1},
    'keys with tuples of values',
  ),
]


@pytest.mark.parametrize(('key', 'value', 'accepted'), WRONG)
def test_a_wrong_value_is_named_with_what_is_accepted(key, value, accepted):
  assert accepted in problem(key, value)


# Texts of which only the disk or the data set can say whether they are right.
FREE = {
  *('dataset', 'data.data_dir', 'data.cache_dir'),
  *('targets.dir', 'targets.features_dir'),
  *('data.image_column', 'data.label_column', 'data.split_column'),
  *('student.weights', 'student.checkpoint'),
  *('teacher.weights', 'teacher.checkpoint', 'distillation.more_teachers'),
  *('teacher.text_weights', 'teacher.tokenizer'),
}
NONSENSE = {
  bool: ('maybe', 1, None),
  int: (math.nan, math.inf, -(10**9), 1.5, 'nonsense', True, None),
  float: (math.nan, math.inf, -math.inf, -1e9, 'nonsense', True),
  str: ('nonsense', 3),
  tuple: ('nonsense', ('nonsense',), (math.nan,), 3, None),
  dict: ('nonsense', {'nonsense': 1}, 3, None),
}


@pytest.mark.parametrize('key', FIELDS)
def test_nonsense_in_any_key_is_refused_by_its_name(key):
  rule = FIELDS[key].metadata['rule']
  values = [v for v in NONSENSE[rule.kind] if not (rule.optional and v is None)]
  if key in FREE:
    values = [v for v in values if v not in ('nonsense', ('nonsense',))]
    values += [('',)] if isinstance(FIELDS[key].default, tuple) else ['']
  for value in values:
    for line in problems({key: value}):
      assert line.startswith(key), (value, line)


def test_sections_are_sections():
  for name in ('data', 'optimizer', 'teacher'):
    (line,) = problems({name: None})
    assert line.startswith(f'{name} is None; accepted: a dict')
  for name in ('data', 'optimizer', 'teacher', 'study'):
    (line,) = problems({name: 'nonsense'})
    assert line.startswith(f"{name} is 'nonsense'; accepted: a dict")
  with pytest.raises(
    WrongSettings, match='optimizer is {}; accepted: settings'
  ):
    Settings(optimizer={})
  with pytest.raises(WrongSettings, match='teacher is .*; accepted: settings'):
    Settings(teacher=settings.Student())


@pytest.mark.parametrize('key', FIELDS)
def test_every_key_has_a_type_that_its_rule_keeps(key):
  """The annotation, which the type checker sees, is what the rule gives."""
  section, _, name = key.rpartition('.')
  kind = Settings
  if section:
    (field,) = (f for f in dataclasses.fields(Settings) if f.name == section)
    kind = field.metadata['section']
  hint = typing.get_type_hints(kind)[name]
  rule = FIELDS[key].metadata['rule']
  kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else [hint]
  kinds = [typing.get_origin(kind) or kind for kind in kinds]
  expected = {dict: Mapping}.get(rule.kind, rule.kind)
  assert set(kinds) == {expected, *([type(None)] if rule.optional else [])}


def test_all_that_is_wrong_is_said_at_once():
  lines = problems(
    {
      'seed': -1,
      'student.head': 'kep',
      'optimizer.name': 'adamx',
      'optimizer.beta1': 1,
      'distillation.lss': 'kd',
      'study.arms.kd.kind': 'kdd',
    }
  )
  starts = ('seed', 'optimizer.name', 'optimizer.beta1', 'student.head')
  assert [line.split()[0] for line in lines] == [
    *starts, 'unknown', 'study.arms.kd.kind'
  ]  # fmt: skip
  assert "'distillation.lss': did you mean distillation.loss" in lines[4]


@pytest.mark.parametrize(
  'config', [{'num_stepz': 1}, {'optimizer': {'lerning_rate': 1.0}}]
)
def test_an_unknown_key_is_answered_with_the_nearest(config):
  with pytest.raises(WrongSettings, match='did you mean .*(num_step|learning)'):
    settings.from_config(config)
  with pytest.raises(WrongSettings, match='did you mean .*(num_step|learning)'):
    settings.from_config(ml_collections.ConfigDict(config))


def test_keys_that_an_older_version_lacked_have_their_defaults():
  old = json.loads((FIXTURES / 'config.json').read_text())
  for section in (old, old['teacher'], old['targets'], old['distillation']):
    section.pop('image_size', None), section.pop('views', None)
    section.pop('extra', None)
  del old['transfer']
  assert settings.from_config(old) == settings.make('kd')


@pytest.mark.parametrize(
  ('key', 'value', 'kept'),
  [
    ('dataset', 'folder:~/birds', 'folder:{home}/birds'),
    ('dataset', 'folder:a/~/b', 'folder:a/~/b'),
    ('dataset', 'digits', 'digits'),
    ('data.cache_dir', '~', '{home}'),
    ('data.data_dir', '~/x y', '{home}/x y'),
    ('targets.dir', './~', './~'),
    ('targets.features_dir', '~/f', '{home}/f'),
    ('student.weights', '~/w.pth', '{home}/w.pth'),
    ('student.weights', 'hf-hub:timm/a~b', 'hf-hub:timm/a~b'),
    ('student.checkpoint', '~/runs/tl', '{home}/runs/tl'),
    ('teacher.checkpoint', '~/runs/teacher', '{home}/runs/teacher'),
    ('distillation.more_teachers', ('~/a', 'b'), ('{home}/a', 'b')),
    ('distillation.unlabelled', 'folder:~/u', 'folder:{home}/u'),
  ],
)
def test_a_tilde_is_a_home(key, value, kept, monkeypatch):
  """A shell leaves it as it is after `--config.KEY=`."""
  monkeypatch.setenv('HOME', '/home/me')
  config = settings.with_values(Settings(), {key: value})
  found = flatten(settings.to_dict(config))[key]
  many = kept if isinstance(kept, tuple) else (kept,)
  expected = tuple(text.format(home='/home/me') for text in many)
  assert found == (expected if isinstance(kept, tuple) else expected[0])


def test_a_home_that_is_not_there():
  assert problem('data.cache_dir', '~no-such-user/x') == 'a text, or None'


def test_values_are_kept_in_their_types():
  config = settings.with_values(
    Settings(),
    {
      'optimizer.learning_rate': 1,
      'augment.scale': [0.5, 1],
      'distillation.more_teachers': ['a', 'b'],
      'distillation.ensemble': 'losses',
      'distillation.loss': 'reviewkd',
      'distillation.options': {'levels': [2, 1], 'stages': ['stage1']},
    },
  )
  assert isinstance(config.optimizer.learning_rate, float)
  assert config.augment.scale == (0.5, 1.0)
  assert isinstance(config.augment.scale[1], float)
  assert config.distillation.more_teachers == ('a', 'b')
  options = {'levels': (2, 1), 'stages': ('stage1',)}
  assert config.distillation.options == options
  assert config.optimizer in {config.optimizer}
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.seed = 3


@pytest.mark.parametrize(
  ('text', 'value'),
  [
    ("('stage1', 'stage2:stage3')", ('stage1', 'stage2:stage3')),
    ('stage2:stage3', 'stage2:stage3'),
    ('None', None),
  ],
)
def test_a_command_line_gives_options_that_are_nothing_by_default(
  text, value, monkeypatch
):
  config = settings.config_of('kd', 'smoke,loss=fitnet')
  given = [f'--config.distillation.options.stages={text}']
  found = from_command_line(config, given, monkeypatch)
  assert found.distillation.options['stages'] == value


def from_command_line(config, given, monkeypatch):
  """The settings of a file with what a command line says."""
  line = ['command', *given]
  monkeypatch.setattr(sys, 'argv', line)
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict('config', config, flag_values=values)
  values(line)
  return settings.from_config(config)


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('data.train_size', 64),
    ('num_train_per_class', 5),
    ('student.dropout', 0.25),
    ('teacher.crop', 0.5),
    ('teacher.interpolation', 'bicubic'),
    ('teacher.checkpoint', 'runs/teacher'),
  ],
)
def test_a_command_line_sets_and_takes_back_what_may_be_none(
  key, value, monkeypatch
):
  def read(*texts):
    config = settings.config_of('kd', None)
    given = [f'--config.{key}={text}' for text in texts]
    found = from_command_line(config, given, monkeypatch)
    for part in key.split('.'):
      found = getattr(found, part)
    return found

  assert read(value) == value and type(read(value)) is type(value)
  assert read('None') is None
  assert read(value, 'None') is None


@pytest.mark.parametrize('stages', [3, (3,), ('stage1', 2.5)])
def test_stages_are_names(stages):
  config = settings.make('kd', smoke=True, loss='fitnet')
  with pytest.raises(ValueError, match=r'options.stages names \d.* has stage1'):
    settings.with_values(config, {'distillation.options.stages': stages})


def test_other_values_make_another_copy():
  config = settings.make('kd', loss='dkd+at')
  changed = settings.with_values(
    config,
    {
      'arm': 'tl',
      'optimizer.train_only': 'head',
      'distillation.options.beta': 2,
      'distillation.extra.at.weight': 5,
      'teacher.checkpoint': 'runs/teacher',
    },
  )
  assert (changed.arm, changed.optimizer.train_only) == ('tl', 'head')
  assert changed.distillation.options == config.distillation.options | {
    'beta': 2.0
  }
  assert changed.distillation.extra['at'].weight == 5.0
  assert changed.network('teacher').checkpoint == 'runs/teacher'
  assert config == settings.make('kd', loss='dkd+at')
  assert settings.with_values(config, {}) == config
  with pytest.raises(
    WrongSettings, match="'optimiser': did you mean optimizer"
  ):
    settings.with_values(config, {'optimiser.name': 'sgd'})
  given = {'beta': 3.0}
  both = {'distillation.options': given, 'distillation.options.alpha': 2.0}
  changed = settings.with_values(config, both)
  assert changed.distillation.options == {'alpha': 2.0, 'beta': 3.0}
  assert given == {'beta': 3.0}
  with pytest.raises(WrongSettings, match="key 'seed.x'"):
    settings.with_values(config, {'seed.x': 1})


def test_further_losses_keep_one_order():
  """Of the sum; floats do not add up alike in another."""
  names = ['at', 'dkd', 'rkd']
  for order in (names, names[::-1]):
    config = settings.from_config(
      {'distillation': {'extra': {n: {} for n in order}}}
    )
    assert list(config.distillation.extra) == names


@pytest.mark.parametrize(
  'before', BEFORE['others'], ids=lambda b: f'{b["arm"]}:{b["arg"]}'
)
def test_files_give_what_they_gave(before):
  """Made from settings, each key has the value and type that it had."""
  flat = flatten(json.loads((FIXTURES / 'config.json').read_text()))
  config = settings.config_of(before['arm'], before['arg'])
  # What a loss or an arm adds is among the values.
  now = flatten(json.loads(config.to_json()))
  tried = [key for key in now if key.startswith('study.grid.')]
  assert not any(now.pop(key) for key in tried)
  assert now == flat | before['values']
  found = {
    key: _owner(config, key).get_type(key.rpartition('.')[2]).__name__
    for key in now
  }
  assert found == BEFORE['types'] | before['types']
  assert config.is_locked
  assert settings.to_config_dict(settings.from_config(config)) == config


def _owner(config, key):
  for section in key.split('.')[:-1]:
    config = config[section]
  return config


def test_a_run_of_an_earlier_version_is_resumed(tmp_path):
  """Its config.json, letter by letter."""
  text = (FIXTURES / 'config.json').read_text()
  config = settings.make('kd')
  assert settings.to_json(config) == text
  assert settings.from_config(json.loads(text)) == config
  (tmp_path / 'config.json').write_text(text)
  workdir.check(tmp_path, config)


@pytest.mark.parametrize('losses', ['rkd', 'kd+pkt', 'crd+cc'])
def test_a_run_of_a_version_with_one_embedding(losses, tmp_path):
  """It is gone on with, unless another embedding is chosen now."""
  values = {'teacher.name': 'timm/vit_small_patch16_224'}
  config = settings.with_values(settings.make('kd', loss=losses), values)
  told = json.loads(settings.to_json(config))
  section = told['distillation']
  options = [section['options']]
  options += [extra['options'] for extra in section['extra'].values()]
  for one in options:
    one.pop('embedding', None)
  (tmp_path / 'config.json').write_text(json.dumps(told))
  workdir.check(tmp_path, config)
  place = 'options' if 'kd+' not in losses else 'extra.pkt.options'
  key = f'distillation.{place}.embedding'
  changed = settings.with_values(config, {key: 'class'})
  with pytest.raises(ValueError, match=f"{key}: None there, 'class' now"):
    workdir.check(tmp_path, changed)


def test_a_run_of_a_version_with_one_key_for_both_splits(tmp_path):
  """Resumed, repeated and evaluated with what it said of both."""
  old = json.loads((FIXTURES / 'config.json').read_text())
  for name in ('num_validation_per_class', 'num_test_per_class'):
    del old['data'][name]
  old['data']['num_eval_per_class'] = 3
  (tmp_path / 'config.json').write_text(json.dumps(old))
  same = settings.with_values(
    settings.make('kd'),
    {'data.num_validation_per_class': 3, 'data.num_test_per_class': 3},
  )
  workdir.check(tmp_path, same)
  assert settings.from_config(workdir.read(tmp_path)) == same
  again = recorded.get_config(str(tmp_path / 'config.json'))
  assert settings.from_config(again) == same
  message = 'data.num_test_per_class: 3 there, 0 now'
  with pytest.raises(ValueError, match=message):
    workdir.check(tmp_path, settings.make('kd'))
  with pytest.raises(WrongSettings, match='num_eval_per_class.*did you mean'):
    settings.with_values(same, {'data.num_eval_per_class': 3})


@pytest.mark.parametrize('losses', ['kd+at', 'dkd', 'nkd+dkd'])
def test_a_run_of_a_version_with_a_second_temperature(losses, tmp_path):
  """That of the options, which was the loss's, is the one there is."""
  config = settings.make('kd', loss=losses)
  published = config.distillation.temperature
  old = json.loads(settings.to_json(config))
  assert 'temperature' not in old['distillation']['options']
  old['distillation']['options']['temperature'] = published
  old['distillation']['temperature'] = 7.0
  (tmp_path / 'config.json').write_text(json.dumps(old))
  workdir.check(tmp_path, config)
  assert settings.from_config(workdir.read(tmp_path)) == config
  assert settings.from_config(old) == config
  changed = settings.with_values(config, {'distillation.temperature': 3})
  message = f'distillation.temperature: {published} there, 3.0 now'
  with pytest.raises(ValueError, match=message):
    workdir.check(tmp_path, changed)


def test_a_run_of_a_version_that_lacked_keys_is_resumed(tmp_path):
  old = json.loads((FIXTURES / 'config.json').read_text())
  del old['data']['balance'], old['data']['balance_tau'], old['remat']
  (tmp_path / 'config.json').write_text(json.dumps(old))
  workdir.check(tmp_path, settings.make('kd'))
  changed = settings.with_values(
    settings.make('kd'), {'data.balance': 'sampling'}
  )
  message = "data.balance: 'none' there, 'sampling' now"
  with pytest.raises(ValueError, match=message):
    workdir.check(tmp_path, changed)


@pytest.mark.parametrize(
  ('changes', 'flags_of_it'),
  [
    ({}, ['student.checkpoint={run}']),
    (
      {'transfer.lwf': 0.1, 'transfer.co_tuning': 0.2},
      [
        'student.checkpoint={run}',
        'transfer.lwf=0',
        'transfer.co_tuning=0',
      ],
    ),
    ({'quantize.mode': 'qat', 'student.checkpoint': 'runs/tl'}, []),
  ],
)
def test_more_steps_than_a_finished_run_has(changes, flags_of_it, tmp_path):
  """The advice is a command that is not refused for what it goes on from."""
  config = settings.with_values(settings.make('tl'), changes)
  shorter = settings.with_values(config, {'num_steps': 5})
  (tmp_path / 'config.json').write_text(settings.to_json(shorter))
  (tmp_path / 'summary.json').write_text('{}')
  longer = settings.with_values(config, {'num_steps': 9})
  with pytest.raises(ValueError, match='it is finished') as error:
    workdir.check(tmp_path, longer)
  *_, advice = str(error.value).splitlines()
  expected = [f'--config={tmp_path}/config.json', '--config.num_steps=9']
  expected += [f'--config.{f.format(run=tmp_path)}' for f in flags_of_it]
  assert advice.split() == [*expected, '--workdir=ANOTHER']


def test_a_study_stands_the_way_out_and_in():
  config = study_file.get_config('arms=methods')
  made = settings.from_config(config)
  assert made.study.arms['l2_sp'].changes['transfer.l2_sp'] == 0.1
  assert settings.to_config_dict(made) == config
  assert settings.from_config(json.loads(settings.to_json(made))) == made


@pytest.mark.parametrize(
  ('values', 'line'),
  [
    (
      {'data.fold': 0},
      'data.fold is 0 and data.folds is 0: there is one split',
    ),
    ({'data.fold': 5, 'data.folds': 5}, 'data.fold is 5, of 5 folds'),
    ({'data.fold': 7, 'data.folds': 2}, 'accepted: a whole number in [0, 1]'),
  ],
)
def test_a_fold_is_one_of_those_that_there_are(values, line):
  (found,) = problems(values)
  assert line in found and 'accepted: ' in found


@pytest.mark.parametrize('key', ['data.folds', 'data.fold'])
def test_folds_are_no_trial(key):
  (line,) = problems({'study.grid': {key: (2, 3)}})
  assert key in line and 'key that can be tried' in line
