"""What bad input gets: one readable message and an exit code, before work."""

import gzip
import io
import json
import pathlib
import shutil
import signal
import sys
import zlib

import numpy as np
import pytest
from absl import flags
from PIL import Image
from scipy import special

from tests import tiny
from tests.workdirs import change_description
from tlkd_jax import main
from tlkd_jax.evaluation import evaluate
from tlkd_jax.runtime import command_line
from tlkd_jax.training import loop

pytestmark = [
  pytest.mark.usefixtures('tiny_models'),
  # How ml_collections 1.1.0 loads a file.
  pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning'),
]


def call_main(monkeypatch, *arguments: str) -> int:
  """The exit code of the command line, run in this process."""
  argv = ['tlkd_jax.main', '--compilation_cache=off', *arguments]
  monkeypatch.setattr(sys, 'argv', argv)
  handler = signal.getsignal(signal.SIGTERM)
  try:
    main.main(command_line.parse_flags(argv))
  except SystemExit as stop:
    return stop.code
  finally:
    signal.signal(signal.SIGTERM, handler)
    for name in list(flags.FLAGS):
      if name.startswith('config.'):
        delattr(flags.FLAGS, name)
      else:
        flags.FLAGS[name].unparse()
    flags.FLAGS.unparse_flags()
  return 0


def png(seed: int) -> bytes:
  pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
  data = io.BytesIO()
  Image.fromarray(pixels).save(data, 'PNG')
  return data.getvalue()


class Place:
  """What a case may use: a folder, three classes of images, a finished run."""

  def __init__(self, folder: pathlib.Path, cache, runs: pathlib.Path):
    self.folder = folder
    self.cache = cache
    self.runs = runs
    self.workdir = folder / 'run'

  def images(self, **counts) -> pathlib.Path:
    """Class folders in train, validation and test."""
    root = self.folder / 'images'
    for split in ('train', 'validation', 'test'):
      for name in ('cat', 'dog', 'owl'):
        (root / split / name).mkdir(parents=True)
        for i in range(counts.get(name, 4)):
          path = root / split / name / f'{i}.png'
          path.write_bytes(png(zlib.crc32(f'{split}/{name}/{i}'.encode())))
    return root

  def train(self, arm: str = 'tl', **changes) -> list[str]:
    settings = {'dataset': f'folder:{self.folder}/images'} | changes
    return [
      *tiny.arguments(arm, self.cache, **settings),
      f'--workdir={self.workdir}',
    ]

  def digits(self, arm: str = 'tl', **changes) -> list[str]:
    return self.train(arm, dataset='digits', **changes)

  def copy_of_run(self, arm: str = 'teacher') -> pathlib.Path:
    copy = self.folder / 'copy'
    shutil.copytree(self.runs / arm, copy)
    return copy


CASES = {}


def case(*expected: str, code: int = 2):
  """Registers (Place -> arguments), what the message holds, the exit code."""

  def register(make):
    CASES[make.__name__] = (make, expected, code)
    return make

  return register


@case('--config')
def no_config(place):
  return []


@case('configs/nothing.py', 'no such file', 'compare, kd, qat, study')
def config_file_missing(place):
  return ['--config=configs/nothing.py']


@case("'smok'", 'smoke')
def unknown_config_argument(place):
  return ['--config=configs/tl.py:smok']


@case("'typo'", 'seed')
def unknown_key(place):
  return [*place.digits(), '--config.typo=1']


@case("'optimizer.lerning_rate'", 'optimizer.learning_rate')
def unknown_nested_key(place):
  return [*place.digits(), '--config.optimizer.lerning_rate=1']


@case('config.num_steps', "'many'")
def wrong_type(place):
  return [*place.digits(), '--config.num_steps=many']


@case('--config.seed')
def key_without_config(place):
  return ['--config.seed=1']


@case("'confg'", 'config')
def unknown_flag(place):
  return ['--confg=configs/tl.py']


@case('mode', 'train|evaluate|predict')
def unknown_mode(place):
  return ['--mode=tran']


@case('unexpected arguments', 'stray')
def stray_argument(place):
  return [*place.digits(), 'stray']


