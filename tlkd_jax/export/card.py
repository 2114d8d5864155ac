"""The model card of a folder for a hub: what a run says of its student.

The front matter is written by huggingface_hub's own classes. Names of strangers
are escaped, and no path of this machine is told but for its last part.
Format: https://huggingface.co/docs/hub/model-cards
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import huggingface_hub

import tlkd_jax
from tlkd_jax.answer import labels
from tlkd_jax.data import DATASETS, facts
from tlkd_jax.evaluation import evaluate
from tlkd_jax.export import card_numbers, card_recipe, citations
from tlkd_jax.export.student import Student
from tlkd_jax.models.weights import hub, licences
from tlkd_jax.report.markdown import escape, row
from tlkd_jax.runtime import sealed
from tlkd_jax.settings import Settings, from_config
from tlkd_jax.training import preparation, workdir

# Of more classes the rest stands in config.json.
_SHOWN_CLASSES = 60
# As the hub spells them; another licence is 'other'.
_HUB_LICENCES = {
  'apache-2.0': 'apache-2.0',
  'mit': 'mit',
  'bsd-3-clause': 'bsd-3-clause',
  'cc-by-nc-4.0': 'cc-by-nc-4.0',
  'cc-by-4.0': 'cc-by-4.0',
  'cc0-1.0': 'cc0-1.0',
}


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run has written, as far as it is finished.

  Attributes:
    workdir: its folder.
    settings: of it.
    summary: of a finished run, else {}.
    test: its predictions on its test images; None where it has none.
  """

  workdir: pathlib.Path
  settings: Settings
  summary: Mapping[str, Any]
  test: evaluate.Predictions | None


def read_run(folder: pathlib.Path) -> Run:
  """Reads a run's records.

  Raises:
    FileNotFoundError: the folder is not a run.
    ValueError: a record is damaged.
  """
  settings = from_config(workdir.read(folder))
  summary, test = folder / 'summary.json', folder / 'predictions' / 'test.npz'
  return Run(
    folder,
    settings,
    sealed.read_json(summary) if summary.exists() else {},
    evaluate.load(test) if test.exists() else None,
  )


def write(
  student: Student,
  run: Run,
  config: Mapping[str, Any],
  name: str,
  files: Sequence[str],
) -> str:
  """The text of README.md.

  Args:
    student: that lies beside it.
    run: that it is of.
    config: content of config.json.
    name: ORGANISATION/NAME, or a name alone.
    files: names of the files beside it.
  """
  rows = card_numbers.metrics_of(run.test) if run.test else []
  steps = workdir.length(run.workdir, run.settings)
  sections = {
    'Use': _use(config, name, files),
    'Classes': _classes(student, run),
    'Data': _data(run),
    'Recipe': card_recipe.lines(student, run.settings, run.summary, steps),
    'Results': _results(run, rows),
    'Beside the student without a teacher': _beside(run),
    'Limits': _limits(student, run),
    'Licences': _licences(student, run.settings),
    'Citation': _citation(run.settings),
  }
  front = _front(student, run, config, name, rows)
  lines = ['---', front.strip(), '---', '', f'# {escape(_last(name))}', '']
  lines += [_opening(student, run, config), '']
  for title, body in sections.items():
    if body:
      lines += [f'## {title}', '', *body, '']
  return '\n'.join(lines)


def _front(
  student: Student,
  run: Run,
  config: Mapping[str, Any],
  name: str,
  rows: list[card_numbers.Row],
) -> str:
  """The YAML at the head of a card."""
  licence = licence_of(student.description.licences)
  taught = run.settings.arm == 'kd'
  dataset = labels.dataset_name(run.settings.dataset)
  results = [
    huggingface_hub.EvalResult(
      task_type='image-classification',
      dataset_type=dataset,
      dataset_name=dataset,
      dataset_split='test',
      metric_type=row_.hub,
      metric_name=row_.label,
      metric_value=round(row_.value, 4),
    )
    for row_ in rows
    if row_.hub
  ]
  data = huggingface_hub.ModelCardData(
    license=licence,
    license_name='see-licences-below' if licence == 'other' else None,
    library_name=_library(config),
    pipeline_tag='image-classification',
    tags=[
      'image-classification',
      *(['knowledge-distillation'] if taught else ['transfer-learning']),
      'jax',
      'tlkd_jax',
    ],
    metrics=list(dict.fromkeys(r.hub for r in rows if r.hub)) or None,
    base_model=_base_model(run.settings),
    model_name=_last(name),
    eval_results=results or None,
  )
  return data.to_yaml()


