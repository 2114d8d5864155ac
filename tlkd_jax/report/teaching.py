"""What the teachers of the pair on show say beside the label."""

import math
from typing import Any

from tlkd_jax.evaluation import records
from tlkd_jax.report.blocks import Block, Section, Text, named_table, show
from tlkd_jax.report.context import Context, relative
from tlkd_jax.report.runs import RunFolder

_TITLE = 'What the teacher says'
_PLACES = {
  'training views': "the student's training views",
  'validation': 'validation images',
}
_PSEUDO_LABELS = {
  'hard': 'each image without label by the class that it holds most likely.',
  'soft': 'each image without label by its probabilities.',
}
_SHAMS = {
  'uniform': 'the rest of the probability is the same for all other classes',
  'permuted': 'the rest of the probability is at other classes than its own',
}


def section(context: Context) -> Section | None:
  """What was measured of the targets before the student learned from them.

  Args:
    context: the pair on show.

  Returns:
    The section; None of a student whose teacher learned beside it. Of
    self-training and FixMatch, who labels the images without labels.
  """
  kd = context.pair.kd
  summary = kd.summary
  if summary.get('mutual'):
    return None
  if kd.kind == 'fixmatch':
    return Section('says', 'Who labels the other images', [_fixmatch(kd)])
  said = summary.get('teacher_says')
  own = kd.kind == 'self_training'
  title = 'Who labels the other images' if own else _TITLE
  if not said:
    text = (
      'What the teacher says was not measured when these runs were made; '
      'newer runs do it before the student starts.'
    )
    return Section('says', title, [Text(text, 'missing')])
  blocks: list[Block] = [_self_training(kd)] if own else []
  for name, found in said.items():
    called = 'TL run' if own else name
    blocks.append(Text(_in_words(called, found, len(context.class_names))))
    blocks += [
      Text(f'Warning, {called}: {worry}.') for worry in found['warnings']
    ]
  rows = [
    {
      'teacher': 'TL run' if own else name,
      'on': words,
      'p(label)': _number(found[place], 'p_label'),
      'classes in effect': _number(found[place], 'effective_classes'),
      'entropy': _number(found[place], 'entropy'),
      'agreement': _number(found[place], 'agreement'),
      'NLL': _number(found[place], 'nll'),
      'ECE': _number(found[place], 'ece'),
    }
    for name, found in said.items()
    for place, words in _PLACES.items()
  ]
  temperature = next(iter(said.values()))['temperature']
  blocks.append(
    named_table(
      f'Targets at temperature {temperature:g}',
      rows,
      f'{relative(context.pair.kd.path, context.out)}/summary.json',
      'p(label) is a mean over images; classes in effect: exp of the mean '
      'entropy, which is in nats; agreement: how often the largest probability '
      "is the label's.",
    )
  )
  return Section('says', title, blocks)


def _self_training(run: RunFolder) -> Text:
  kind = str(run.summary['self_training'])
  return Text(
    f"Self-training with {kind} pseudo-labels: no teacher, but the student's "
    f'own TL run, which labels {_PSEUDO_LABELS[kind]} It saw '
    f'{_counted(run)}.'
  )


def _fixmatch(run: RunFolder) -> Text:
  weight, threshold = (
    float(run.config[f'distillation.fixmatch_{name}'])
    for name in ('weight', 'threshold')
  )
  return Text(
    'FixMatch: no teacher. Where the student itself gives a class of a weakly '
    f'augmented image without label a probability of {threshold:g} or more, '
    'that class is the label of the same image, strongly augmented; this loss '
    f'has the weight {weight:g} beside that of the labels. It saw '
    f'{_counted(run)}.'
  )


def _counted(run: RunFolder) -> str:
  others = int(run.summary.get('num_unlabelled', 0))
  return f'{run.num_train:,} images with labels and {others:,} without'


def _in_words(name: str, found: dict[str, Any], num_classes: int) -> str:
  seen, unseen = (found[place] for place in _PLACES)
  text = (
    f'On the views that the student learns from, the {name} gives the label '
    f'a probability of {_show(seen, "p_label")} at temperature '
    f'{found["temperature"]:g}, as if {_classes(seen)} of '
    f'{num_classes} classes were in question; on validation images '
    f'{_show(unseen, "p_label")}, and {_classes(unseen)}. '
    f'It names the label of {_percent(seen)} of the views and of '
    f'{_percent(unseen)} of the validation images.'
  )
  sham = found.get('sham', 'off')
  if sham != 'off':
    text += (
      f" All this is of a sham: p(label) is the {name}'s, and {_SHAMS[sham]}."
    )
  known, probe = (
    records.number(found.get(key))
    for key in ('scaled_nll', 'student_probe_nll')
  )
  if not math.isnan(known + probe):
    than = 'less' if known > probe else 'more'
    text += (
      f' The {name} itself knows {than} of these classes than logistic '
      f"regression on the student's own features: validation NLL {show(known)} "
      f'and {show(probe)}, each after temperature scaling.'
    )
  return text


def _show(values: dict[str, Any], key: str) -> str:
  return show(_number(values, key))


def _classes(values: dict[str, Any]) -> str:
  count = _number(values, 'effective_classes')
  return '–' if math.isnan(count) else f'{count:.1f}'


def _percent(values: dict[str, Any]) -> str:
  share = _number(values, 'agreement')
  return '–' if math.isnan(share) else f'{100 * share:.0f} %'


def _number(values: dict[str, Any], key: str) -> float:
  return records.number(values[key])