@case("'digitz'", "'digits'")
def unknown_dataset(place):
  return place.train(dataset='digitz')


@case("'oxford_flowers10'", "'oxford_flowers102'")
def unknown_tfds_dataset(place):
  return place.train(dataset='oxford_flowers10')


@case("'cifar10'", 'not prepared', 'tlkd_jax.data.prepare')
def dataset_not_prepared(place):
  return place.train(dataset='cifar10', data__data_dir=str(place.folder))


@case("'efficientnet_lit0'", 'efficientnet_lite0')
def unknown_student(place):
  return place.digits(student__name='efficientnet_lit0')


@case("'resnet51'", 'resnet50')
def unknown_teacher(place):
  return place.digits('kd', teacher__name='resnet51')


@case("'dkdd'", 'dkd')
def unknown_loss(place):
  return place.digits('kd', distillation__loss='dkdd')


@case("'lion'", 'adamw', 'sgd')
def unknown_optimizer(place):
  return place.digits(optimizer__name='lion')


@case("'trainable'", 'frozen')
def unknown_batch_norm(place):
  return place.digits(batch_norm='trainable')


@case("'top2'", 'top1')
def unknown_metric(place):
  return place.digits(best_metric='top2')


@case("'float8'", 'bfloat16')
def unknown_dtype(place):
  return place.digits(compute_dtype='float8')


@case("'centre_crop'", 'centre')
def unknown_crop(place):
  return place.digits(augment__crop='centre_crop')


@case("'maybe'", 'auto')
def unknown_flip(place):
  return place.digits(augment__flip='maybe')


@case(
  'ema_decay is 7.0; accepted: a number in [0, 1)',
  'label_smoothing is 2.0',
  'augment.scale is (2, 3)',
  'optimizer.layer_decay is -1.0',
  "student.head is 'kep'; accepted: new, keep",
)
def several_wrong_values(place):
  """All of them in one message."""
  return place.digits(
    ema_decay=7.0,
    label_smoothing=2.0,
    augment__scale=(2, 3),
    optimizer__layer_decay=-1.0,
    student__head='kep',
  )


@case("distillation.loss is 'dkd'", 'augment.mixup_alpha')
def values_that_exclude_each_other(place):
  return place.digits('kd', distillation__loss='dkd', augment__mixup_alpha=0.2)


@case("'ignore'", 'skip')
def unknown_bad_image_choice(place):
  place.images()
  return place.train(data__on_bad_image='ignore')


@case('num_steps', '-1')
def no_steps(place):
  return place.digits(num_steps=-1)


@case('batch_size 6', '4 devices')
def batch_does_not_divide(place):
  return place.digits(batch_size=6)


@case('batch_size 2000000000: its images alone take', 'are free, enough for')
def batch_larger_than_memory(place):
  return place.digits(batch_size=2 * 10**9)


@case('num_train_per_class=500', 'at most')
def too_many_per_class(place):
  return place.digits(num_train_per_class=500)


@case('/images', 'no such folder')
def folder_missing(place):
  return place.train()


@case("'bat'", 'no images')
def empty_class(place):
  (place.images() / 'train' / 'bat').mkdir()
  return place.train()


@case("'bat'", 'test', 'train')
def class_only_in_test(place):
  folder = place.images() / 'test' / 'bat'
  folder.mkdir()
  (folder / '0.png').write_bytes(png(0))
  return place.train()


@case('train/cat/2.png', 'truncated')
def truncated_image(place):
  path = place.images() / 'train' / 'cat' / '2.png'
  path.write_bytes(path.read_bytes()[:200])
  return place.train()


@case('test/owl/1.png')
def not_an_image(place):
  (place.images() / 'test' / 'owl' / '1.png').write_text('not an image')
  return place.train()


def table(place, *rows: str) -> list[str]:
  place.images()
  path = place.folder / 'images' / 'labels.csv'
  path.write_text('\n'.join(['path,label', *rows]))
  return place.train(dataset=f'csv:{path}')


