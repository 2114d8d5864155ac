"""Every configuration key, once, with its meaning.

The other files of this folder change values, never the set of keys. Any key
can be set on the command line: `--config.optimizer.learning_rate=0.003`.
"""

import ml_collections
from ml_collections import config_dict

from configs import common
from tlkd_jax import losses


def get_base(arg: str | None, arm: str) -> ml_collections.ConfigDict:
  """Builds the configuration of one arm, or of all arms of a study.

  Args:
    arg: `dataset=NAME,student=MODEL,teacher=MODEL,loss=NAME,smoke`, in
      any order; `loss=NAME+NAME` is a sum.
    arm: what the run trains: 'teacher', 'tl', 'kd', 'compare' (all three), or
      'study', which adds the section `study`.
  """
  options = common.parse_arg(
    arg,
    dataset='digits',
    student='efficientnet_lite0',
    teacher='',
    loss='kd',
    smoke=False,
  )
  config = ml_collections.ConfigDict()
  config.arm = arm  # 'teacher' | 'tl' | 'kd' | 'compare' (all) | 'study'.
  config.seed = 0  # Of data subsets, order, augmentation, dropout, heads.
  config.dataset = options['dataset']  # 'digits' | 'folder:PATH' | TFDS name.
  config.image_size = 64  # Side of the student's images, pixels.
  config.num_train_per_class = 20  # Training images per class; 0 is all.
  config.train_fraction = 1.0  # Stratified fraction of the training images.
  config.batch_size = 32  # Global, over all devices.
  config.num_steps = 200  # Batches the student learns from.
  # 'frozen' statistics | 'train' | 'stochastic' (StochNorm).
  config.batch_norm = 'frozen'
  config.compute_dtype = 'float32'  # 'float32' | 'bfloat16'.
  # Before the first step, compare what it needs with the memory there is.
  config.memory_check = True
  # What the backward pass computes again rather than keeps: 'none', or of the
  # student's 'blocks' all but their inputs. XLA on CPU saves nothing by it.
  config.remat = 'none'
  config.label_smoothing = 0.1  # Of the hard loss.
  config.ema_decay = 0.0  # Moving average of the weights; 0 is off.
  config.log_every_steps = 10  # Training metrics are averaged and written.
  config.eval_every_steps = 50  # Validation, choice of best, checkpoint.
  config.keep_checkpoints = 2  # Newest kept, beside the best.
  config.early_stopping = 0  # Evaluations without gain before stopping; 0 off.
  config.best_metric = 'top1'  # Validation metric; ties keep the earlier.

  config.data = _data()
  config.augment = _augment()
  config.optimizer = _optimizer()
  config.student = _model(options['student'])
  # The smoke run compiles one architecture unless told otherwise.
  default = options['student'] if options['smoke'] else 'efficientnet_lite2'
  config.teacher = _model(options['teacher'] or default)
  # Batches when the teacher is fine-tuned; 0 is as many as the student's.
  config.teacher.num_steps = 0
  # Side of the teacher's images; 0 is the student's.
  config.teacher.image_size = 0
  config.distillation = _distillation(options['loss'])
  config.targets = _targets()
  config.transfer = _transfer()
  if options['loss'].startswith('function_matching'):
    # Beyer et al. 2022, section 3: labels unused, mixing rate uniform.
    config.distillation.hard_weight = 0.0
    config.augment.mixup_alpha = 1.0
  if arm == 'study':
    config.study = _study()
  if options['smoke']:
    _smoke(config)
  return config.lock()


def _study() -> ml_collections.ConfigDict:
  study = ml_collections.ConfigDict()
  # Name -> {sizes (() is study.sizes), changes (keys of this file)};
  # configs/study.py fills it in.
  study.datasets = ml_collections.ConfigDict()
  # Name -> {kind: 'teacher' | 'tl' | 'kd', label, teachers (names of arms),
  # changes (keys of this file)}; filled in likewise.
  study.arms = ml_collections.ConfigDict()
  # Names of the arms to run, their teachers come along; () is all.
  study.run_arms = ()
  # Training images per class (0 is all), or fractions below 1.
  study.sizes = (5, 10, 20, 50)
  study.seeds = 6  # Runs of each: config.seed, config.seed + 1, ...
  study.reference = 'tl'  # The arm that the others are compared with.
  study.treatment = 'kd'  # The arm that answers the question.
  # Values that every arm tries; each cell keeps the one that is best on its
  # validation images. () does not search.
  study.grid = ml_collections.ConfigDict(
    {'optimizer': {'learning_rate': (), 'weight_decay': ()}}
  )
  # Test metrics that are compared, and counted in Holm's correction.
  study.metrics = ('top1', 'macro_f1', 'nll', 'brier', 'ece', 'aurc')
  # What stays of finished cells: 'all' | 'best' checkpoints | 'needed' ones.
  study.keep = 'best'
  return study


