"""Which flags of `tlkd_jax.main` go together."""

from absl import flags

from tlkd_jax.runtime.command_line import fail

# Mode -> the flags that it reads; all others are for every mode.
_READ = {
  'train': {'config', 'workdir', 'compare'},
  'evaluate': {'checkpoint', 'suite', 'dataset', 'ood_dataset', 'max_images'},
  'predict': {'checkpoint', 'input', 'output'},
}
# What to do instead, where that is not plain.
_INSTEAD = {
  ('train', 'checkpoint'): 'a run is resumed by its --workdir, and started '
  'from another one with --config.student.checkpoint',
  ('train', 'dataset'): 'data to train on are --config FILE:dataset=NAME',
  ('evaluate', 'config'): "what is evaluated is --checkpoint's own "
  'configuration, and --dataset names other data',
  ('evaluate', 'workdir'): 'the run is named by --checkpoint',
  ('evaluate', 'input'): 'images with labels are named by --dataset, others '
  'are for --mode=predict',
  ('predict', 'config'): "what predicts is --checkpoint's own configuration",
  ('predict', 'workdir'): 'the run is named by --checkpoint',
  ('predict', 'dataset'): 'images are named by --input',
}
# Suites of evaluate that read a flag.
_SUITES_READING = {
  'ood_dataset': ('ood', 'all'),
  'max_images': ('corruptions', 'ood', 'qualitative', 'all'),
  'dataset': ('clean',),
}
_NEEDED = {
  'train': ('config',),
  'evaluate': ('checkpoint',),
  'predict': ('checkpoint', 'input'),
}


def check(mode: str, suite: str, distributed: bool) -> None:
  """Ends the command where a flag is missing, or given and not read.

  Args:
    mode: value of --mode.
    suite: of --suite.
    distributed: of --distributed.
  """
  for name in sorted(set().union(*_READ.values()) - _READ[mode]):
    if flags.FLAGS[name].present:
      others = [f'--mode={m}' for m in _READ if name in _READ[m]]
      instead = _INSTEAD.get((mode, name), f'it is for {" and ".join(others)}')
      fail(f'--{name} is not read with --mode={mode}: {instead}')
  for name, suites in _SUITES_READING.items():
    if flags.FLAGS[name].present and suite not in suites:
      fail(
        f'--{name} is not read by --suite={suite}; it is for '
        f'--suite={" and --suite=".join(suites)}'
      )
  for name in ('coordinator', 'num_processes', 'process_id'):
    if flags.FLAGS[name].present and not distributed:
      fail(f'--{name} is not read without --distributed')
  for name in _NEEDED[mode]:
    if flags.FLAGS[name].value is None:
      example = ', e.g. --config configs/compare.py' * (name == 'config')
      fail(f'--mode={mode} needs --{name}{example}')
