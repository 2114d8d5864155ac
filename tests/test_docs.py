"""Every command in the documentation exists, with its flags and keys."""

import importlib
import pathlib
import re
import shlex
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted(ROOT.glob('*.md')) + sorted((ROOT / 'docs').rglob('*.md'))
# Console command -> what it calls, 'MODULE:FUNCTION'.
SCRIPTS = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project'][
  'scripts'
]
# A number of commands that no reader of these pages would miss.
_LEAST = 20


def blocks(text: str) -> list[str]:
  """Lines of code blocks, indented or fenced, '\\' at an end joined."""
  lines, fenced = [], False
  for line in text.splitlines():
    if line.startswith('```'):
      fenced = not fenced
    elif fenced or line.startswith('    '):
      lines.append(line.strip())
  return '\n'.join(lines).replace('\\\n', ' ').splitlines()


def commands(text: str) -> list[list[str]]:
  """Commands in code blocks and between backticks, as words."""
  inline = re.findall(r'`([^`]+)`', re.sub(r'```.*?```', '', text, flags=re.S))
  inline = [' '.join(code.split()) for code in inline]
  found = []
  for line in blocks(text) + inline:
    for part in re.split(r' && | > ', line):
      part = part.partition('  #')[0]
      try:
        words = shlex.split(part)
      except ValueError:
        # A quotation mark of a sentence.
        continue
      while words and re.match(r'[A-Z_]+=', words[0]):
        words = words[1:]
      ours = words[:2] == ['python', '-m'] and words[2] != 'venv'
      if ours or (words and _is_script(words[0])):
        found.append(words)
      elif words and words[0] in ('sbatch', 'pip'):
        found.append(words)
      elif words and re.fullmatch(r'tlkd-jax[\w-]*', words[0]):
        found.append(words)
  return found


def _is_script(word: str) -> bool:
  return word.startswith(('launch/', '.ci/'))


ALL = [
  (page.name, words) for page in PAGES for words in commands(page.read_text())
]


def test_commands_are_found():
  assert len(ALL) >= _LEAST
  modules = {words[2] for _, words in ALL if words[0] == 'python'}
  assert {'tlkd_jax.main', 'tlkd_jax.study', 'tlkd_jax.export'} <= modules


def source_of(module: str) -> str:
  """The file that `python -m MODULE` runs."""
  path = ROOT / module.replace('.', '/')
  for candidate in (path.with_suffix('.py'), path / '__main__.py'):
    if candidate.exists():
      return candidate.read_text()
  raise AssertionError(f'no module {module}')


@pytest.mark.parametrize('name', SCRIPTS)
def test_a_console_command_is_a_module_that_runs(name):
  module, _, function = SCRIPTS[name].partition(':')
  assert f"if __name__ == '__main__':\n  {function}()" in source_of(module)
  assert f'\ndef {function}() -> None:' in source_of(module)
  assert any(words[0] == name for _, words in ALL)


def accepted_flags(source: str) -> set[str]:
  """Names that absl or argparse defines in a file."""
  absl = re.findall(r"DEFINE_\w+\(\s*'(\w+)'", source)
  parser = re.findall(r"add_argument\(\s*'--([\w-]+)'", source)
  return {*absl, *parser}


@pytest.mark.parametrize(
  ('page', 'words'), ALL, ids=[f'{p}: {" ".join(w)[:60]}' for p, w in ALL]
)
def test_command(page, words):
  if words[0] == 'pip':
    check_pip(words)
  elif words[0] == 'python':
    check_flags(words[3:], accepted_flags(source_of(words[2])))
    check_config(words[3:])
  elif words[0].startswith('tlkd-jax'):
    assert words[0] in SCRIPTS, words[0]
    module = SCRIPTS[words[0]].partition(':')[0]
    check_flags(words[1:], accepted_flags(source_of(module)))
    check_config(words[1:])
  else:
    scripts = [word for word in words if _is_script(word)]
    assert scripts and all((ROOT / script).exists() for script in scripts)
    files = [word for word in words if word.startswith('configs/')]
    check_config([f'--config={word}' for word in files])


def check_pip(words) -> None:
  for flag, value in zip(words, words[1:], strict=False):
    if flag == '-r':
      assert (ROOT / value).exists(), value