def _data() -> ml_collections.ConfigDict:
  data = ml_collections.ConfigDict()
  # Where prepared data sets lie; None is TFDS's own default.
  data.data_dir = config_dict.placeholder(str)
  # Own copies of digits and folders; None is the user's cache folder.
  data.cache_dir = config_dict.placeholder(str)
  # At most this many validation and test images per class; 0 is all.
  data.num_eval_per_class = 0
  # 'error' | 'skip' an unreadable image; skipped ones are in the summary.
  data.on_bad_image = 'error'
  # Decoded images beyond this many MiB are memory-mapped, not held.
  data.memory_budget_mib = 2048
  # image_size / resized short side; None is 1 for digits, else 0.875.
  data.crop = config_dict.placeholder(float)
  data.interpolation = 'bicubic'  # 'bilinear' | 'bicubic' | 'lanczos'.
  return data


def _augment() -> ml_collections.ConfigDict:
  augment = ml_collections.ConfigDict()
  # 'random_resized' | 'random' | 'centre'.
  augment.crop = 'random_resized'
  augment.scale = (0.35, 1.0)  # Area of a random resized crop.
  augment.ratio = (3 / 4, 4 / 3)  # Its aspect ratio.
  augment.flip = 'auto'  # 'auto' (as the data set says) | 'on' | 'off'.
  augment.brightness = 0.0  # Factor in 1 +- this.
  augment.contrast = 0.0  # The same, of the contrast.
  augment.saturation = 0.0  # The same, of the saturation.
  augment.randaugment_ops = 0  # RandAugment's operations per image; 0 is off.
  augment.randaugment_magnitude = 9.0  # 0 to 10.
  # Beta(alpha, alpha) of mixup and CutMix, 0 is off; with both, each batch
  # draws one of them. Teachers see the mixed images.
  augment.mixup_alpha = 0.0
  augment.cutmix_alpha = 0.0
  return augment


def _optimizer() -> ml_collections.ConfigDict:
  optimizer = ml_collections.ConfigDict()
  optimizer.name = 'adamw'  # 'sgd' (Nesterov) | 'adamw'.
  optimizer.learning_rate = 1e-3  # Peak.
  optimizer.warmup_fraction = 0.1  # Of the steps, linear from 0.
  optimizer.final_fraction = 0.0  # Of the peak, at the end of the cosine.
  optimizer.momentum = 0.9  # SGD.
  optimizer.beta1 = 0.9  # AdamW.
  optimizer.beta2 = 0.999  # AdamW.
  # Kernels only. SGD: coupled, as torch's; AdamW: decoupled.
  optimizer.weight_decay = 1e-4
  optimizer.clip_norm = 1.0  # Global gradient norm; 0 is off.
  optimizer.accumulate_steps = 1  # Batches per update.
  optimizer.head_multiplier = 1.0  # Of the learning rate, for the head.
  optimizer.layer_decay = 0.7  # Factor per stage from the head to the stem.
  optimizer.freeze_until_step = 0  # Only the head moves before this step.
  optimizer.train_only = 'all'  # 'all' | 'head' (linear probe).
  return optimizer


def _model(name: str) -> ml_collections.ConfigDict:
  model = ml_collections.ConfigDict()
  model.name = name  # A key of tlkd_jax.models.MODELS.
  # 'pretrained' (the variant's own source) | 'scratch' | a file | 'hf-hub:..'.
  model.weights = 'pretrained'
  # A finished run (its workdir) to start from; replaces `weights`.
  model.checkpoint = config_dict.placeholder(str)
  # The last layer of `weights`: 'new', or 'keep' it where it has the data's
  # number of classes (in the data's order).
  model.head = 'new'
  model.head_init = 'zero'  # Of a new head: 'zero' | 'small_random'.
  model.dropout = config_dict.placeholder(float)  # None: as published.
  model.drop_path = 0.0  # Stochastic depth of the deepest block.
  return model