@case('labels.csv', '2 of 3 images are not there: line 2 a.png, line 4 c.png')
def images_of_a_table_missing(place):
  return table(place, 'a.png,cat', 'train/dog/0.png,dog', 'c.png,cat')


@case("such as 'cat|dog' in line 4", 'Multi-label')
def several_labels_in_a_cell(place):
  rows = [f'train/{name}/0.png,{name}' for name in ('cat', 'dog')]
  return table(place, *rows, 'train/owl/0.png,cat|dog')


@case('imagefolder:', 'no such folder')
def image_folder_missing(place):
  return place.train(dataset=f'imagefolder:{place.folder}/nowhere')


@case("data.pattern is '*.png'", '{class}')
def pattern_without_a_class(place):
  return place.train(data__pattern='*.png')


@case('nowhere', 'no checkpoint')
def teacher_checkpoint_missing(place):
  return place.digits('kd', teacher__checkpoint=f'{place.folder}/nowhere')


@case('stopped before its end', 'of 6', 'finish it with its own command')
def teacher_that_was_stopped(place):
  """Before TL is trained."""
  copy = place.copy_of_run()
  (copy / 'summary.json').unlink()
  return place.digits('compare', teacher__checkpoint=str(copy))


@case('10 classes', '3', 'cat')
def teacher_of_other_classes(place):
  """Before TL is trained."""
  place.images()
  teacher = str(place.runs / 'teacher')
  return place.train('compare', teacher__checkpoint=teacher)


@case('tiny_teacher', 'efficientnet_lite2')
def teacher_of_another_model(place):
  return place.digits(
    'kd',
    teacher__checkpoint=str(place.runs / 'teacher'),
    teacher__name='efficientnet_lite2',
  )


@case('corrupt', 'copy')
def teacher_arrays_corrupt(place):
  copy = place.copy_of_run()
  for path in copy.glob('checkpoints/best/*/arrays/**/d/*'):
    path.write_bytes(b'0' * path.stat().st_size)
  return place.digits('kd', teacher__checkpoint=str(copy))


@case('corrupt', 'copy')
def teacher_description_cut_short(place):
  copy = place.copy_of_run()
  for path in copy.glob('checkpoints/best/*/record/metadata'):
    path.write_text(path.read_text()[:40])
  return place.digits('kd', teacher__checkpoint=str(copy))


@case('corrupt', 'class_names')
def teacher_description_incomplete(place):
  copy = place.copy_of_run()
  for path in copy.glob('checkpoints/best/*/record/metadata'):
    path.write_text('{"model": "tiny_teacher"}')
  return place.digits('kd', teacher__checkpoint=str(copy))


@case('corrupt', 'copy', 'lacks arm, step')
def evaluate_without_arm_and_step(place):
  copy = place.copy_of_run()
  change_description(copy, arm=None, step=None)
  return ['--mode=evaluate', f'--checkpoint={copy}']


@case('corrupt', 'copy', "image_size is '16'", 'step is -1, expected a count')
def evaluate_with_an_ill_typed_description(place):
  copy = place.copy_of_run()
  change_description(copy, image_size='16', step=-1)
  return ['--mode=evaluate', f'--checkpoint={copy}']


@case('corrupt', 'copy', "compute_dtype is 'float8'", 'float32')
def predict_in_an_unknown_dtype(place):
  copy = place.copy_of_run()
  change_description(copy, compute_dtype='float8')
  place.images()
  arguments = ['--mode=predict', f'--checkpoint={copy}']
  return [*arguments, f'--input={place.folder}/images']


@case('weights.pth')
def student_weights_missing(place):
  """Before the teacher is trained."""
  return place.digits('kd', student__weights=f'{place.folder}/weights.pth')


@case('tiny', 'scratch')
def no_weights_known(place):
  return place.digits(student__weights='pretrained')


@case(
  'another configuration',
  'num_steps: 6 there, 7 now',
  'it is finished',
  '/run/config.json --config.num_steps=7 --config.student.checkpoint=',
  '--workdir=ANOTHER',
)
def workdir_of_a_shorter_run(place):
  shutil.copytree(place.runs / 'tl', place.workdir)
  return place.digits(num_steps=7)


