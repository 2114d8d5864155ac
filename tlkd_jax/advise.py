"""Command line: `python -m tlkd_jax.advise --dataset folder:PATH`.

Is a teacher worth it here? docs/advise.md says what it does. From Python it is
the function `tlkd_jax.advise`; this file is for the command alone.
"""

import ast

from absl import flags

from tlkd_jax.runtime import allocator, command_line, interrupts
from tlkd_jax.runtime.command_line import fail
from tlkd_jax.runtime.errors import as_user_errors
from tlkd_jax.runtime.paths import expanded

# prepare has a flag of this name too, and a process may load both.
_DATASET = flags.DEFINE_string(
  'dataset',
  None,
  'folder:PATH or another name of docs/data.md; must be given.',
  allow_override=True,
)
_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/advice', 'Folder of the advice; the same command resumes it.'
)
_BUDGET = flags.DEFINE_float(
  'budget_minutes', 60.0, 'For all steps together; of each call anew.'
)
_STUDENTS = flags.DEFINE_list(
  'students',
  [],
  'MODEL or MODEL=WEIGHTS, ...: candidates for the student; default the '
  'smallest whose weights are at hand.',
)
_TEACHERS = flags.DEFINE_list(
  'teachers',
  [],
  'Likewise for the teacher; default all whose weights are at hand.',
)
_SIZES = flags.DEFINE_list(
  'image_sizes', [], 'Sides in pixels to try; default by data and budget.'
)
_SET = flags.DEFINE_multi_string(
  'set',
  [],
  'KEY=VALUE of docs/configs.md for all runs, such as '
  "data.pattern='{class}_*.jpg'; may be repeated.",
)
_CACHE = flags.DEFINE_string(
  'compilation_cache',
  None,
  'Folder of compiled programs; default in the user cache, "off" for none.',
)


def main(argv: list[str]) -> None:
  """Runs what the flags say."""
  if len(argv) > 1:
    fail(f'unexpected arguments: {" ".join(argv[1:])}')
  if not _DATASET.value:
    fail('--dataset is needed, e.g. --dataset folder:PATH')
  command_line.run_or_fail(_advise)


def _advise() -> None:
  interrupts.resumable()
  with as_user_errors():
    root = expanded(_WORKDIR.value)
    sizes = tuple(map(_side, _SIZES.value))
    values = dict(map(_value, _SET.value))
  allocator.keep_freed_memory()
  command_line.use_compilation_cache(_CACHE.value)
  from tlkd_jax.advice import conduct, request

  with as_user_errors():
    asked = request.make(
      _DATASET.value,
      tuple(_STUDENTS.value),
      tuple(_TEACHERS.value),
      sizes,
      _BUDGET.value,
      values,
    )
  found = conduct.run(asked, root)
  print(found.sentence)
  print(f'To train it: {found.command}')
  print(f'The page: {found.page}')


def _side(text: str) -> int:
  if not text.strip().isdigit():
    raise ValueError(
      f'--image_sizes has {text!r}; accepted: whole numbers, e.g. 64,96'
    )
  return int(text)


def _value(text: str) -> tuple[str, object]:
  key, equals, value = text.partition('=')
  if not (key and equals):
    raise ValueError(f'--set {text!r}; accepted: KEY=VALUE')
  try:
    return key, ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return key, value


def run() -> None:
  """Entry point: a mistake of the user is a message, not a trace."""
  command_line.run_command(main, _BUDGET)


if __name__ == '__main__':
  run()