def licence_of(lines: Iterable[str]) -> str:
  """What the hub calls the terms of all weights that went into a student.

  Args:
    lines: 'WEIGHTS: LICENCE (who says so)'.

  Returns:
    One of the hub's names where all have that one; 'other' where they differ
    or the hub has no name; 'unknown' where nothing was recorded.
  """
  found = set()
  for line in lines:
    said = line.partition(': ')[2].partition(' (')[0].strip().lower()
    found.add(_HUB_LICENCES.get(said, 'other'))
  if not found:
    return 'unknown'
  return found.pop() if len(found) == 1 else 'other'


def _library(config: Mapping[str, Any]) -> str:
  """Who loads the weights; not transformers, which has its own config.json."""
  known = config['library'] in ('timm', 'torchvision')
  return config['library'] if known else 'tlkd_jax'


def _base_model(settings: Settings) -> str | None:
  """The hub's repository from which the student's weights are."""
  if settings.student.checkpoint:
    return None
  place = hub.split(preparation.weights_of(settings.student) or '')[0]
  source, _, name = place.partition(':')
  if source == 'timm':
    return f'timm/{name}'
  return name.partition('@')[0] if source == 'hf-hub' else None


def _opening(student: Student, run: Run, config: Mapping[str, Any]) -> str:
  taught = 'with' if run.settings.arm == 'kd' else 'without'
  count, size = student.model.num_classes, student.image_size
  return (
    f'{escape(config["architecture"])} for images of {count} classes at {size} '
    f'px, fine-tuned {taught} a teacher by tlkd_jax {tlkd_jax.__version__}.'
  )


def _use(
  config: Mapping[str, Any], name: str, files: Sequence[str]
) -> list[str]:
  lines = []
  where = f'hf-hub:{name}' if '/' in name else 'local-dir:FOLDER'
  if config['library'] == 'timm':
    lines += _code(
      'import timm',
      '',
      f"model = timm.create_model('{where}', pretrained=True).eval()",
      'transform = timm.data.create_transform(',
      '  **timm.data.resolve_model_data_config(model)',
      ')',
      "logits = model(transform(image.convert('RGB'))[None])",
    )
    lines += [
      'transformers loads it too, by AutoModelForImageClassification (timm '
      'must be installed).',
      '',
    ]
  elif config['library'] == 'torchvision':
    lines += _code(
      'import torchvision',
      'from safetensors.torch import load_file',
      '',
      f"model = torchvision.models.get_model('{config['architecture']}', "
      f'num_classes={config["num_classes"]})',
      "model.load_state_dict(load_file('model.safetensors'))",
    )
  else:
    lines += [
      f'The weights are of the variant {escape(config["architecture"])} of '
      'tlkd_jax (`--config.student.weights=FOLDER`).',
      '',
    ]
  if 'model.onnx' in files:
    lines += _onnx_use(config)
  lines += [
    'Short side, crop, mean and standard deviation are in config.json and '
    'preprocessor_config.json. Images must be upright RGB; what is transparent '
    'was laid over white in training.',
  ]
  return lines


def _onnx_use(config: Mapping[str, Any]) -> list[str]:
  if config.get('onnx_input', {}).get('dtype') == 'uint8':
    return _code(
      'import numpy as np, onnxruntime',
      '',
      "session = onnxruntime.InferenceSession('model.onnx')",
      "pixels = np.asarray(image.convert('RGB'))  # of any size",
      "probabilities, names = session.run(None, {'image': pixels})",
    )
  return _code(
    'import onnxruntime',
    '',
    "session = onnxruntime.InferenceSession('model.onnx')",
    "(logits,) = session.run(['logits'], {'images': images})  # NCHW, float32",
  )


def _code(*lines: str) -> list[str]:
  return ['```python', *lines, '```', '']


def _classes(student: Student, run: Run) -> list[str]:
  names = student.description.class_names
  counts = card_numbers.recalls(run.test, len(names)) if run.test else None
  lines = [row(['', 'class', 'test images', 'of these found, with 95 %'])]
  lines += ['| --- | --- | --- | --- |']
  for number, name in enumerate(names[:_SHOWN_CLASSES]):
    found = counts[number] if counts else ('', '')
    lines.append(row([number, name, *found]))
  if len(names) > _SHOWN_CLASSES:
    lines += ['', f'All {len(names)} are in config.json, `label_names`.']
  return lines


