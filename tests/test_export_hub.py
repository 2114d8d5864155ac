"""Folders for the Hugging Face Hub: what is in them, the card, the upload."""

import dataclasses
import http.server
import json
import pathlib
import re
import shutil
import threading
import time

import huggingface_hub
import numpy as np
import pytest

from tests import exports, tiny
from tests.test_export import make_student, save_run
from tlkd_jax import export, losses, settings
from tlkd_jax.evaluation import evaluate
from tlkd_jax.export import __main__ as command
from tlkd_jax.export import card, citations, formats, hub, pushing
from tlkd_jax.export import student as students
from tlkd_jax.models.weights import torch_files
from tlkd_jax.runtime.errors import RunError, UserError

TOKEN = 'hf_thetokenthatnobodymaysee'


@pytest.fixture(scope='module', autouse=True)
def models():
  with tiny.registered():
    yield


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A folder with runs kd and tl of the same images."""
  root = tmp_path_factory.mktemp('runs')
  data = exports.write_images(root / 'secret place' / 'photos')
  exports.write_run(root / 'kd', data, root / 'cache')
  exports.write_run(root / 'tl', data, root / 'cache', arm='tl', seed=3)
  return root


@pytest.fixture
def without_onnx(monkeypatch):
  needy = dataclasses.replace(formats.FORMATS['onnx'], needs=('no_such',))
  monkeypatch.setitem(formats.FORMATS, 'onnx', needy)


@pytest.fixture(scope='module')
def written(runs):
  """(folder for a hub, what was said) without ONNX."""
  with pytest.MonkeyPatch.context() as patch:
    needy = dataclasses.replace(formats.FORMATS['onnx'], needs=('no_such',))
    patch.setitem(formats.FORMATS, 'onnx', needy)
    out = runs / 'hub' / 'my-student'
    return out, export.export_run(runs / 'kd', 'hub', out)


# --- The folder ---


def test_the_folder_is_whole_without_onnx_and_says_so(written):
  out, said = written
  expected = set(hub.FILES) - {hub.ONNX}
  assert {path.name for path in out.iterdir()} == expected
  assert 'model.onnx is left out: it needs no_such' in said
  assert '.tmp' not in said and str(out / hub.WEIGHTS) in said
  # Neither the unfinished nor the former folder stays.
  assert [path.name for path in out.parent.iterdir()] == ['my-student']


def test_configurations_are_those_of_the_run(written):
  out, _ = written
  config = json.loads((out / 'config.json').read_text())
  assert config['label_names'] == list(exports.CLASSES)
  assert config['pretrained_cfg']['input_size'] == [3, 16, 16]
  assert 'onnx_input' not in config
  processor = json.loads((out / 'preprocessor_config.json').read_text())
  # 16 / 0.9 without its fraction; Pillow's number of bicubic is 3.
  assert processor['size'] == {'shortest_edge': 17}
  assert processor['crop_size'] == {'height': 16, 'width': 16}
  assert processor['resample'] == 3
  np.testing.assert_allclose(processor['image_mean'], 127 / 255)
  weights = torch_files.read_state_dict(out / hub.WEIGHTS)
  assert 'classifier.weight' in weights


def test_a_folder_of_an_export_is_replaced(runs, without_onnx, tmp_path):
  out = tmp_path / 'out'
  export.export_run(runs / 'kd', 'hub', out)
  before = (out / hub.WEIGHTS).read_bytes()
  export.export_run(runs / 'tl', 'hub', out)
  assert (out / hub.WEIGHTS).read_bytes() != before
  assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_what_fails_leaves_the_former_folder(
  runs, without_onnx, tmp_path, monkeypatch
):
  out = tmp_path / 'out'
  export.export_run(runs / 'kd', 'hub', out)
  before = {path.name: path.read_bytes() for path in out.iterdir()}

  def fail(*_):
    raise RuntimeError('the disk is full')

  monkeypatch.setattr(card, 'write', fail)
  with pytest.raises(RuntimeError, match='the disk is full'):
    export.export_run(runs / 'tl', 'hub', out)
  assert {p.name: p.read_bytes() for p in out.iterdir()} == before
  assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_what_a_kill_left_is_removed_later(tmp_path, monkeypatch):
  names = ['.out.4711.tmp', '.out.4711.old']
  others = ['.out.tmp', '.out.x.tmp', '.other.4711.tmp', 'out.4711.tmp']
  for name in names + others:
    (tmp_path / name / 'deep').mkdir(parents=True)
  there = {path.name for path in tmp_path.iterdir()}
  # A former folder that is the only one stays.
  for hours, exists, left in (
    (0.9, True, there),
    (1.1, False, there - {names[0]}),
    (1.1, True, there - {*names}),
  ):
    now = time.time() + 3600 * hours
    with monkeypatch.context() as patch:
      patch.setattr(hub.time, 'time', lambda now=now: now)
      if exists:
        (tmp_path / 'out').mkdir(exist_ok=True)
      with hub.replacing_folder(tmp_path / 'out'):
        pass
      shutil.rmtree(tmp_path / 'out')
    assert {path.name for path in tmp_path.iterdir()} == left


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    ({'thesis.tex': ''}, r'holds what no export wrote \(thesis.tex\)'),
    ({'config.json': '{}', 'README.md': ''}, 'holds what no export wrote'),
    ({'config.json': '[]'}, 'holds what no export wrote'),
    ({'config.json': 'no JSON'}, 'holds what no export wrote'),
    (
      {'config.json': '{"tlkd_jax_export": 1}', '.git': ''},
      r'holds what no export wrote \(.git\)',
    ),
  ],
)
def test_a_folder_of_others_stays(files, message, runs, tmp_path):
  for name, text in files.items():
    (tmp_path / name).write_text(text)
  with pytest.raises(UserError, match=message):
    export.export_run(runs / 'kd', 'hub', tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == set(files)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'fold_norm': True}, '--fold-norm fits no folder for a hub'),
    ({'opset': 12}, '--opset 12; accepted: 13 to 26'),
    ({'opset': 17, 'with_preprocessing': True}, 'accepted: 18 or more'),
    ({'push': 'no-organisation'}, 'accepted: ORGANISATION/NAME'),
    ({'push': 'a/b/c'}, 'accepted: ORGANISATION/NAME'),
    ({'push': 'a b/c'}, 'accepted: ORGANISATION/NAME'),
    ({'push': ''}, 'accepted: ORGANISATION/NAME'),
  ],
)
def test_mistakes(options, message, runs, tmp_path):
  with pytest.raises(UserError, match=message):
    export.export_run(runs / 'kd', 'hub', tmp_path / 'out', **options)
  assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder(runs, tmp_path):
  (tmp_path / 'out').touch()
  with pytest.raises(UserError, match='out is a file; --format hub writes a f'):
    export.export_run(runs / 'kd', 'hub', tmp_path / 'out')


@pytest.mark.parametrize('out', ['.', '..', '/', 'a/..'])
def test_a_folder_has_a_name(out, runs):
  with pytest.raises(UserError, match='give it by its name'):
    export.export_run(runs / 'kd', 'hub', out)


def test_a_fused_network_is_refused(runs, tmp_path):
  student = exports.student_of()
  model = dataclasses.replace(student.model, name='mobileone_s0_fused')
  fused = dataclasses.replace(student, model=model)
  with pytest.raises(ValueError, match='timm makes no fused network'):
    hub.read_run(fused, runs / 'kd')


def test_a_checkpoint_without_a_record_gets_no_card(tmp_path, without_onnx):
  save_run(tmp_path / 'run')
  with pytest.raises(UserError, match='holds no config.json: not a run'):
    export.export_run(tmp_path / 'run', 'hub', tmp_path / 'out')


@pytest.mark.parametrize('format', ['safetensors', 'onnx', 'stablehlo'])
def test_only_a_folder_is_uploaded(format, runs, tmp_path, monkeypatch):
  free = dataclasses.replace(formats.FORMATS[format], needs=())
  monkeypatch.setitem(formats.FORMATS, format, free)
  with pytest.raises(UserError, match='accepted with --format hub'):
    out = tmp_path / f'a.{format}'
    export.export_run(runs / 'kd', format, out, push='org/name')


# --- The card ---


def cells(line: str) -> list[str]:
  """Of a line of a Markdown table, as GitHub cuts it."""
  parts = re.split(r'(?<!\\)\|', line.strip())
  assert parts[0] == parts[-1] == ''
  return [part.strip() for part in parts[1:-1]]


def test_the_front_matter_is_that_of_the_hub(written):
  out, _ = written
  found = huggingface_hub.ModelCard.load(out / 'README.md')
  about = found.data.to_dict()
  assert about['library_name'] == 'tlkd_jax'
  assert about['license'] == 'unknown'
  assert about['pipeline_tag'] == 'image-classification'
  assert 'knowledge-distillation' in about['tags']
  (first, *_) = found.data.eval_results
  assert first.metric_type == 'accuracy' and first.dataset_name == 'photos'
  assert found.data.model_name == 'my-student'
  test = evaluate.load(out.parents[1] / 'kd' / 'predictions' / 'test.npz')
  accuracy = (test.logits.argmax(1) == test.labels).mean()
  assert first.metric_value == round(float(accuracy), 4)


def test_odd_names_break_no_table_and_no_markup(written):
  out, _ = written
  lines = (out / 'README.md').read_text().splitlines()
  tables = [line for line in lines if line.startswith('|')]
  start = tables.index(
    next(line for line in tables if cells(line)[1:2] == ['class'])
  )
  rows = [cells(line) for line in tables[start + 2 : start + 7]]
  assert [row[0] for row in rows] == ['0', '1', '2', '3', '4']
  assert {len(row) for row in rows} == {4}
  assert [row[2] for row in rows] == ['3'] * 5
  assert rows[1][1] == r"c'a\|t\`" and '<b>' not in '\n'.join(lines)
  # Every block of lines of one table has as many cells as its head.
  width = 0
  for before, line in zip(['', *lines], lines, strict=False):
    if line.startswith('|'):
      width = width if before.startswith('|') else len(cells(line))
      assert len(cells(line)) == width, line


def test_the_card_says_data_recipe_results_and_the_student_without_teacher(
  written,
):
  text = (written[0] / 'README.md').read_text()
  for said in (
    'fine-tuned with a teacher',
    'folder:photos',
    '| train | 10 | 10 |',
    r'- a \| note',
    '- 2 of 15 images of test are exact copies of images of train or valid',
    '| arm | TL+KD |',
    '| accuracy of the teacher | 0.750 |',
    'This is one pair of runs.',
    'It learned from 10 labelled images.',
    'Distilling the Knowledge in a Neural Network',
    '@software{tlkd_jax',
  ):
    assert said in text, said
  for title in ('Use', 'Classes', 'Limits', 'Licences', 'Citation'):
    assert f'\n## {title}\n' in text


def test_no_path_of_this_machine_is_told(runs, written):
  for path in written[0].iterdir():
    content = path.read_bytes()
    assert str(runs).encode() not in content, path
    assert b'secret place' not in content, path
    # Nor the name of a file, which may be that of a person.
    assert b'lovelace' not in content, path


@pytest.mark.parametrize(
  ('key', 'value', 'said'),
  [
    ('student.weights', '/home/ada/x/w.pth', '| student.weights | w.pth |'),
    ('student.weights', 'timm:resnet18.a1_in1k', 'timm:resnet18.a1'),
    ('distillation.unlabelled', 'folder:/home/ada/u', r'| folder:u |'),
    ('data.data_dir', '/home/ada/tfds', '| seed |'),
    ('dataset', 'csv:/home/ada/t.csv', 'csv:t.csv'),
    ('teacher.checkpoint', '/home/ada/runs/t', '| teacher.checkpoint | t |'),
  ],
)
def test_places_are_cut_to_their_last_part(key, value, said, runs):
  run = card.read_run(runs / 'kd')
  changed = {key: value, 'seed': 5}
  told = settings.with_values(run.settings, changed)
  run = dataclasses.replace(run, settings=told)
  student = exports.student_of()
  config = hub.configuration(student, True, False)
  text = card.write(student, run, config, 'a/b', [])
  assert said in text and 'ada' not in text


def test_the_student_without_a_teacher_must_have_seen_the_same(runs, tmp_path):
  shutil.copytree(runs / 'kd', tmp_path / 'kd')
  run = card.read_run(tmp_path / 'kd')
  assert card._beside(run) == []
  shutil.copytree(runs / 'tl', tmp_path / 'tl')
  assert card._beside(run)
  # As a study has them.
  shutil.copytree(runs / 'tl', tmp_path / 'study' / 'tl' / 'seed0')
  shutil.copytree(runs / 'kd', tmp_path / 'study' / 'kd' / 'seed0')
  assert card._beside(card.read_run(tmp_path / 'study' / 'kd' / 'seed0'))
  stored = tmp_path / 'tl' / 'predictions' / 'test.npz'
  theirs = evaluate.load(stored)
  evaluate.save(stored, dataclasses.replace(theirs, indices=theirs.indices + 1))
  assert card._beside(run) == []


@pytest.mark.parametrize(
  ('key', 'value', 'shown'),
  [
    ('num_steps', 2000, False),
    ('optimizer.learning_rate', 3e-3, False),
    ('label_smoothing', 0.2, False),
    ('batch_size', 16, False),
    ('augment.crop', 'random', False),
    ('student.checkpoint', 'runs/a', False),
    # What makes the arm, and how a run is done.
    ('distillation.temperature', 4.0, True),
    ('teacher.name', 'tiny', True),
    ('log_every_steps', 3, True),
  ],
)
def test_the_student_without_a_teacher_must_have_learned_alike(
  key, value, shown, runs, tmp_path
):
  for arm in ('tl', 'kd'):
    shutil.copytree(runs / arm, tmp_path / arm)
  run = card.read_run(tmp_path / 'kd')
  assert run.settings.seed == 0
  changed = settings.with_values(run.settings, {key: value})
  assert changed != run.settings
  run = dataclasses.replace(run, settings=changed)
  assert bool(card._beside(run)) is shown


def test_of_a_run_of_tl_there_is_no_teacher(runs, tmp_path, without_onnx):
  export.export_run(runs / 'tl', 'hub', tmp_path / 'out')
  text = (tmp_path / 'out' / 'README.md').read_text()
  assert 'fine-tuned without a teacher' in text and '| arm | TL |' in text
  assert 'Hinton' not in text and 'Beside the student' not in text
  assert 'transfer-learning' in text


def test_an_unfinished_run_says_so(runs, tmp_path, without_onnx):
  shutil.copytree(runs / 'kd', tmp_path / 'kd')
  (tmp_path / 'kd' / 'summary.json').unlink()
  shutil.rmtree(tmp_path / 'kd' / 'predictions')
  export.export_run(tmp_path / 'kd', 'hub', tmp_path / 'out')
  text = (tmp_path / 'out' / 'README.md').read_text()
  assert 'stopped before its end' in text
  assert 'has stored no predictions' in text and 'model-index' not in text


@pytest.mark.parametrize(
  ('lines', 'expected'),
  [
    ([], 'unknown'),
    (['timm:a#sha256=1: Apache-2.0 (its card)'], 'apache-2.0'),
    (['hf-hub:a/b@c: MIT (its card)', 'x: mit'], 'mit'),
    (['a: MIT (its card)', 'b: Apache-2.0 (its card)'], 'other'),
    (['a: not stated'], 'other'),
    (['a: cc-by-nc-4.0 (its card)'], 'cc-by-nc-4.0'),
    (["a: Meta's DINOv3 licence (its card)"], 'other'),
    (['a: Apache-2.0 (its card)', 'b: not stated'], 'other'),
  ],
)
def test_licences_as_the_hub_spells_them(lines, expected):
  assert card.licence_of(lines) == expected


def test_every_loss_has_its_papers_as_the_methods_page_has_them():
  own = {name for name, loss in losses.LOSSES.items() if not loss.same_as}
  assert own == set(citations.PAPERS)
  root = pathlib.Path(__file__).resolve().parent.parent
  page = (root / 'docs' / 'methods.md').read_text(encoding='utf-8')
  for papers in citations.PAPERS.values():
    for paper in papers:
      if paper.place[:1].isdigit():
        assert f'(https://arxiv.org/abs/{paper.place})' in page, paper
      assert paper.bibtex().count('{') == paper.bibtex().count('}')


def test_papers_of_a_sum_come_once():
  found = citations.of(['kd', 'fitnet_hint', 'fitnet', 'function_matching'])
  assert [paper.key for paper in found] == [
    'hinton2015',
    'romero2015',
    'beyer2022',
  ]


# --- The upload ---


class Hub:
  """Stands for huggingface_hub.HfApi."""

  calls: list[tuple]
  exists = False
  fails: Exception | None = None

  def whoami(self, token):
    assert token == TOKEN

  def repo_exists(self, name, token):
    assert token == TOKEN
    return self.exists

  def create_repo(self, name, **options):
    self.calls.append(('create', name, options['private']))

  def upload_folder(self, repo_id, folder_path, allow_patterns, **options):
    if self.fails:
      raise self.fails
    names = sorted(path.name for path in folder_path.iterdir())
    assert set(names) <= set(allow_patterns)
    self.calls.append(('upload', repo_id, names))


@pytest.fixture
def standing_in(monkeypatch):
  monkeypatch.setattr(Hub, 'calls', [], raising=False)
  monkeypatch.setattr(huggingface_hub, 'HfApi', Hub)
  monkeypatch.setattr(huggingface_hub, 'get_token', lambda: TOKEN)
  return Hub


def no_token_in(folder, *texts):
  assert not any(TOKEN in text for text in texts)
  assert not any(TOKEN.encode() in p.read_bytes() for p in folder.iterdir())


@pytest.mark.parametrize('exists', [False, True])
def test_the_folder_is_uploaded_where_asked(
  exists, runs, tmp_path, without_onnx, standing_in, monkeypatch
):
  monkeypatch.setattr(Hub, 'exists', exists)
  out = tmp_path / 'out'
  said = export.export_run(runs / 'kd', 'hub', out, push='org/name')
  made = [] if exists else [('create', 'org/name', True)]
  files = sorted(set(hub.FILES) - {hub.ONNX})
  assert standing_in.calls == [*made, ('upload', 'org/name', files)]
  assert 'uploaded to https://huggingface.co/org/name' in said
  assert ('a new private repository' in said) is not exists
  assert '# name\n' in (out / 'README.md').read_text()
  no_token_in(out, said)


def test_nothing_is_uploaded_unless_asked(
  runs, tmp_path, without_onnx, standing_in
):
  export.export_run(runs / 'kd', 'hub', tmp_path / 'out')
  assert standing_in.calls == []


def test_a_failed_upload_leaves_the_folder_and_hides_the_token(
  runs, tmp_path, without_onnx, standing_in, monkeypatch, capsys
):
  wrong = OSError(f'connection of {TOKEN} lost\nand more')
  monkeypatch.setattr(Hub, 'fails', wrong)
  out = tmp_path / 'out'
  arguments = ['--format=hub', f'--out={out}', '--push=org/name']
  with pytest.raises(SystemExit) as stop:
    command.main([f'--checkpoint={runs / "kd"}', *arguments])
  assert stop.value.code == 1
  said = capsys.readouterr()
  assert 'is written, and was not uploaded to org/name' in said.err
  assert 'connection of ... lost' in said.err
  no_token_in(out, said.err, said.out)


@pytest.mark.parametrize('token', [None, ''])
def test_without_a_token_nothing_begins(token, runs, tmp_path, monkeypatch):
  monkeypatch.setattr(huggingface_hub, 'get_token', lambda: token)
  with pytest.raises(UserError, match='log in with `hf auth login` or set HF_'):
    export.export_run(runs / 'kd', 'hub', tmp_path / 'out', push='org/name')
  assert not list(tmp_path.iterdir())


def test_offline_nothing_begins(runs, tmp_path, monkeypatch, standing_in):
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  with pytest.raises(UserError, match='HF_HUB_OFFLINE is set'):
    export.export_run(runs / 'kd', 'hub', tmp_path / 'out', push='org/name')


class _Answer(http.server.BaseHTTPRequestHandler):
  """Answers every question with a status."""

  status = 401
  asked: list[str] = []

  def do_GET(self):
    self.asked.append(self.headers.get('authorization', ''))
    self.send_response(self.status)
    self.send_header('Content-Length', '0')
    self.end_headers()

  def log_message(self, *_):
    pass


@pytest.mark.parametrize(
  ('status', 'message'),
  [
    (401, r'does not know this token \(401\)'),
    (403, r'may not write there \(403'),
  ],
)
def test_the_client_as_it_is_and_a_hub_that_refuses(
  status, message, monkeypatch
):
  monkeypatch.setattr(_Answer, 'status', status)
  monkeypatch.setattr(_Answer, 'asked', [])
  monkeypatch.setattr(huggingface_hub, 'get_token', lambda: TOKEN)
  constants = huggingface_hub.constants
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Answer) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{running.server_port}'
    monkeypatch.setattr(constants, 'ENDPOINT', address)
    with pytest.raises(ValueError, match=message) as info:
      pushing.check('org/name')
    running.shutdown()
  assert f'Bearer {TOKEN}' in _Answer.asked
  assert TOKEN not in str(info.value)


def test_the_client_as_it_is_and_no_hub(monkeypatch):
  monkeypatch.setattr(huggingface_hub, 'get_token', lambda: TOKEN)
  constants = huggingface_hub.constants
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  # Port 9 discards; nothing listens there.
  monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
  with pytest.raises(ValueError, match='127.0.0.1:9 cannot be reached') as info:
    pushing.check('org/name')
  assert TOKEN not in str(info.value)


def test_an_upload_that_fails_is_no_mistake_of_the_user(
  tmp_path, standing_in, monkeypatch
):
  monkeypatch.setattr(Hub, 'fails', RuntimeError('what a client may raise'))
  with pytest.raises(RunError, match='what a client may raise'):
    pushing.push(tmp_path, 'org/name', hub.FILES)


# --- The command ---


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--format=hub'], '--out must be given'),
    (['--out=a'], '--format must be given'),
    ([], '--format and --out must be given; or --verify FILE'),
    (['--format=hub', '--out=a', '--data=folder:b'], '--data is of --verify'),
    (['--verify=a', '--format=onnx'], 'reads no --format'),
    (['--verify=a', '--out=b', '--fold-norm'], 'reads no --out, --fold-norm'),
    (['--verify=a', '--push=b/c'], 'reads no --push'),
    (['--verify=a', '--opset=18'], 'reads no --opset'),
    (['--verify=a', '--with_preprocessing'], 'reads no --with-preprocessing'),
  ],
)
def test_flags_that_do_not_go_together(arguments, message, capsys):
  with pytest.raises(SystemExit) as stop:
    command.main(['--checkpoint=runs/kd', *arguments])
  assert stop.value.code == 2
  assert message in capsys.readouterr().err


# --- With the other libraries ---


@pytest.mark.slow
@pytest.mark.parametrize('name', ['efficientnet_lite0', 'mobilenetv2_050'])
def test_timm_and_transformers_load_the_folder(name, runs, tmp_path):
  torch = pytest.importorskip('torch', exc_type=ImportError)
  timm = pytest.importorskip('timm', exc_type=ImportError)
  transformers = pytest.importorskip('transformers', exc_type=ImportError)
  student = make_student(name, 64)
  run = card.read_run(runs / 'kd')
  out = tmp_path / 'out'
  hub.write(student, run, out, with_preprocessing=True)
  images = students.sample_images(student, 2)
  tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  expected = np.asarray(student.logits(images))
  one = timm.create_model(f'local-dir:{out}', pretrained=True).eval()
  auto = transformers.AutoModelForImageClassification
  other = auto.from_pretrained(out).eval()
  with torch.no_grad():
    for found in (one(tensor).numpy(), other(tensor).logits.numpy()):
      np.testing.assert_allclose(found, expected, atol=1e-4)
  assert list(one.pretrained_cfg['label_names']) == list(
    student.description.class_names
  )
  assert other.config.id2label[1] == student.description.class_names[1]
