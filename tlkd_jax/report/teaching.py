"""What the teachers of the pair on show say beside the label."""

import math
from typing import Any

from tlkd_jax.evaluation import records
from tlkd_jax.report.blocks import Block, Section, Text, named_table, show
from tlkd_jax.report.context import Context, relative

_TITLE = 'What the teacher says'
_PLACES = {
  'training views': "the student's training views",
  'validation': 'validation images',
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
    The section; None of a student whose teacher learned beside it.
  """
  summary = context.pair.kd.summary
  if summary.get('mutual'):
    return None
  said = summary.get('teacher_says')
  if not said:
    text = (
      'What the teacher says was not measured when these runs were made; '
      'newer runs do it before the student starts.'
    )
    return Section('says', _TITLE, [Text(text, 'missing')])
  blocks: list[Block] = []
  for name, found in said.items():
    blocks.append(Text(_in_words(name, found, len(context.class_names))))
    blocks += [
      Text(f'Warning, {name}: {worry}.') for worry in found['warnings']
    ]
  rows = [
    {
      'teacher': name,
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
  return Section('says', _TITLE, blocks)


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
