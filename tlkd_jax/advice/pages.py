"""Step 5: ADVICE/index.html, report.md and report.json; the sentence first."""

import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

from tlkd_jax.advice import sentence
from tlkd_jax.advice.choosing import PROBE_FOLDS, Choice, views
from tlkd_jax.advice.probing import Probe
from tlkd_jax.advice.request import Request
from tlkd_jax.advice.sentence import Grounds
from tlkd_jax.answer.labels import dataset_name
from tlkd_jax.evaluation import records
from tlkd_jax.report import html, markdown
from tlkd_jax.report.blocks import Block, Section, Text, named_table
from tlkd_jax.runtime.atomic import replace_text
from tlkd_jax.runtime.texts import duration
from tlkd_jax.study import pages
from tlkd_jax.study.analysis import CellRow

TITLE = 'Is a teacher worth it here?'
SOURCE = 'advice.json'
# Of the study's own page; all of it is in study/index.html.
_OF_STUDY = ('answer', 'arms', 'calibration', 'cost')


def write(
  root: pathlib.Path,
  request: Request,
  looked: dict[str, Any],
  probes: Sequence[Probe],
  said: dict[str, Any],
  grounds: Grounds,
  rows: Sequence[CellRow],
) -> str:
  """Writes the three files; returns the sentence.

  Args:
    root: the folder of the advice.
    request: what was asked.
    looked: from looking.look.
    probes: of all candidates.
    said: of the teacher, see training.says; {} if it was not measured.
    grounds: of the sentence.
    rows: of the study, with answers.
  """
  text = sentence.write(grounds)
  sections = [
    Section('advice', TITLE, _advice(text, request, looked, grounds)),
    Section('data', 'The data', _data(looked)),
    Section('probes', 'What frozen features know', _probes(probes, grounds)),
  ]
  if said:
    sections.append(
      Section('targets', "What the teacher's targets say", _targets(said))
    )
  if rows:
    sections += [
      section
      for section in pages.make_sections(rows, grounds.conclusion)
      if section.key in _OF_STUDY
    ]
  name = dataset_name(request.dataset)
  seeds = grounds.conclusion.decision.seeds
  subtitle = (
    f'{name}: {looked["images"]:,} images of {looked["classes"]} classes; '
    f'{seeds} seed{"s" * (seeds != 1)}'
  )
  replace_text(root / 'index.html', html.page(TITLE, subtitle, sections))
  replace_text(root / 'report.md', markdown.page(TITLE, subtitle, sections))
  records.write_json(
    root / 'report.json',
    {
      'advice': text,
      'verdict': grounds.conclusion.decision.verdict,
      'use_teacher': sentence.use_teacher(grounds),
      'sections': markdown.as_data(sections),
    },
  )
  return text


def _advice(
  text: str, request: Request, looked: dict[str, Any], grounds: Grounds
) -> list[Block]:
  choice = grounds.choice
  told = command(request, grounds, num_train(looked, choice))
  blocks = [
    Text(text, 'lead'),
    Text(f'To train it: `{told}`'),
    Text(_limits(looked, choice, grounds)),
  ]
  if not choice.knows_more:
    blocks.append(
      Text(
        'By its probe the best teacher knows no more of these classes than the '
        "student's own frozen features do; a larger or better pretrained one "
        'may (--teachers).'
      )
    )
  return [*blocks]


def _limits(looked: dict[str, Any], choice: Choice, grounds: Grounds) -> str:
  """What the answer is an answer to."""
  text = (
    f'It was tried at {choice.image_size} px and with {choice.num_steps} steps'
  )
  if choice.train_fraction < 1:
    text += f', with {100 * choice.train_fraction:.0f} % of the training images'
  text += (
    ', the most that the budget allows for a first look'
    if choice.fits
    else ', the least that is tried: a first look takes more than the budget'
  )
  text += (
    '; larger images or more steps (a larger --budget_minutes and another '
    '--workdir) may give another answer. '
  )
  if looked['folds']:
    text += (
      f'The data are few, and are cut into {looked["folds"]} folds: every '
      'image is tested, by networks that did not learn from it. '
    )
  a_seed = duration(grounds.seconds_a_seed)
  return text + f'A further seed of all arms takes about {a_seed}.'