@case(
  'teacher.num_steps: 0 there, 9 now',
  '--config.teacher.num_steps=9 --config.teacher.checkpoint=',
)
def workdir_of_a_teacher_with_fewer_steps_of_its_own(place):
  shutil.copytree(place.runs / 'teacher', place.workdir)
  return place.digits('teacher', teacher__num_steps=9)


@case('num_steps: 6 there, 7 now', 'the number it was begun with finishes it')
def workdir_of_a_shorter_run_that_was_stopped(place):
  place.workdir = place.copy_of_run('tl')
  (place.workdir / 'summary.json').unlink()
  return place.digits(num_steps=7)


@case('another configuration', 'num_steps: 6 there, 5 now', '--workdir')
def workdir_of_another_config(place):
  place.workdir = place.copy_of_run('tl')
  return place.digits(num_steps=5)


@case('another configuration', 'num_steps: 6 there, 7 now')
def workdir_of_another_kd_run(place):
  """Before the teacher is trained."""
  shutil.copytree(place.runs / 'kd', place.workdir)
  return place.digits('kd', num_steps=7)


@case(
  'the data are not those that',
  'train: ',
  '2 new: ',
  'put them back as they were, or use another --workdir',
)
def workdir_of_other_data(place):
  """Also of a run that is finished, and before another one of the command."""
  shutil.copytree(place.runs / 'tl', place.workdir / 'tl')
  path = place.workdir / 'tl' / 'data.json.gz'
  record = json.loads(gzip.decompress(path.read_bytes()))
  for values in record['files']['train'].values():
    del values[:2]
  path.write_bytes(gzip.compress(json.dumps(record).encode()))
  return place.digits('compare')


@case('the data are not those that', 'evaluated on other data', '--dataset')
def evaluate_on_data_that_changed(place):
  copy = place.copy_of_run('tl')
  path = copy / 'data.json.gz'
  record = json.loads(gzip.decompress(path.read_bytes()))
  record['files']['test']['digests'][3] += 1
  path.write_bytes(gzip.compress(json.dumps(record).encode()))
  return ['--mode=evaluate', f'--checkpoint={copy}']


@case('data.json.gz is damaged')
def workdir_record_of_data_damaged(place):
  shutil.copytree(place.runs / 'tl', place.workdir)
  path = place.workdir / 'data.json.gz'
  path.write_bytes(path.read_bytes()[:100])
  return place.digits()


@case('config.json is damaged')
def workdir_config_damaged(place):
  place.workdir.mkdir()
  (place.workdir / 'config.json').write_text('{"arm": ')
  return place.digits()


@case('corrupt', 'run/checkpoints/latest/6')
def own_checkpoint_corrupt(place):
  shutil.copytree(place.runs / 'tl', place.workdir)
  (place.workdir / 'summary.json').unlink()
  for path in place.workdir.glob('checkpoints/latest/*/arrays/**/d/*'):
    path.write_bytes(b'0' * path.stat().st_size)
  return place.digits()


@case('Not a directory', 'run')
def workdir_is_below_a_file(place):
  place.workdir = place.folder / 'file' / 'run'
  place.workdir.parent.write_text('')
  return place.digits()


# Mode -> what it needs, and flags that it does not read.
OTHERS = {
  'train': [
    '--checkpoint=a',
    '--dataset=digits',
    '--suite=all',
    '--suite=clean',
    '--ood_dataset=digits',
    '--max_images=3',
    '--input=a',
    '--output=a.csv',
  ],
  'evaluate': [
    '--config=configs/tl.py',
    '--config=configs/tl.py:dataset=folder:other',
    '--workdir=a',
    '--compare',
    '--nocompare',
    '--input=a',
    '--output=a.csv',
  ],
  'predict': [
    '--config=configs/tl.py',
    '--workdir=a',
    '--compare',
    '--dataset=digits',
    '--suite=clean',
    '--ood_dataset=digits',
    '--max_images=3',
  ],
}


