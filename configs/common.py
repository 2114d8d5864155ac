"""The argument of a config file: `configs/kd.py:dataset=digits,smoke`."""

import difflib


def parse_arg(arg: str | None, **defaults) -> dict:
  """Parses 'name=value,flag' strictly against typed defaults.

  Args:
    arg: what follows the colon of `--config FILE:ARG`; None or '' is empty.
    **defaults: every accepted name with its default. The default's type is the
      value's type; a bool may be given bare (`smoke`).

  Returns:
    The defaults, updated.

  Raises:
    ValueError: a name is unknown or given twice, or a value does not parse.
  """
  values = dict(defaults)
  seen = set()
  for item in filter(None, (arg or '').split(',')):
    name, given, text = item.partition('=')
    if name not in defaults:
      near = difflib.get_close_matches(name, defaults, n=2, cutoff=0.4)
      raise ValueError(
        f'unknown config argument {name!r}'
        + (f', did you mean {" or ".join(near)}?' if near else ';')
        + f' accepted: {", ".join(defaults)}'
      )
    if name in seen:
      raise ValueError(f'config argument {name!r} is given twice')
    seen.add(name)
    values[name] = _convert(name, text if given else None, defaults[name])
  return values


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
