"""onnxruntime on the CPU, with as many threads as are said."""

import pathlib
from typing import Any


def session(
  model: pathlib.Path | bytes,
  threads: int = 0,
  out: pathlib.Path | None = None,
  options: Any = None,
) -> Any:
  """An onnxruntime.InferenceSession.

  Args:
    model: a file, or a serialised model.
    threads: 0 are its own choice.
    out: what is being written, for the message; None where nothing is.
    options: onnxruntime.SessionOptions that say more.

  Raises:
    RuntimeError: onnxruntime does not take what is written.
  """
  import onnxruntime

  options = options or onnxruntime.SessionOptions()
  options.intra_op_num_threads = threads
  source = model if isinstance(model, bytes) else str(model)
  try:
    return onnxruntime.InferenceSession(
      source, options, providers=['CPUExecutionProvider']
    )
  except Exception as error:  # Its own have no common class.
    if out is None:
      raise
    raise RuntimeError(
      f'{out} is not written: onnxruntime does not take it: {error}; another '
      '--opset may help, LayerNorm needs 18 or later'
    ) from error
