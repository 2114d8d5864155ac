"""onnxruntime on the CPU, with as many threads as are said."""

import pathlib
from typing import Any


def session(path: pathlib.Path, threads: int = 0) -> Any:
  """An onnxruntime.InferenceSession of a file; 0 threads are its own choice."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = threads
  return onnxruntime.InferenceSession(
    str(path), options, providers=['CPUExecutionProvider']
  )