def num_train(looked: dict[str, Any], choice: Choice) -> int:
  """Training images of the arms."""
  return round(looked['counts']['train'] * choice.train_fraction)


def command(request: Request, grounds: Grounds, num_train: int) -> str:
  """The command that trains the advised recipe on all training images.

  Args:
    request: what was asked.
    grounds: of the sentence.
    num_train: training images of the arms.
  """
  choice = grounds.choice
  with_teacher = sentence.use_teacher(grounds)
  student, _, weights = choice.student.partition('=')
  file = f'configs/{"kd" if with_teacher else "tl"}.py'
  names = [f'dataset={request.dataset}', f'student={student}']
  keys = {
    'image_size': choice.image_size,
    'num_steps': sentence.num_steps(grounds),
    **request.values,
  }
  if weights:
    keys['student.weights'] = weights
  if with_teacher:
    teacher, _, weights = choice.teacher.partition('=')
    names.append(f'teacher={teacher}')
    keys |= {
      'teacher.fit': 'probed',
      'teacher.image_size': choice.teacher_size,
      'teacher.probe_views': views(num_train),
      'teacher.probe_folds': PROBE_FOLDS,
    }
    if weights:
      keys['teacher.weights'] = weights
  words = ['--config', f'{file}:{",".join(names)}']
  words += [f'--config.{key}={value}' for key, value in keys.items()]
  return shlex.join(
    ['python', '-m', 'tlkd_jax.main', *words, '--workdir', 'runs/advised']
  )


def _data(looked: dict[str, Any]) -> list[Block]:
  return [Text(f'{line[:1].upper()}{line[1:]}.') for line in looked['lines']]


def _probes(probes: Sequence[Probe], grounds: Grounds) -> list[Block]:
  choice = grounds.choice
  roles = {
    (choice.student, choice.image_size): 'student',
    (choice.teacher, choice.teacher_size): 'teacher',
  }
  table = [
    {
      'model': probe.model,
      'image side': probe.image_size,
      'validation accuracy': probe.accuracy,
      'validation NLL': probe.nll,
      'ms a prediction': probe.milliseconds,
      'images': probe.images,
      'chosen as': roles.get((probe.model, probe.image_size), ''),
    }
    for probe in sorted(probes, key=lambda one: one.nll)
  ]
  return [
    named_table(
      'Logistic regression on frozen features',
      table,
      SOURCE,
      'Of images that the regression did not see, and that are no test images '
      'of what is chosen by them. Milliseconds are measured here, in batches. '
      'Of what fits the budget the least NLL is the student; the teacher is '
      f'the one beside it. {choice.by}',
    )
  ]


def _targets(said: dict[str, Any]) -> list[Block]:
  one = next(iter(said.values()))
  places = ('training views', 'validation')
  table = [
    {
      'of': place,
      'p(label)': one[place]['p_label'],
      'classes in effect': one[place]['effective_classes'],
      'entropy': one[place]['entropy'],
      'right': one[place]['agreement'],
      'NLL': one[place]['nll'],
      'ECE': one[place]['ece'],
    }
    for place in places
  ]
  blocks: list[Block] = [
    named_table(
      f'The teacher of the first seed, at temperature {one["temperature"]:g}',
      table,
      'targets/teacher_says.json',
      'At p(label) = 1 a target is the label and no more; `classes in effect` '
      'is the exponential of the mean entropy.',
    )
  ]
  if one['student_probe_nll'] is not None:
    blocks.append(
      Text(
        'Validation NLL after temperature scaling: '
        f'{one["scaled_nll"]:.3f} of the teacher, '
        f'{one["student_probe_nll"]:.3f} of a probe of the student.'
      )
    )
  return [
    *blocks,
    *(Text(f'Beware of this teacher: {line}.') for line in one['warnings']),
  ]