def needed(mode: str, place) -> list[str]:
  run = f'--checkpoint={place.runs}/tl'
  return {
    'train': place.digits(),
    'evaluate': [run],
    'predict': [run, f'--input={place.folder}'],
  }[mode]


def flag_of_another_mode(mode, flag):
  return lambda place: [*needed(mode, place), f'--mode={mode}', flag]


for _mode, _flags in OTHERS.items():
  for _flag in _flags:
    _name = _flag.partition('=')[0].replace('--no', '--')
    _said = (f'{_name} is not read with --mode={_mode}: ',)
    CASES[f'{_mode}{_flag}'] = flag_of_another_mode(_mode, _flag), _said, 2


@case('--dataset names other data', "--checkpoint's own configuration")
def evaluate_on_the_data_of_a_configuration(place):
  config = '--config=configs/tl.py:dataset=folder:other'
  return [*needed('evaluate', place), '--mode=evaluate', config]


@case('--ood_dataset is not read by --suite=clean', '--suite=ood')
def evaluate_clean_on_ood(place):
  return [*needed('evaluate', place), '--mode=evaluate', '--ood_dataset=a']


@case('--max_images is not read by --suite=calibration', 'corruptions')
def evaluate_calibration_on_a_part(place):
  flags_ = ['--mode=evaluate', '--suite=calibration', '--max_images=3']
  return [*needed('evaluate', place), *flags_]


@case('--dataset is not read by --suite=all', '--suite=clean')
def evaluate_all_on_other_data(place):
  flags_ = ['--mode=evaluate', '--suite=all', '--dataset=folder:a']
  return [*needed('evaluate', place), *flags_]


@case('--dataset is not read by --suite=cost', '--suite=clean')
def cost_on_other_data(place):
  flags_ = ['--mode=evaluate', '--suite=cost', '--dataset=folder:a']
  return [*needed('evaluate', place), *flags_]


@case('no checkpoint in')
def cost_of_no_run(place):
  return ['--mode=evaluate', '--suite=cost', f'--checkpoint={place.folder}']


@case('--process_id is not read without --distributed')
def process_of_none(place):
  return [*place.digits(), '--process_id=0']


def on_other(place, name: str) -> list[str]:
  return [*needed('evaluate', place), '--mode=evaluate', f'--dataset={name}']


@case("--dataset digits is the run's own data set", 'without --dataset')
def evaluate_on_its_own_data_as_others(place):
  return on_other(place, 'digits')


@case("'nothing'", 'Accepted: digits, folder:PATH')
def evaluate_on_unknown_data(place):
  return on_other(place, 'nothing')


@case('no such folder')
def evaluate_on_no_folder(place):
  return on_other(place, f'folder:{place.folder}/nowhere')


@case(
  '3 classes that the network does not know',
  "'cat'",
  'it knows 0, 1, 2',
  'matched by name',
)
def evaluate_on_other_classes(place):
  place.images()
  return on_other(place, f'folder:{place.folder}/images')


@case('--checkpoint')
def evaluate_what(place):
  return ['--mode=evaluate']


@case('nowhere', 'no checkpoint')
def evaluate_nothing(place):
  return ['--mode=evaluate', f'--checkpoint={place.folder}/nowhere']


@case('--input')
def predict_what(place):
  return ['--mode=predict', f'--checkpoint={place.runs}/tl']


def predict(place, *more: str) -> list[str]:
  return ['--mode=predict', f'--checkpoint={place.runs}/tl', *more]


@case('nowhere', 'no such file')
def predict_nothing(place):
  return predict(place, f'--input={place.folder}/nowhere')


@case('no image')
def predict_empty_folder(place):
  return predict(place, f'--input={place.folder}')


@case('.txt', '.csv')
def predict_to_unknown_format(place):
  place.images()
  return predict(place, f'--input={place.folder}', '--output=a.txt')


@case('no such folder')
def predict_to_nowhere(place):
  place.images()
  output = f'--output={place.folder}/nowhere/a.csv'
  return predict(place, f'--input={place.folder}', output)


@case('loss', 'step', 'learning rate', 'last good checkpoint: none', code=1)
def loss_not_finite(place):
  return place.digits(
    optimizer__learning_rate=1e30,
    optimizer__clip_norm=0.0,
    optimizer__warmup_fraction=0.0,
  )


