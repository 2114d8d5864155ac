"""What a prediction costs: counted from shapes, and measured on this machine.

Weights take no part in how long a network takes, so that none are needed here.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tlkd_jax.models import create_model
from tlkd_jax.models.describe import describe
from tlkd_jax.models.functional import Model
from tlkd_jax.runtime import devices, timing
from tlkd_jax.runtime.timing import Taken

# Images at once: one that someone waits for, and many that wait already.
BATCHES = (1, 32)
JAX = 'JAX'
_FLOAT32 = 4


@dataclasses.dataclass(frozen=True)
class Figures:
  """What is known of a network without running it.

  Attributes:
    model: name of the variant, as of models.create_model.
    image_size: side of its images, pixels.
    num_classes: length of its logits.
    compute_dtype: of its computation.
    parameters: scalars that are trained.
    macs: multiply-adds of an image, see describe.Description.
    attention_macs: likewise, between activations.
    bytes: of its weights and BatchNorm statistics in float32.
  """

  model: str
  image_size: int
  num_classes: int
  compute_dtype: str
  parameters: int
  macs: int
  attention_macs: int
  bytes: int

  @property
  def all_macs(self) -> int:
    """Multiply-adds of an image, of both kinds."""
    return self.macs + self.attention_macs


@dataclasses.dataclass(frozen=True)
class Timing:
  """What a batch took in one runtime.

  Attributes:
    runtime: JAX, or another in words.
    batch: images in it.
    ms: median of the passes, milliseconds a batch.
    low: of ten passes one is faster.
    high: of ten passes one is slower.
    passes: that were timed.
    device: of the runtime, in words.
    cores: of the processor that this process might use.
    beside: cores that other processes kept busy meanwhile, see timing.Taken.
    memory: bytes of weights, images, results and temporaries together, by the
      compiled program's own analysis; None where the runtime has none.
    file: bytes of the file that was run; None of a program in memory.
  """

  runtime: str
  batch: int
  ms: float
  low: float
  high: float
  passes: int
  device: str
  cores: int
  beside: float | None = None
  memory: int | None = None
  file: int | None = None

  @property
  def disturbed(self) -> bool:
    """Whether others worked beside it, more than a machine does when idle."""
    return (self.beside or 0.0) > 0.25


@dataclasses.dataclass(frozen=True)
class Serving:
  """The cost of a network's predictions.

  Attributes:
    figures: from its shapes.
    timings: as far as they were measured.
    missing: what was not measured, and why, a sentence each.
  """

  figures: Figures
  timings: tuple[Timing, ...] = ()
  missing: tuple[str, ...] = ()

  def find(self, runtime: str, batch: int) -> Timing | None:
    """One of the timings."""
    for one in self.timings:
      if (one.runtime, one.batch) == (runtime, batch):
        return one
    return None


def as_json(serving: Serving) -> dict[str, Any]:
  """As it is stored."""
  return {
    **dataclasses.asdict(serving.figures),
    'measured': [dataclasses.asdict(one) for one in serving.timings],
    'not_measured': list(serving.missing),
  }


def from_json(stored: Mapping[str, Any]) -> Serving:
  """What `as_json` made, or the figures alone.

  Raises:
    ValueError: it is damaged.
  """
  try:
    names = [field.name for field in dataclasses.fields(Figures)]
    return Serving(
      Figures(**{name: stored[name] for name in names}),
      tuple(Timing(**one) for one in stored.get('measured', ())),
      tuple(map(str, stored.get('not_measured', ()))),
    )
  except (KeyError, TypeError) as error:
    raise ValueError(f'a cost of predictions is damaged: {error}') from error


@functools.cache
def figures(
  name: str, image_size: int, num_classes: int, compute_dtype: str = 'float32'
) -> Figures:
  """Counts what a prediction takes; a network is traced once.

  Args:
    name: as of models.create_model.
    image_size: side in pixels.
    num_classes: length of the logits.
    compute_dtype: of the computation.

  Raises:
    ValueError: the name is unknown or the model refuses the size.
  """
  found = describe(name, image_size, num_classes=num_classes)
  model = create_model(name, num_classes=num_classes)
  leaves = jax.tree.leaves((model.params_shape, model.model_state_shape))
  return Figures(
    model=name,
    image_size=image_size,
    num_classes=num_classes,
    compute_dtype=compute_dtype,
    parameters=found.parameters,
    macs=found.macs,
    attention_macs=found.attention_macs,
    bytes=_FLOAT32 * sum(leaf.size for leaf in leaves),
  )


def measure(known: Figures, batches: Sequence[int] = BATCHES) -> Serving:
  """Compiles a network's prediction for some batches and times it.

  From normalised images to logits, on the first device of this process.

  Args:
    known: of the network.
    batches: images at once.

  Raises:
    RuntimeError: it does not compile or run here, such as for want of memory.
  """
  model = create_model(known.model, num_classes=known.num_classes)
  sides = known.image_size, known.image_size
  dtype = jnp.dtype(known.compute_dtype)
  timings = [_in_jax(model, batch, sides, dtype) for batch in batches]
  return Serving(known, tuple(timings))


def milliseconds(
  name: str,
  batch_size: int,
  image_size: int | tuple[int, int] | None = None,
) -> float:
  """Measures a forward pass in float32 on this machine.

  Args:
    name: a key of MODELS.
    batch_size: images at once.
    image_size: side, or (height, width), in pixels; None is the native one.

  Returns:
    Median over passes of a compiled program, in milliseconds a batch.

  Raises:
    ValueError: as describe.describe.
  """
  model = create_model(name)
  size = model.spec.image_size if image_size is None else image_size
  sides = (size, size) if isinstance(size, int) else size
  return _in_jax(model, batch_size, sides, jnp.dtype('float32')).ms


def timed(
  taken: Taken, runtime: str, batch: int, device: str, **more: Any
) -> Timing:
  """What was taken, with where; `more` are further fields of a Timing."""
  return Timing(
    runtime=runtime,
    batch=batch,
    ms=taken.median,
    low=taken.low,
    high=taken.high,
    passes=taken.passes,
    device=device,
    cores=devices.cores(),
    beside=taken.beside,
    **more,
  )


def _in_jax(
  model: Model, batch: int, sides: tuple[int, int], dtype: Any
) -> Timing:
  device = jax.local_devices()[0]
  shapes = (
    model.params_shape,
    model.model_state_shape,
    jax.ShapeDtypeStruct((batch, *sides, 3), dtype),
  )

  def forward(params, model_state, images):
    return model.apply(params, model_state, images)[0]['logits']

  with jax.default_device(device):
    compiled = jax.jit(forward).lower(*shapes).compile()
    # What is multiplied takes no part in how long that takes.
    given = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    taken = timing.take(lambda: compiled(*given).block_until_ready())
  return timed(
    taken,
    JAX,
    batch,
    device.device_kind,
    memory=_memory(compiled.memory_analysis()),
  )


def _memory(stats: Any) -> int | None:
  """Bytes of a compiled program while it runs, all of its buffers together."""
  if stats is None:
    return None
  return (
    stats.argument_size_in_bytes
    + stats.output_size_in_bytes
    + stats.temp_size_in_bytes
    - stats.alias_size_in_bytes
  )
