"""Imports go one way, files stay short, training needs no TensorFlow."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'tlkd_jax'

# A module imports from its own line and from those above it.
ORDER = (
  ('errors', 'allocator', 'atomic'),
  ('command_line',),
  ('losses',),
  ('models',),
  ('data',),
  ('sharding',),
  ('optimizers',),
  ('train_state',),
  ('objective', 'transfer'),
  ('memory',),
  ('train_step',),
  ('target_store',),
  ('targets',),
  ('checkpoints',),
  ('metric_writers',),
  ('progress', 'signals'),
  ('evaluation',),
  ('build',),
  ('starting_point', 'mutual'),
  ('report',),
  ('run',),
  ('train',),
  ('protocols',),
  ('arms', 'inference'),
  ('study', 'export_onnx'),
  ('export',),
  ('main',),
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
    assert not imported(path)
    return
  assert own in RANK, f'{own} has no place in ORDER'
  above = {name for name in imported(path) if name != own and name in RANK}
  late = {name for name in above if RANK[name] >= RANK[own]}
  assert not late, f'{path} imports {late}'
  unknown = imported(path) - set(RANK)
  assert not unknown, f'{path} imports {unknown}'


def test_losses_stand_on_jax_alone():
  for path in (PACKAGE / 'losses').rglob('*.py'):
    assert imported(path) <= {'losses', 'errors'}


def test_nothing_imports_the_tests_or_benchmarks():
  for path in modules():
    text = path.read_text()
    assert 'from tests' not in text and 'from benchmarks' not in text


@pytest.mark.parametrize(
  ('folder', 'limit'),
  [('tlkd_jax', 400), ('configs', 400), ('benchmarks', 400), ('tests', 600)],
)
def test_files_are_short(folder, limit):
  lengths = {
    str(path.relative_to(ROOT)): len(path.read_text().splitlines())
    for path in (ROOT / folder).rglob('*.py')
  }
  assert lengths
  assert not {name for name, lines in lengths.items() if lines > limit}


def test_training_never_imports_tensorflow():
  code = (
    'import sys; import configs.kd; configs.kd.get_config()\n'
    'from tlkd_jax import main, arms, inference, data, sharding\n'
    'from tlkd_jax.data import sources\n'
    'sharding.make_mesh()\n'
    'try: data.load_splits("nothing", image_size=8)\n'
    'except ValueError as error: assert "unknown data set" in str(error)\n'
    'print([m for m in sys.modules if m.split(".")[0] == "tensorflow"])\n'
  )
  result = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert result.stdout.strip() == '[]', result.stderr