def _distillation(names: str) -> ml_collections.ConfigDict:
  loss, *others = names.split('+')
  distillation = ml_collections.ConfigDict()
  # loss = hard_weight * cross-entropy + soft_weight * distillation loss.
  distillation.hard_weight = 1.0
  distillation.loss = loss  # A key of tlkd_jax.losses.LOSSES.
  distillation.soft_weight = 1.0  # Of the distillation loss.
  # Of soft_weight, from it to end_weight over the run: 'constant' | 'linear' |
  # 'cosine'.
  distillation.schedule = 'constant'
  distillation.end_weight = 0.0
  # Share of the run in which the weight rises linearly from 0.
  distillation.warmup_fraction = losses.find(loss).warmup
  distillation.temperature = 2.0  # Of `loss`, where it has one.
  # Of every loss with a temperature, from its own to end_temperature.
  distillation.temperature_schedule = 'constant'
  distillation.end_temperature = 1.0
  # Models between teacher and student, each taught by the one before.
  distillation.assistants = ()
  # The teacher learns beside the student, and from it (mutual learning).
  distillation.mutual = False
  # Born again: so many students in turn, each taught by the one before.
  distillation.generations = 1
  # Images without labels that the student learns from beside the training
  # images, by the teacher alone: 'folder:PATH'; '' is none.
  distillation.unlabelled = ''
  # Finished runs (workdirs) that teach beside config.teacher.
  distillation.more_teachers = ()
  # Of several teachers: mean of the 'probabilities' at the loss's temperature,
  # or of the 'losses', which is for losses on features too.
  distillation.ensemble = 'probabilities'
  # Other hyper-parameters of the loss; all are here, with their published
  # values, when the loss is chosen as `configs/kd.py:loss=NAME`.
  distillation.options = ml_collections.ConfigDict()
  if names != 'kd':
    distillation.options.update(losses.hyperparameters_of(loss))
    distillation.soft_weight = losses.find(loss).weight
  # Further losses of the sum, `loss=NAME+NAME`: extra.NAME.weight, .schedule,
  # .end_weight, .warmup_fraction and .options, as above.
  distillation.extra = ml_collections.ConfigDict()
  for name in others:
    if name == loss or name in distillation.extra:
      raise ValueError(f'loss={names} names {name!r} twice')
    distillation.extra[name] = {
      'weight': losses.find(name).weight,
      'schedule': 'constant',
      'end_weight': 0.0,
      'warmup_fraction': losses.find(name).warmup,
      'options': losses.hyperparameters_of(name),
    }
  return distillation


def _targets() -> ml_collections.ConfigDict:
  targets = ml_collections.ConfigDict()
  # The teachers' outputs: 'online', in every step, or 'cached', computed once
  # for the views of the run, stored, and shared by runs that agree in them.
  targets.mode = 'online'
  # An image of the student's training cycles through so many views, whatever
  # the mode; 0 is a new view each epoch, which 'online' alone can do.
  targets.views = 0
  targets.dtype = 'float16'  # 'float16' | 'float32', of what is stored.
  targets.top_k = 0  # Store the k largest logits, spread the rest; 0 is all.
  # Where they lie; None is `targets` in the teacher's run.
  targets.dir = config_dict.placeholder(str)
  return targets


def _transfer() -> ml_collections.ConfigDict:
  """Terms that keep the student near its start; weights of 0 are off."""
  transfer = ml_collections.ConfigDict()
  # alpha/2 |w - start|^2 of the backbone, and beta/2 |w|^2 of the head.
  transfer.l2_sp = 0.0
  transfer.l2_sp_head = 0.0
  transfer.delta = 0.0  # 1/2 sum of squared differences of feature maps.
  transfer.delta_stages = ()  # () is all, else ('stage4',) or the like.
  transfer.bss = 0.0  # Smallest squared singular values of pre_logits.
  transfer.bss_k = 1  # How many of them.
  # The head of student.weights goes on learning: from its own start (LwF), or
  # from the classes that the labels resemble (Co-Tuning).
  transfer.lwf = 0.0
  transfer.lwf_temperature = 2.0
  transfer.co_tuning = 0.0
  # With batch_norm='stochastic': chance of a channel to use the batch.
  transfer.stoch_norm_p = 0.5
  # LP-FT: so many steps of the head alone, a run in WORKDIR/probe, before.
  transfer.probe_steps = 0
  return transfer


def _smoke(config: ml_collections.ConfigDict) -> None:
  """The same code on a few images, in under a minute on two cores."""
  config.image_size = 32
  config.num_train_per_class = 4
  config.data.num_eval_per_class = 4
  config.batch_size = 8
  config.num_steps = 6
  config.log_every_steps = 2
  config.eval_every_steps = 6