def check_flags(words, accepted) -> None:
  for word in words:
    match = re.match(r'--([\w-]+)', word)
    if match and not word.startswith('--config.'):
      name = match.group(1)
      assert name in accepted or name.removeprefix('no') in accepted, name


def check_config(words) -> None:
  """Parses --config FILE:ARG and sets every --config.KEY=VALUE in it."""
  config = None
  joined = ' '.join(words)
  match = re.search(r'--config[ =](configs/\S+)', joined)
  if match and 'NAME' not in match.group(1):
    file, _, arg = match.group(1).partition(':')
    assert (ROOT / file).exists(), file
    module = importlib.import_module(file.removesuffix('.py').replace('/', '.'))
    config = module.get_config(arg)
  for word in words:
    match = re.match(r'--config\.([\w.]+)=(.*)$', word)
    if match is None or config is None:
      continue
    key, text = match.groups()
    owner = config
    *sections, last = key.split('.')
    for section in sections:
      owner = owner[section]
    assert last in owner, f'no key {key}'
    if isinstance(owner[last], bool | int | float | tuple):
      value = type(owner[last])(eval(text, {'__builtins__': {}}))
      setattr(owner, last, value)


def test_links_lead_somewhere():
  for page in PAGES:
    for target in re.findall(r'\]\(([^)#]+)', page.read_text()):
      if not target.startswith('http'):
        assert (page.parent / target).exists(), f'{page.name}: {target}'


def anchors(page: pathlib.Path) -> set[str]:
  """What a link may name in a page: its headings, as GitHub spells them."""
  found = re.findall(r'^#+ (.+)$', page.read_text(), re.M)
  words = [re.sub(r'[^\w\- ]', '', heading.lower()) for heading in found]
  return {heading.replace(' ', '-') for heading in words}


def test_links_lead_to_headings():
  found = 0
  for page in PAGES:
    for target, name in re.findall(
      r'\]\(([^)#\s]*)#([^)\s]+)\)', page.read_text()
    ):
      if not target.startswith('http'):
        there = page.parent / target if target else page
        assert name in anchors(there), f'{page.name}: {target}#{name}'
        found += 1
  assert found > 10


def test_files_that_are_named_are_there():
  folders = 'tlkd_jax|configs|launch|benchmarks|tests|docs'
  suffixes = 'py|md|json|sh|sbatch|ipynb'
  place = re.compile(rf'\b(?:{folders})/[\w/]*\w\.(?:{suffixes})\b')
  found = 0
  for page in PAGES:
    for path in place.findall(page.read_text()):
      assert (ROOT / path).exists(), f'{page.name}: {path}'
      found += 1
  assert found > 20


def glossary() -> dict[str, str]:
  """Word -> where it stands in the package, '' where it is no name there."""
  page = (ROOT / 'docs' / 'architecture.md').read_text()
  rows = re.findall(
    r'^\| ([\w, ]+) \| [^|]+ \| (?:`([\w.]+)`)? +\|$', page, re.M
  )
  return dict(rows)


def test_every_word_has_one_meaning():
  page = (ROOT / 'docs' / 'architecture.md').read_text()
  table = page[page.index('| word |') :].splitlines()[2:]
  assert len(glossary()) == len(table) > 20


@pytest.mark.parametrize('name', [n for n in glossary().values() if n])
def test_the_words_are_names_in_the_code(name):
  module, _, last = f'tlkd_jax.{name}'.rpartition('.')
  found = vars(importlib.import_module(module))
  if last not in found:
    importlib.import_module(f'{module}.{last}')


def test_a_wrong_command_is_noticed():
  accepted = accepted_flags(source_of('tlkd_jax.main'))
  check_flags(['--workdir=x', '--config.seed=1'], accepted)
  with pytest.raises(AssertionError):
    check_flags(['--wrokdir=x'], accepted)
  with pytest.raises(AssertionError, match='no key sede'):
    check_config(['--config=configs/kd.py', '--config.sede=1'])
  with pytest.raises(ValueError, match='unknown config argument'):
    check_config(['--config=configs/kd.py:smook'])
  with pytest.raises(AssertionError):
    source_of('tlkd_jax.mian')
