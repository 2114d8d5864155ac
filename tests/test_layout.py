"""Imports go one way, training needs no TensorFlow."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'tlkd_jax'

# A module imports from its own line and from those above it.
ORDER = (
  ('runtime',),
  ('losses',),
  ('data',),
  ('models',),
  ('evaluation',),
  ('settings', 'answer'),
  ('training',),
  ('report',),
  ('chains',),
  ('preludes',),
  ('protocols',),
  ('arms', 'evaluating', 'inference'),
  ('study', 'export'),
  ('advice',),
  ('main', 'advise', 'api', 'caches'),
)
RANK = {name: i for i, names in enumerate(ORDER) for name in names}


def modules():
  return sorted(PACKAGE.rglob('*.py'))


def imported(path: pathlib.Path) -> set[str]:
  """Parts of the package that a file imports, at any depth of its code."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    found |= {n.split('.')[1] for n in names if n.startswith('tlkd_jax.')}
  return found


@pytest.mark.parametrize(
  'path', modules(), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_go_one_way(path):
  own = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
  if own == '__init__':
    # All are cheap to import, which test_api.py holds.
    assert imported(path) == {'api', 'export', 'runtime'}
    return
  assert own in RANK, f'{own} has no place in ORDER'
  above = {name for name in imported(path) if name != own and name in RANK}
  late = {name for name in above if RANK[name] >= RANK[own]}
  assert not late, f'{path} imports {late}'
  unknown = imported(path) - set(RANK)
  assert not unknown, f'{path} imports {unknown}'


def modules_imported(path: pathlib.Path) -> set[pathlib.Path]:
  """Files of the package that a file imports when it is loaded."""
  found = set()
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.Import):
      found |= {file_of(alias.name) for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        submodule = file_of(f'{node.module}.{alias.name}')
        found.add(submodule or file_of(node.module))
  return found - {path, None}


def file_of(name: str) -> pathlib.Path | None:
  place = ROOT / name.replace('.', '/')
  if not name.startswith('tlkd_jax.'):
    return None
  files = (place.with_suffix('.py'), place / '__init__.py')
  return next((file for file in files if file.exists()), None)


def test_no_file_needs_itself():
  """Within a room too there is an order in which its files can be read."""
  waiting = {path: modules_imported(path) for path in modules()}
  while True:
    ready = [p for p, needs in waiting.items() if not needs & waiting.keys()]
    if not ready:
      break
    for path in ready:
      del waiting[path]
  assert not waiting, sorted(str(p.relative_to(PACKAGE)) for p in waiting)


def test_the_architecture_page_has_this_order_and_every_room():
  page = (ROOT / 'docs' / 'architecture.md').read_text()
  lines = [', '.join(names) for names in ORDER]
  assert '\n'.join(f'    {line}' for line in lines) in page
  listed = re.findall(r'^\| `tlkd_jax/(\w+)(?:/|\.py)` \|', page, re.M)
  assert len(listed) == len(set(listed))
  rooms = {path.stem for path in PACKAGE.glob('*.py')} - {'__init__'}
  rooms |= {path.parent.name for path in PACKAGE.glob('*/__init__.py')}
  assert rooms <= set(listed)


def test_losses_stand_on_jax_alone():
  for path in (PACKAGE / 'losses').rglob('*.py'):
    assert imported(path) <= {'losses', 'runtime'}


def test_nothing_imports_the_tests_or_benchmarks():
  for path in modules():
    text = path.read_text()
    assert 'from tests' not in text and 'from benchmarks' not in text


def test_nothing_is_drawn_by_a_hash_that_differs_from_process_to_process():
  """`hash` of a text is salted: pictures seeded by it were never the same.

  Whether a value can be hashed may be asked: `isinstance(hash(x), int)`.
  """
  folders = ('tlkd_jax', 'configs', 'benchmarks', 'tests')
  files = [path for name in folders for path in (ROOT / name).rglob('*.py')]
  assert len(files) > 150
  for path in files:
    calls, text = {}, path.read_text()
    # Parsing all that is written takes seconds; few files call it.
    if not re.search(r'\bhash\b', text):
      continue
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        calls.setdefault(node.func.id, []).append(node)
    asked = [node.args[0] for node in calls.get('isinstance', [])]
    for node in calls.get('hash', []):
      assert node in asked, f'{path}:{node.lineno}'


# Never needed, or seconds of a start for what few runs compute.
UNSEEN = (
  'huggingface_hub.errors',
  'matplotlib',
  'scipy.optimize',
  'scipy.special',
  'scipy.stats',
  'sklearn',
  'tensorflow',
)


def test_training_starts_without_tensorflow_and_what_few_runs_need():
  code = (
    'import sys; import configs.kd; configs.kd.get_config()\n'
    'from tlkd_jax import main, arms, inference, data\n'
    'from tlkd_jax.runtime import sharding\n'
    'from tlkd_jax.data import sources\n'
    'sharding.make_mesh()\n'
    'try: data.load_splits("nothing", image_size=8)\n'
    'except ValueError as error: assert "unknown data set" in str(error)\n'
    f'print([m for m in {UNSEEN} if m in sys.modules])\n'
  )
  result = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert result.stdout.strip() == '[]', result.stderr
