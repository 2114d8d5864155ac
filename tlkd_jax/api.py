"""The package from Python: what the commands do, as a few functions.

    import tlkd_jax

    settings = tlkd_jax.make_settings(dataset='folder:photos')
    result = tlkd_jax.compare(settings, 'runs/photos')
    predictor = tlkd_jax.load(result.workdirs['kd'])

Importing this is cheap; JAX is loaded by the first call. The first call that
computes also does what the commands do at their start, once in a process:
compiled programs are kept in the user's cache folder, unless JAX was told of
another one, and freed memory stays with the process (runtime/allocator.py).
Neither changes a number.

A mistake is a UserError with the command's message, a run that cannot go on a
RunError, both of tlkd_jax.runtime.errors. Interrupting a run (Ctrl-C, the stop
button of a notebook) saves it and raises Interrupted; the same call goes on
with it. Where progress is no bar, it is in lines of the logger `absl`, at the
level INFO.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tlkd_jax.runtime.errors import as_user_errors
from tlkd_jax.runtime.paths import expanded

if TYPE_CHECKING:
  from tlkd_jax.advice.conduct import Advice
  from tlkd_jax.data import Dataset
  from tlkd_jax.inference import Predictor
  from tlkd_jax.settings import Settings
  from tlkd_jax.study.analysis import CellRow


@dataclasses.dataclass(frozen=True, repr=False)
class Result:
  """Finished runs; its text is the closing table of the command.

  Attributes:
    summaries: name of a run, 'teacher', 'tl', 'kd' or another part of its
      protocol -> what its summary.json holds.
    workdirs: the same names -> the runs' folders.
    table: the metrics side by side, with what a reader must know of them.
  """

  summaries: dict[str, dict[str, Any]]
  workdirs: dict[str, pathlib.Path]
  table: str

  def __repr__(self) -> str:
    return self.table


@dataclasses.dataclass(frozen=True, repr=False)
class StudyResult:
  """A finished study; its text is the answer.

  Attributes:
    rows: of the finished cells, as in STUDY/results.json.
    answer: whether the treatment beats the reference, in a paragraph.
    page: the report, STUDY/index.html.
  """

  rows: 'list[CellRow]'
  answer: str
  page: pathlib.Path

  def __repr__(self) -> str:
    return self.answer


def make_settings(
  arm: str = 'kd',
  overrides: Mapping[str, Any] | None = None,
  *,
  dataset: 'str | Dataset' = 'digits',
  student: str = 'efficientnet_lite0',
  teacher: str = '',
  loss: str = 'kd',
  smoke: bool = False,
) -> 'Settings':
  """The settings of a run, checked.

      make_settings('tl', {'num_steps': 400, 'optimizer.learning_rate': 1e-3})

  is `--config configs/tl.py --config.num_steps=400
  --config.optimizer.learning_rate=1e-3`.

  Args:
    arm: 'teacher', 'tl', 'kd' (which has its teacher fine-tuned first) or
      'compare' (all three).
    overrides: key -> value; docs/configs.md has the keys.
    dataset: a name of docs/data.md such as 'folder:PATH', or what from_arrays
      gave.
    student: a key of models.MODELS.
    teacher: likewise; '' is efficientnet_lite2, or the student if `smoke`.
    loss: a key of losses.LOSSES, or a sum 'NAME+NAME'.
    smoke: a few images and steps.

  Returns:
    The settings, frozen; tlkd_jax.settings.with_values makes others of them.

  Raises:
    UserError: names, keys or values that are not accepted, one in a line.
  """
  from tlkd_jax import settings

  with as_user_errors():
    made = settings.make(
      arm,
      dataset=_name(dataset),
      student=student,
      teacher=teacher,
      loss=loss,
      smoke=smoke,
    )
    return settings.with_values(made, overrides or {})


def make_study(
  arms: str = 'all',
  overrides: Mapping[str, Any] | None = None,
  *,
  dataset: 'str | Dataset' = 'digits',
  student: str = 'efficientnet_lite0',
  teacher: str = '',
  students: Sequence[str] = (),
  smoke: bool = False,
) -> 'Settings':
  """The settings of a study of one data set, checked.

      make_study(overrides={'study.seeds': 8, 'study.run_arms': ('tl', 'kd')})

  is `--config configs/study.py` with the same keys.

  Args:
    arms: 'all', 'grid' or 'methods'.
    overrides: as of make_settings.
    dataset: likewise.
    student: likewise.
    teacher: likewise.
    students: several in place of `student`, each with every arm, under one
      teacher; as `--students a,b`.
    smoke: likewise, with two seeds and two sizes.

  Returns:
    The settings, for run_study.

  Raises:
    UserError: as make_settings.
  """
  from tlkd_jax import settings
  from tlkd_jax.study import designs
  from tlkd_jax.study import students as several

  with as_user_errors():
    made = designs.make(
      dataset=_name(dataset),
      group=arms,
      student=student,
      teacher=teacher,
      smoke=smoke,
    )
    made = settings.with_values(made, overrides or {})
    if not students:
      return made
    return several.with_students(made, several.parse(','.join(students)))


def fine_tune(settings: 'Settings', workdir: str | os.PathLike) -> Result:
  """Runs the settings' arm, as `tlkd-jax` does.

      result = fine_tune(make_settings('tl'), 'runs/tl')
      result.summaries['tl']['student']['test']['top1']

  Args:
    settings: from make_settings.
    workdir: folder of the run. The same call resumes a run that was stopped,
      and gives the result of a finished one without running it again.

  Returns:
    Its runs, the arm's own last; shown, it is the closing table.

  Raises:
    UserError: data or weights that cannot be read, or a workdir with a run of
      other settings or other data.
    RunError: a loss that is not finite, a full disk; what was saved stays.
    Interrupted: it was asked to stop and is saved.
  """
  _prepare()
  from tlkd_jax import arms, protocols
  from tlkd_jax.report import closing
  from tlkd_jax.runtime import sharding

  with as_user_errors():
    root = expanded(workdir)
  summaries = arms.run(settings, root, sharding.make_mesh())
  workdirs = protocols.folders(settings, root)
  return Result(summaries, workdirs, closing.table(summaries, workdirs))


def compare(settings: 'Settings', workdir: str | os.PathLike) -> Result:
  """Runs teacher, TL and TL+KD and puts them side by side.

      compare(make_settings(dataset='folder:photos'), 'runs/photos')

  Args:
    settings: from make_settings, of any arm.
    workdir: as of fine_tune; the runs lie in its folders teacher, tl and kd.

  Returns:
    As fine_tune.

  Raises:
    UserError, RunError, Interrupted: as fine_tune.
  """
  from tlkd_jax.settings import with_values

  with as_user_errors():
    settings = with_values(settings, {'arm': 'compare'})
  return fine_tune(settings, workdir)


def run_study(settings: 'Settings', workdir: str | os.PathLike) -> StudyResult:
  """Runs all arms over seeds and train sizes, one run after the other.

      run_study(make_study(dataset='folder:photos'), 'runs/study')

  The command `tlkd-jax-study` does the same in several processes.

  Args:
    settings: from make_study.
    workdir: folder of the study; the same call goes on with it.

  Returns:
    The rows and the answer; the report is written.

  Raises:
    UserError: settings that are no study's, or that an arm refuses.
    RunError: runs failed; the report is of the others.
    Interrupted: it was asked to stop; what is finished stays.
  """
  _prepare()
  from tlkd_jax.study import conduct

  with as_user_errors():
    root = expanded(workdir)
  rows, answer = conduct.run(settings, root)
  return StudyResult(rows, answer, root / 'index.html')


def advise(
  dataset: 'str | Dataset',
  workdir: str | os.PathLike,
  *,
  students: Sequence[str] = (),
  teachers: Sequence[str] = (),
  image_sizes: Sequence[int] = (),
  budget_minutes: float = 60.0,
  overrides: Mapping[str, Any] | None = None,
) -> 'Advice':
  """Is a teacher worth it here? Looks, probes, compares, and says so.

      print(advise('folder:photos', 'runs/advice', budget_minutes=30))

  The command `tlkd-jax-advise` does the same, on as many cores as it finds;
  docs/advise.md says what happens in which order.

  Args:
    dataset: as of make_settings.
    workdir: folder of the advice; the same call goes on with it.
    students: candidates, 'MODEL' or 'MODEL=WEIGHTS'; () is the smallest model
      whose weights are at hand.
    teachers: likewise; () is all whose weights are at hand.
    image_sizes: sides in pixels to try; () is by data and budget.
    budget_minutes: for this call.
    overrides: as of make_settings, for all runs.

  Returns:
    The sentence, the study's verdict, the page and the command that trains
    what is advised; shown, it is the sentence.

  Raises:
    UserError: data, names or values that are not accepted, or a workdir with
      another request.
    RunError: a run failed.
    Interrupted: it was asked to stop; what is finished stays.
  """
  _prepare()
  from tlkd_jax.advice import conduct, request

  with as_user_errors():
    root = expanded(workdir)
    asked = request.make(
      _name(dataset),
      tuple(students),
      tuple(teachers),
      tuple(image_sizes),
      budget_minutes,
      overrides,
    )
  return conduct.run(asked, root)


def load(workdir: str | os.PathLike) -> 'Predictor':
  """The network of a finished run, to be called with images.

      predictor = load('runs/photos/kd')
      found = predictor(['a.jpg', 'b.jpg'])
      found.labels, found.probabilities

  An image is the path of a file, a Pillow image or an array uint8[H, W, 3];
  several are a list of these, or an array uint8[N, H, W, 3]. The numbers are
  those of `tlkd-jax --mode=predict`.

  Args:
    workdir: of a run, teachers' included.

  Raises:
    UserError: no run there, or its checkpoint cannot be read.
  """
  _prepare()
  from tlkd_jax import inference
  from tlkd_jax.runtime import sharding

  return inference.load_predictor(workdir, sharding.make_mesh())


def _name(dataset: 'str | Dataset') -> str:
  return dataset if isinstance(dataset, str) else dataset.name


@functools.cache
def _prepare() -> None:
  """What a command does before anything compiles; done once."""
  from tlkd_jax.runtime import allocator, command_line

  allocator.keep_freed_memory()
  import jax

  if jax.config.values['jax_compilation_cache_dir'] is None:
    command_line.use_compilation_cache(None)
