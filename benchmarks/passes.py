"""Bytes that a compiled training step reads and writes, by what does it.

  python -m benchmarks.passes efficientnet_lite0 mobilenet_v2 [--arms tl online]

Compiles the step of the package (frozen BatchNorm, AdamW, clipping) for this
machine, runs nothing, and prints a JSON line for each model and arm: of every
part of the step and kind of kernel the number of kernels, the MiB that they
read and write, and beside them `needed_mib`: what a step would move if every
layer read its input once and wrote its output once (forward), and read its
input and its output's gradient and wrote its input's (backward).

A kernel is an instruction of the optimised HLO that computes: a fusion, a
product, a copy. It reads each operand once, of which no more counts than it
takes (slices), and writes its result once; a loop does so in every turn. What
stays in a cache between two kernels is counted as memory all the same, and
scratch space inside a kernel is not counted.
"""

import argparse
import collections
import dataclasses
import functools
import json
import math
import re
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks import machine, scaling
from tlkd_jax import models
from tlkd_jax.models import describe
from tlkd_jax.models.layers.convolutions import lax_convolutions
from tlkd_jax.runtime import sharding

_MIB = 2**20
_BITS = {'pred': 8, 's4': 4, 'u4': 4, 'bf16': 16, 'token': 0}
_NO_WORK = (
  *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast'),
  *('after-all', 'opt-barrier', 'partition-id', 'replica-id'),
)
_TAKES_A_PART = ('slice', 'dynamic-slice', 'gather')
_LINE = re.compile(
  r'^\s*(?:ROOT )?%(?P<name>[\w.-]+) = '
  r'(?P<type>\((?:[^()]|\([^()]*\))*\)|\S+) (?P<opcode>[\w-]+)\('
)
_COMPUTATION = re.compile(r'^(?:ENTRY )?%(?P<name>[\w.-]+) \(.*\{$')


@dataclasses.dataclass
class Instruction:
  """One line of a computation.

  Attributes:
    name: unique in the module.
    opcode: 'fusion', 'dot', ...
    size: bytes of its result.
    operands: names of what it takes.
    called: names of the computations that it calls.
    path: where in the program it comes from, '' where that is not known.
    trips: of a loop whose number of turns is known, else 1.
  """

  name: str
  opcode: str
  size: int
  operands: list[str]
  called: list[str]
  path: str
  trips: int


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """({computation: its instructions, the root last}, name of the entry)."""
  found: dict[str, list[Instruction]] = {}
  entry, current = '', []
  for line in text.splitlines():
    header = _COMPUTATION.match(line)
    if header:
      current = found.setdefault(header['name'], [])
      if line.startswith('ENTRY'):
        entry = header['name']
      continue
    match = _LINE.match(line)
    if match:
      current.append(_instruction(match, line))
  return found, entry


def _instruction(match: re.Match, line: str) -> Instruction:
  inside, _, rest = _operands(line[match.end() :])
  path = re.search(r'op_name="([^"]*)"', rest)
  trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
  return Instruction(
    name=match['name'],
    opcode=match['opcode'],
    size=size_of(match['type']),
    operands=re.findall(r'%([\w.-]+)', inside),
    called=re.findall(r'(?:calls|body|to_apply)=%([\w.-]+)', rest),
    path=path[1] if path else '',
    trips=int(trips[1]) if trips else 1,
  )


def _operands(text: str) -> tuple[str, str, str]:
  """Text up to the parenthesis that closes, it, and what follows."""
  depth = 1
  for end, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if not depth:
      return text[:end], ')', text[end + 1 :]
  return text, '', ''


def size_of(shapes: str) -> int:
  """Bytes of a type of HLO, of all parts of a tuple."""
  total = 0
  for dtype, dims in re.findall(r'([a-z]+\d*)\w*\[([\d,]*)\]', shapes):
    bits = _BITS.get(dtype) or int(re.sub(r'\D', '', dtype) or 0)
    total += bits * math.prod(int(n) for n in dims.split(',') if n) // 8
  return total


def kernels(
  computations: dict[str, list[Instruction]], name: str, times: int = 1
) -> Iterator[tuple[Instruction, int, int, str]]:
  """(kernel, bytes of one run, runs, path of the loop around it) below one."""
  sizes = {i.name: i.size for i in computations[name]}
  for instruction in computations[name]:
    if instruction.opcode in _NO_WORK:
      continue
    if instruction.opcode in ('while', 'call', 'conditional'):
      for inner in instruction.called:
        often = times * instruction.trips
        for kernel, moved, runs, path in kernels(computations, inner, often):
          loop = instruction.path if instruction.opcode == 'while' else path
          yield kernel, moved, runs, loop
      continue
    yield instruction, _moved(computations, instruction, sizes), times, ''


