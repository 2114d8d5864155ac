"""Settings by arm and a few names; the argument of a configuration file."""

import os
import re
from collections.abc import Collection
from typing import Any

import ml_collections

from tlkd_jax import losses
from tlkd_jax.runtime.errors import nearest
from tlkd_jax.settings.door import to_config_dict, with_values
from tlkd_jax.settings.study import Study
from tlkd_jax.settings.top import Settings

# The same code on a few images, in under a minute on two cores.
_SMOKE = {
  'image_size': 32,
  'num_train_per_class': 4,
  'data.num_validation_per_class': 4,
  'data.num_test_per_class': 4,
  'batch_size': 8,
  'num_steps': 6,
  'log_every_steps': 2,
  'eval_every_steps': 6,
}


def make(
  arm: str,
  *,
  dataset: str = 'digits',
  student: str = 'efficientnet_lite0',
  teacher: str = '',
  loss: str = 'kd',
  pretrain: str = '',
  smoke: bool = False,
) -> Settings:
  """The settings of one arm, or of all arms of a study.

  Args:
    arm: what the run trains: 'teacher', 'tl', 'kd', 'compare' (all three), or
      'study', which adds the section `study`.
    dataset: a name of docs/data.md: 'digits', 'folder:PATH', 'csv:PATH', ...
    student: a key of models.MODELS.
    teacher: likewise; '' is efficientnet_lite2, or the student if `smoke`.
    loss: a key of losses.LOSSES, which brings its published
      weight, warm-up and hyper-parameters; 'NAME+NAME' is a sum.
    pretrain: the loss of a stage without labels, which brings its
      hyper-parameters; '' is distillation.pretrain_loss with its defaults.
    smoke: a few images and steps.

  Raises:
    WrongSettings: a name that does not exist.
  """
  # The smoke run compiles one architecture unless told otherwise.
  default = student if smoke else 'efficientnet_lite2'
  values: dict[str, Any] = {
    'arm': arm,
    'dataset': dataset,
    'student.name': student,
    'teacher.name': teacher or default,
  }
  if arm == 'study':
    values['study'] = Study()
  if loss != 'kd':
    values |= _sum_of_losses(loss)
  if pretrain:
    values |= {
      'distillation.pretrain_loss': pretrain,
      'distillation.pretrain_options': losses.hyperparameters_of(pretrain),
    }
  if loss.startswith('function_matching'):
    # Beyer et al. 2022, section 3: labels unused, mixing rate uniform.
    values |= {'distillation.hard_weight': 0.0, 'augment.mixup_alpha': 1.0}
  return with_values(Settings(), values | (_SMOKE if smoke else {}))


def loss_values(name: str) -> dict[str, Any]:
  """Dotted keys with the values that a loss brings, as published.

  A temperature, which some losses have, is distillation.temperature.

  Raises:
    ValueError: a name that does not exist.
  """
  options = losses.hyperparameters_of(name)
  brought: dict[str, Any] = {
    'distillation.loss': name,
    'distillation.options': options,
    'distillation.soft_weight': losses.find(name).weight,
    'distillation.warmup_fraction': losses.find(name).warmup,
  }
  if 'temperature' in options:
    brought['distillation.temperature'] = options.pop('temperature')
  return brought


def _sum_of_losses(names: str) -> dict[str, Any]:
  first, *others = names.split('+')
  extra = {}
  for name in others:
    if name == first or name in extra:
      raise ValueError(f'loss={names} names {name!r} twice')
    brought = loss_values(name)
    extra[name] = {
      'weight': brought['distillation.soft_weight'],
      'warmup_fraction': brought['distillation.warmup_fraction'],
      'options': losses.hyperparameters_of(name),
    }
  return {**loss_values(first), 'distillation.extra': extra}


def config_of(arm: str, arg: str | None) -> ml_collections.ConfigDict:
  """What a file of configs/ returns.

  Args:
    arm: as in `make`.
    arg: `dataset=NAME,student=MODEL,teacher=MODEL,loss=NAME,pretrain=NAME,
      smoke`, in any order; `loss=NAME+NAME` is a sum.

  Raises:
    ValueError: as `parse_arg` and `make`.
  """
  options = parse_arg(
    arg,
    dataset='digits',
    student='efficientnet_lite0',
    teacher='',
    loss='kd',
    pretrain='',
    smoke=False,
  )
  return to_config_dict(make(arm, **options))


def parse_arg(arg: str | None, **defaults) -> dict:
  """Parses 'name=value,flag' strictly against typed defaults.

  Args:
    arg: what follows the colon of `--config FILE:ARG`; None or '' is empty. A
      comma in a path is written `\\,`, or plainly if the path exists.
    **defaults: every accepted name with its default. The default's type is the
      value's type; a bool may be given bare (`smoke`).

  Returns:
    The defaults, updated.

  Raises:
    ValueError: a name is unknown or given twice, or a value does not parse.
  """
  values = dict(defaults)
  seen = set()
  for item in _items(arg or '', defaults):
    name, given, text = item.partition('=')
    if name not in defaults:
      near = nearest(name, defaults)
      raise ValueError(
        f'unknown config argument {name!r}'
        + (f', did you mean {" or ".join(near)}?' if near else ';')
        + f' accepted: {", ".join(defaults)}'
        + r'; a comma in a path is written \,' * (':' in (arg or ''))
      )
    if name in seen:
      raise ValueError(f'config argument {name!r} is given twice')
    seen.add(name)
    values[name] = _convert(name, text if given else None, defaults[name])
  return values


def _items(arg: str, names: Collection[str]) -> list[str]:
  """'name=value' and flags; a value KIND:PATH may have commas.

  A comma is part of the path where the longer path is there and what follows
  the comma names no argument; and everywhere after a backslash.
  """
  pieces = [p.replace(r'\,', ',') for p in re.split(r'(?<!\\),', arg)]
  items = []
  while pieces:
    item = pieces.pop(0)
    path = item.partition('=')[2].partition(':')[2]
    named = [n for n, p in enumerate(pieces) if p.partition('=')[0] in names]
    for count in range(min([*named, len(pieces)]) if path else 0, 0, -1):
      rest = ','.join(['', *pieces[:count]])
      if os.path.exists(os.path.expanduser(path + rest)):
        item, pieces = item + rest, pieces[count:]
        break
    items.append(item)
  return [item for item in items if item]


def _convert(name: str, text: str | None, default):
  if isinstance(default, bool):
    words = {None: True, 'true': True, '1': True, 'false': False, '0': False}
    key = text if text is None else text.lower()
    if key in words:
      return words[key]
    raise ValueError(f'config argument {name}={text!r} is not true or false')
  if not text:
    raise ValueError(f'config argument {name!r} needs a value: {name}=VALUE')
  try:
    return type(default)(text)
  except ValueError:
    kind = type(default).__name__
    raise ValueError(
      f'config argument {name}={text!r} is not of type {kind}'
    ) from None