def _data(run: Run) -> list[str]:
  name = run.settings.dataset
  own = name.partition(':')[0] in DATASETS and ':' in name
  where = ', images of their own of those who trained it' if own else ''
  lines = [f'{escape(card_recipe.named_data(name))}{where}.', '']
  known = run.summary.get('data')
  if not known:
    return lines
  lines += [row(['split', 'images', 'used', 'of a class: least', 'most'])]
  lines += ['| --- | --- | --- | --- | --- |']
  for split, held in known['splits'].items():
    (low, least), (high, most) = held['smallest'], held['largest']
    cells = [split, held['images'], held['used']]
    lines.append(row([*cells, f'{least} ({low})', f'{most} ({high})']))
  # Names of files may be those of people.
  copies = [
    line.partition(', such as ')[0] for line in facts.copies_lines(known)
  ]
  notes = [*run.summary.get('notes', []), *copies]
  return [*lines, '', *(f'- {escape(note)}' for note in notes)]


def _results(run: Run, rows: list[card_numbers.Row]) -> list[str]:
  if not rows:
    return ['The run has stored no predictions on test images.']
  assert run.test is not None
  lines = [row(['metric', 'test', 'from', 'to']), '| --- | --- | --- | --- |']
  lines += [row([r.label, r.value, r.low, r.high]) for r in rows]
  teacher = run.summary.get('teacher', {}).get('test')
  if teacher:
    lines.append(row(['accuracy of the teacher', teacher['top1'], '', '']))
  return [
    *lines,
    '',
    f'On {len(run.test.labels)} test images. The intervals cover 95 %: of the '
    f"accuracy Wilson's, of the others from {card_numbers.REPLICATES} "
    'resamples of the test images, which the calibration error has none of: it '
    'is larger in resamples. They say how much other test images of this '
    'kind would change a number, and nothing of other seeds or other data.',
  ]


def _beside(run: Run) -> list[str]:
  if run.settings.arm != 'kd' or run.test is None:
    return []
  pair = card_numbers.beside_tl(run.workdir, run.settings, run.test)
  if pair is None:
    return []
  return [
    f'Fine-tuned on the same images with the same seed and without a teacher, '
    f'the same student has an accuracy of {pair.reference:.3f} where this one '
    f'has {pair.treatment:.3f}: a difference of {pair.difference:+.3f} (95 %: '
    f'{pair.low:+.3f} to {pair.high:+.3f}, from resamples of the test images).',
    '',
    'This is one pair of runs. Whether a teacher helps takes several seeds.',
  ]


def _limits(student: Student, run: Run) -> list[str]:
  used = run.summary.get('num_train')
  lines = [
    f'- It knows {student.model.num_classes} classes and answers with one of '
    'them whatever it is shown.',
    '- Its probabilities are those of the softmax, not calibrated afterwards; '
    'the calibration error is in the table above.',
    '- Images that are cut or normalised otherwise than in training lose '
    'accuracy.',
    '- It was tested on images of the same source as those that it learned '
    'from; on others it will be worse.',
  ]
  if used:
    lines.insert(0, f'- It learned from {used} labelled images.')
  if not run.summary:
    lines.insert(0, '- Its run was stopped before its end.')
  return lines


def _licences(student: Student, settings: Settings) -> list[str]:
  said = student.description.licences
  if not said:
    start = preparation.weights_of(settings.student) or ''
    known = '' if settings.student.checkpoint else licences.of_name(start)
    more = f' Of {card_recipe.named(start)} is known: {known}.' if known else ''
    return [f'The run has recorded none of the weights in it.{escape(more)}']
  return [
    'Terms of all weights that went into it, those of teachers too, as far as '
    'those who publish them say any; the training data may have further ones:',
    '',
    *(f'- {escape(_plain_source(line))}' for line in said),
  ]


def _plain_source(line: str) -> str:
  """A line of licences; of a file of this machine the file's name alone."""
  place, colon, said = line.partition(': ')
  file, mark, digest = place.partition('#')
  return f'{card_recipe.named(file)}{mark}{digest}{colon}{said}'


def _citation(settings: Settings) -> list[str]:
  names = []
  if settings.arm == 'kd':
    names += [settings.distillation.loss, *settings.distillation.extra]
  weights = dataclasses.asdict(settings.transfer)
  names += [name for name in ('delta', 'bss', 'lwf') if weights[name]]
  names += ['l2sp'] * bool(weights['l2_sp'])
  names += ['co_tuning'] * bool(weights['co_tuning'])
  entries = [paper.bibtex() for paper in citations.of(names)]
  entries.append(citations.of_package(tlkd_jax.__version__))
  return ['```bibtex', *entries, '```']


def _last(name: str) -> str:
  return name.rpartition('/')[2]