def _moved(computations, instruction, sizes) -> int:
  """Bytes that one run of a kernel reads and writes."""
  operands = instruction.operands
  if instruction.opcode in _TAKES_A_PART:
    return 2 * instruction.size
  if instruction.opcode == 'dynamic-update-slice':
    return 2 * sizes[operands[1]]
  if instruction.opcode != 'fusion':
    return instruction.size + sum(sizes[o] for o in set(operands))
  inside = computations[instruction.called[0]]
  parameters = [i for i in inside if i.opcode == 'parameter']
  read = 0
  for parameter in parameters:
    readers = [i for i in inside if parameter.name in i.operands]
    parts = [i.size for i in readers if i.opcode in _TAKES_A_PART]
    whole = len(parts) < len(readers)
    read += parameter.size if whole else min(parameter.size, sum(parts))
  return instruction.size + read


def part_of(path: str) -> str:
  """The part of a step that a path of the program belongs to."""
  if 'transpose(' in path:
    return 'backward'
  if 'jvp(' in path:
    return 'forward'
  if 'vmap(' in path:
    return 'views'
  return 'update' if path else 'unnamed'


def kind_of(computations, instruction: Instruction, loop: str) -> str:
  """What a kernel does, by all that is fused in it."""
  if loop:
    return 'loop'
  codes = {instruction.opcode}
  for name in instruction.called:
    codes |= {i.opcode for i in computations[name]}
  if codes & {'dot', 'convolution', 'custom-call'}:
    return 'product'
  if 'reduce' in codes:
    return 'sum'
  moved = {'copy', 'transpose', 'concatenate', 'pad', 'broadcast', 'slice'}
  if codes <= moved | {'fusion', *_NO_WORK}:
    return 'copy'
  return 'elementwise'


def count(text: str) -> dict[str, dict[str, float]]:
  """{'part, kind': {'kernels', 'mib'}} of an optimised program."""
  computations, entry = parse(text)
  table: dict = collections.defaultdict(lambda: {'kernels': 0, 'mib': 0.0})
  for kernel, moved, runs, loop in kernels(computations, entry):
    kind = kind_of(computations, kernel, loop)
    row = table[f'{part_of(kernel.path or loop)}, {kind}']
    row['kernels'] += 1
    row['mib'] += moved * runs / _MIB
  return {
    key: {'kernels': row['kernels'], 'mib': round(row['mib'], 1)}
    for key, row in sorted(table.items())
  }


def needed(name: str, image_size: int, batch: int, *, learns: bool) -> float:
  """MiB that the maps of a network need once, see this file's head.

  Maps are inputs and outputs of convolutions and linear layers, in float32.
  """
  model = models.create_model(name, num_classes=10)
  images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
  with lax_convolutions():
    jaxpr = jax.make_jaxpr(functools.partial(model.apply))(
      model.params_shape, model.model_state_shape, images
    )
  floats = 0
  for equation, times in describe._equations(jaxpr.jaxpr):
    if equation.primitive.name in ('conv_general_dilated', 'dot_general'):
      taken = math.prod(equation.invars[0].aval.shape)
      given = math.prod(equation.outvars[0].aval.shape)
      floats += times * ((taken + given) + learns * (2 * taken + given))
  return 4 * floats * batch / _MIB


def measure(name: str, teacher: str, arm: str, size: int, batch: int) -> dict:
  """The row of one model."""
  pair = scaling.Pair(name, teacher, size, batch, 10)
  mesh = sharding.make_mesh(1)
  begun = time.process_time()
  step, shapes, _ = scaling.make_step(pair, mesh, batch, arm=arm)
  lowered = step.lower(*shapes)
  middle = time.process_time()
  compiled = lowered.compile()
  ended = time.process_time()
  table = count(compiled.as_text())
  least = needed(name, size, batch, learns=True)
  if arm == 'online':
    least += needed(teacher, size, batch, learns=False)
  return {
    'model': name,
    'arm': arm,
    'image_size': size,
    'batch_size': batch,
    'trace_cpu_s': round(middle - begun, 1),
    'compile_cpu_s': round(ended - middle, 1),
    'kernels': sum(row['kernels'] for row in table.values()),
    'mib': round(sum(row['mib'] for row in table.values())),
    'needed_mib': round(least),
    'temporary_mib': round(
      compiled.memory_analysis().temp_size_in_bytes / _MIB
    ),
    'table': table,
  }


def main() -> None:
  """Parses the command line and prints the rows."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('models', nargs='+')
  parser.add_argument('--teacher', default='efficientnet_lite2')
  parser.add_argument('--arms', nargs='+', choices=scaling.ARMS, default=['tl'])
  parser.add_argument('--image-size', type=int, default=128)
  parser.add_argument('--batch-size', type=int, default=32)
  arguments = parser.parse_args()
  # Else a program from the cache is not compiled.
  jax.config.update('jax_enable_compilation_cache', False)
  for name in arguments.models:
    for arm in arguments.arms:
      row = measure(
        name,
        arguments.teacher,
        arm,
        arguments.image_size,
        arguments.batch_size,
      )
      print(json.dumps(row | machine.versions()), flush=True)


if __name__ == '__main__':
  main()
