"""The files of configs/ and their argument; the page of keys."""

import dataclasses
import pathlib
import re

import pytest

from configs import compare, kd, study, teacher, tl
from tlkd_jax import settings
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.settings import Settings, rules
from tlkd_jax.settings.__main__ import make_text
from tlkd_jax.training import workdir

FILES = {'teacher': teacher, 'tl': tl, 'kd': kd, 'compare': compare}


@pytest.mark.parametrize(
  ('arg', 'expected'),
  [
    (None, {'name': 'a', 'count': 1, 'rate': 0.5, 'flag': False}),
    ('', {'name': 'a', 'count': 1, 'rate': 0.5, 'flag': False}),
    ('flag', {'name': 'a', 'count': 1, 'rate': 0.5, 'flag': True}),
    (
      'rate=1e-3,name=folder:/b=c,count=7,flag=false',
      {'name': 'folder:/b=c', 'count': 7, 'rate': 1e-3, 'flag': False},
    ),
  ],
)
def test_parse_arg(arg, expected):
  values = settings.parse_arg(arg, name='a', count=1, rate=0.5, flag=False)
  assert values == expected
  assert [type(v) for v in values.values()] == [str, int, float, bool]


@pytest.mark.parametrize(
  ('arg', 'message'),
  [
    ('cuont=3', "'cuont', did you mean count"),
    ('xyzzy', "'xyzzy'; accepted: name, count"),
    ('count=three', "count='three' is not of type int"),
    ('count=1.5', 'is not of type int'),
    ('count', "'count' needs a value"),
    ('count=', "'count' needs a value"),
    ('flag=yes', "flag='yes' is not true or false"),
    ('count=1,count=2', "'count' is given twice"),
  ],
)
def test_parse_arg_is_strict(arg, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    settings.parse_arg(arg, name='a', count=1, flag=False)


@pytest.mark.parametrize(
  ('arg', 'name'),
  [
    ('name=folder:{}/a,b', 'folder:{}/a,b'),
    ('flag,name=folder:{}/a,b,count=2', 'folder:{}/a,b'),
    ('name=folder:{}/a,b,c,d', 'folder:{}/a,b,c,d'),
    ('name=folder:{}/x,y=1,flag', 'folder:{}/x,y=1'),
    (r'name=folder:{}/c\,flag', 'folder:{}/c,flag'),
    (r'name=not\, there', 'not, there'),
    ('name=folder:{}/c,flag', 'folder:{}/c'),
    ('name=zip:{}/c,d.zip', 'zip:{}/c,d.zip'),
  ],
)
def test_a_path_with_commas(arg, name, tmp_path):
  for made in ('a,b', 'a,b,c,d', 'x,y=1', 'c,flag'):
    (tmp_path / made).mkdir()
  (tmp_path / 'c,d.zip').touch()
  given = arg.format(tmp_path)
  values = settings.parse_arg(given, name='a', count=1, flag=False)
  assert values['name'] == name.format(tmp_path)
  assert values['flag'] == (
    ',flag' in arg and '\\' not in arg or 'flag,' in arg
  )


def test_a_path_with_a_comma_that_is_not_there():
  with pytest.raises(ValueError, match=r"'b'; accepted.*written \\,"):
    settings.parse_arg('name=folder:/nowhere/a,b', name='a')


@pytest.mark.parametrize('arg', [None, 'smoke', 'student=resnet18,loss=dkd'])
def test_files_differ_in_the_arm_alone(arg):
  configs = {name: file.get_config(arg) for name, file in FILES.items()}
  flat = {name: flatten(config.to_dict()) for name, config in configs.items()}
  for name, values in flat.items():
    assert values.pop('arm') == name
    assert values == {k: v for k, v in flat['kd'].items() if k != 'arm'}


def test_a_study_has_the_same_keys_and_its_own_section():
  config = study.get_config('dataset=folder:a/trashnet.zip')
  flat = flatten(config.to_dict())
  own = {k for k in flat if k.startswith('study.')}
  assert flat.keys() - own == flatten(kd.get_config().to_dict()).keys()
  assert config.study.sizes == (10, 20, 50, 90)
  assert config.image_size == 64
  assert config.study.arms.teacher_high_res.changes.teacher.image_size == 112
  assert 'kd_high_res_teacher' in config.study.run_arms
  methods = study.get_config('dataset=folder:a/trashnet.zip,arms=methods')
  assert methods.study.run_arms == ()
  assert list(config.study.datasets) == ['trashnet']


def test_study_of_the_grid():
  arms = study.get_config('arms=grid').study.arms
  assert len(arms) == 18
  assert arms['kd_T4_w0_5'].changes.distillation.soft_weight == 0.5
  with pytest.raises(ValueError, match="'gird'; accepted: all, teachers, smoo"):
    study.get_config('arms=gird')


def test_configuration_is_locked():
  config = kd.get_config()
  with pytest.raises(AttributeError):
    config.lerning_rate = 1
  with pytest.raises(TypeError):
    config.num_steps = 'many'


def test_argument_sets_the_names():
  config = kd.get_config(
    'dataset=folder:/x,student=resnet18,teacher=resnet50,loss=dkd'
  )
  assert (config.dataset, config.student.name) == ('folder:/x', 'resnet18')
  assert (config.teacher.name, config.distillation.loss) == ('resnet50', 'dkd')
  assert config.distillation.options.beta == 8.0


def test_smoke_keeps_the_teacher_that_was_asked_for():
  assert kd.get_config('smoke').teacher.name == 'efficientnet_lite0'
  assert kd.get_config('smoke,teacher=resnet18').teacher.name == 'resnet18'


def test_unknown_names_are_refused_by_the_file():
  with pytest.raises(ValueError, match=r'^student.name is .*mean.* resnet18'):
    kd.get_config('student=resnet19')
  with pytest.raises(ValueError, match="distillation loss 'dkdd'.*dkd"):
    kd.get_config('loss=dkdd')


def without_meaning(kind, place='') -> list[str]:
  """Keys of a section, and of those in it, that nobody explains."""
  found = []
  for field in dataclasses.fields(kind):
    key = f'{place}{field.name}'
    if 'section' in field.metadata:
      found += without_meaning(field.metadata['section'], f'{key}.')
    elif not re.fullmatch(r'\S.*\.', field.metadata.get('meaning', '')):
      found.append(key)
  return found


def test_every_key_has_a_comment():
  assert not without_meaning(Settings)
  inner = (settings.ExtraLoss, settings.StudyArm, settings.StudyDataset)
  assert not [key for kind in inner for key in without_meaning(kind)]


def test_a_key_without_a_comment_is_noticed():
  @dataclasses.dataclass(frozen=True)
  class Section:
    said: int = rules.key(1, 'Of the section.', rules.whole())
    unsaid: int = rules.key(1, '', rules.whole())
    blank: int = rules.key(1, ' ', rules.whole())
    bare: int = 1

  @dataclasses.dataclass(frozen=True)
  class Whole:
    inner: Section = rules.section(Section)

  assert without_meaning(Whole) == ['inner.unsaid', 'inner.blank', 'inner.bare']


def undocumented(page: str, config) -> list[str]:
  """Keys of a file that have no row, with their default, in the page."""
  flat = flatten(config.to_dict())
  keys = [k for k in flat if not k.startswith(('distillation.o', 'study.grid'))]
  rows = {key: f'| `{key}` | `{flat[key]!r}` | ' for key in keys}
  return [
    key
    for key, row in rows.items()
    # The page has one section for both networks.
    if row not in page and row.replace('`teacher.', '`student.') not in page
  ]


def test_the_page_has_every_key_of_every_file():
  page = (pathlib.Path(__file__).parents[1] / 'docs/configs.md').read_text()
  config = settings.config_of('study', None)
  config.arm = 'kd'
  assert not undocumented(page, config)
  config = kd.get_config()
  assert not undocumented(page, config)
  lines = page.splitlines(keepends=True)
  for key in ('seed', 'data.crop', 'student.head', 'teacher.image_size'):
    shorter = ''.join(line for line in lines if f'| `{key}` |' not in line)
    missing = {key, key.replace('student', 'teacher')}
    assert set(undocumented(shorter, config)) == missing


def test_the_page_of_keys_is_up_to_date():
  page = pathlib.Path(__file__).parents[1] / 'docs' / 'configs.md'
  text = make_text()
  assert page.read_text() == text, (
    'python -m tlkd_jax.settings > docs/configs.md'
  )
  assert (
    '| `augment.contrast` | `0.0` | a number in [0, 1] | The same, of the '
    'contrast. |' in text
  )


def test_teachers_named_by_another_path_are_the_same_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)

  def taught_by(first, *more):
    return settings.with_values(
      settings.make('kd'),
      {'teacher.checkpoint': first, 'distillation.more_teachers': more},
    )

  workdir.write(tmp_path / 'run', taught_by('first', 'second', 'third'))
  again = [str(tmp_path / name) for name in ('first', 'second')]
  workdir.check(tmp_path / 'run', taught_by(*again, './third'))
  with pytest.raises(ValueError, match=r'distillation\.more_teachers'):
    workdir.check(tmp_path / 'run', taught_by('first', 'third', 'second'))
