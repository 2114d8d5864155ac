"""Weights that are a folder, or several files with an index.

Hugging Face's transformers and timm save a model as a folder with
`model.safetensors` (or `pytorch_model.bin`) and `config.json`; a large one as
several files and `model.safetensors.index.json`, which says which tensor is in
which file.
"""

import json
import pathlib

from tlkd_jax.models.weights.torch_records import WeightsError
from tlkd_jax.runtime.errors import listed

INDEX = '.index.json'
# In the order in which they are preferred.
NAMES = (
  'model.safetensors',
  f'model.safetensors{INDEX}',
  'pytorch_model.bin',
  f'pytorch_model.bin{INDEX}',
)
_SUFFIXES = ('.safetensors', '.bin', '.pth', '.pt', '.ckpt', '.tar')
# What else such a folder may hold, and what it is.
_OTHERS = {
  'adapter_model.safetensors': 'an adapter (LoRA), no whole network',
  'adapter_model.bin': 'an adapter (LoRA), no whole network',
  'flax_model.msgpack': 'weights of Flax',
  'tf_model.h5': 'weights of TensorFlow',
  'saved_model.pb': 'a model of TensorFlow',
  'model.onnx': 'a model in ONNX',
  '.metadata': 'a sharded checkpoint of torch.distributed; consolidate it with '
  'python -m torch.distributed.checkpoint.format_utils dcp_to_torch',
  'checkpoints': 'a run of this package; it is given as checkpoint, not as '
  'weights',
}


def find(folder: pathlib.Path) -> pathlib.Path:
  """The weights of a folder: a file, or an index.

  Raises:
    WeightsError: There are none, or it is open which they are.
  """
  for name in NAMES:
    if (folder / name).is_file():
      return folder / name
  there = {path.name for path in folder.iterdir()}
  for name, what in _OTHERS.items():
    if name in there:
      raise WeightsError(f'this is no file but a folder with {name}: {what}')
  files = sorted(
    path
    for path in folder.iterdir()
    if path.suffix in _SUFFIXES and path.is_file()
  )
  if len(files) == 1:
    return files[0]
  if files:
    raise WeightsError(
      f'this is no file but a folder with {len(files)} that may be meant: '
      f'{listed(path.name for path in files)}; give one of them'
    )
  raise WeightsError(
    f'this is no file but a folder, and it has none of {", ".join(NAMES)}'
  )


def read_index(path: pathlib.Path, there: bool = True) -> dict[str, list[str]]:
  """Name of a file beside an index -> the tensors that are taken from it.

  Args:
    path: The index.
    there: Whether the files must be there.

  Raises:
    WeightsError: The index is damaged, names a file elsewhere, or one that is
      not there.
  """
  try:
    index = json.loads(path.read_text())
    places = index['weight_map']
    pairs = list(places.items())
  except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
    raise WeightsError(f'no index of weights: {error!r}') from error
  except RecursionError as error:
    raise WeightsError('no index of weights: too deeply nested') from error
  files: dict[str, list[str]] = {}
  for name, file in pairs:
    if not isinstance(file, str) or pathlib.PurePath(file).name != file:
      raise WeightsError(f'it names a file in another folder: {file!r:.200}')
    files.setdefault(file, []).append(name)
  if not files:
    raise WeightsError('an index without tensors')
  missing = [file for file in files if not (path.parent / file).is_file()]
  if missing and there:
    raise WeightsError(
      f'{len(missing)} of its {len(files)} files are not there: '
      f'{listed(missing)}'
    )
  return files