@case('validation logits after step 1 are not finite', 'none', code=1)
def weights_not_finite(place):
  return place.digits(
    optimizer__learning_rate=1e38,
    optimizer__clip_norm=0.0,
    optimizer__warmup_fraction=0.0,
    optimizer__head_multiplier=1e5,
    eval_every_steps=1,
  )


@pytest.mark.parametrize('name', CASES)
def test_bad_input(name, tmp_path, cache_dir, compare_run, monkeypatch, capsys):
  make, expected, code = CASES[name]
  place = Place(tmp_path, cache_dir, compare_run)
  arguments = make(place)
  before = snapshot(place.workdir)
  if code == 2:
    monkeypatch.setattr(loop, '_loop', long_work)
  assert call_main(monkeypatch, *arguments) == code
  out, error = capsys.readouterr()
  message = error[error.index('error: ') :]
  assert not out and 'Traceback' not in error and len(message) < 2000
  for text in expected:
    assert text in message
  if code == 2:
    assert snapshot(place.workdir) == before


def snapshot(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(p): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def long_work(*_):
  raise AssertionError('long work has started')


def test_run_on_a_folder_with_bad_images(
  tmp_path, cache_dir, compare_run, monkeypatch, capsys
):
  place = Place(tmp_path, cache_dir, compare_run)
  root = place.images(cat=6)
  for name in ('train/cat/2.png', 'test/owl/1.png'):
    (root / name).write_bytes(png(0)[:100])
  arguments = place.train(
    data__on_bad_image='skip',
    num_train_per_class=0,
    data__num_validation_per_class=0,
    data__num_test_per_class=0,
    num_steps=1,
    batch_size=4,
  )
  assert call_main(monkeypatch, *arguments) == 0
  summary = json.loads((place.workdir / 'summary.json').read_text())
  skipped = summary['skipped_images']
  assert [name for name, _ in skipped['train']] == ['train/cat/2.png']
  assert [name for name, _ in skipped['test']] == ['test/owl/1.png']
  assert summary['student']['test']['count'] == 13
  held = summary['data']['splits']
  assert held['train']['used'] == held['train']['images'] - 1 == 13
  assert held['test']['smallest'] == ['owl', 3]
  assert 'TL' in capsys.readouterr().out

  # The same pictures, decoded and resized for prediction alone.
  arguments = [
    '--mode=predict',
    f'--checkpoint={place.workdir}',
    f'--input={root}/test',
    f'--output={tmp_path}/out.csv',
  ]
  assert call_main(monkeypatch, *arguments) == 0
  rows = np.genfromtxt(tmp_path / 'out.csv', delimiter=',', skip_header=1)
  saved = evaluate.load(place.workdir / 'predictions' / 'test.npz')
  assert rows.shape[0] == 13
  np.testing.assert_allclose(
    rows[:, 3:], special.softmax(saved.logits, -1), atol=2e-6
  )


def test_exit_codes_of_the_process(
  start_main, cache_dir, compare_run, tmp_path
):
  """The same through a real process: nothing but the message on stderr."""
  arguments = tiny.arguments('tl', cache_dir)
  workdir = f'--workdir={tmp_path}'
  damaged = Place(tmp_path, cache_dir, compare_run).copy_of_run('tl')
  for path in damaged.glob('checkpoints/best/*/arrays/**/d/*'):
    path.write_bytes(b'0' * path.stat().st_size)
  processes = [
    start_main('--mode=evaluate', f'--checkpoint={damaged}'),
    start_main(*arguments, workdir, '--config.typo=1'),
    start_main(*arguments, workdir, '--config.student.name=tinny'),
    start_main(*arguments, workdir, '--distributed'),
  ]
  for process, text in zip(
    processes, ('corrupt', "'typo'", 'tiny', 'coordinator'), strict=True
  ):
    out, error = process.communicate(timeout=300)
    assert process.returncode == 2, error
    assert error.startswith('error: ') and text in error and not out
    assert 'Traceback' not in error
