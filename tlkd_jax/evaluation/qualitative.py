"""The `qualitative` suite: what a reader looks at, stored without the model.

RUN/evaluation gets
  images.npz     small JPEGs of the test images, with their indices and names;
  gradcam.npz    a Grad-CAM map of each for its true class;
  features.npz   each stage's features averaged over the image;
  embedding.npz  two-dimensional views of pre_logits;
  qualitative.json  their figures.
"""

import io
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from tlkd_jax.data import Split
from tlkd_jax.evaluation import embedding, gradcam, records
from tlkd_jax.evaluation.subject import Subject
from tlkd_jax.runtime import sharding

# Of a stored image, pixels.
THUMBNAIL = 112
_JPEG_QUALITY = 85
# t-SNE and the silhouette take time that grows faster than the images.
MAX_EMBEDDED = 2000


def run(subject: Subject) -> str:
  """Stores images, maps, features and embeddings of test images."""
  split = subject.sample()
  found = _observe(subject, split)
  labels, indices = split.labels, split.indices
  summary: dict[str, Any] = {
    'dataset': subject.dataset.name,
    'split': 'test',
    'count': len(split),
    'images_of_split': len(subject.dataset.splits['test']),
    'class_names': subject.dataset.class_names,
    'gradcam_stage': f'grid of {found["stage"]}',
    'gradcam_class': 'the true class',
    'gradcam_empty_share': float((found['maps'].max(axis=(1, 2)) <= 0).mean()),
    'stages': found['stages'],
  }
  kept = np.linspace(0, len(split) - 1, min(len(split), MAX_EMBEDDED))
  rows = kept.round().astype(np.int64)
  vectors, classes = found['pre_logits'][rows], labels[rows]
  components = embedding.principal_components(vectors)
  summary['embedding'] = {
    'count': len(rows),
    'explained_by_pca': components['explained'],
    'knn_accuracy': embedding.knn_accuracy(vectors, classes),
    'knn_neighbours': min(10, len(rows) - 1),
    'silhouette': embedding.silhouette(vectors, classes),
  }
  if sharding.is_lead():
    folder, step = subject.folder, np.asarray(subject.step)
    same = {'labels': labels, 'indices': indices, 'step': step}
    records.write_arrays(folder / 'images.npz', same | pack_images(split))
    maps = found['maps']
    records.write_arrays(folder / 'gradcam.npz', same | {'maps': maps})
    features = {f'features_{k}': v for k, v in found['features'].items()}
    records.write_arrays(folder / 'features.npz', same | features)
    records.write_arrays(
      folder / 'embedding.npz',
      {
        'labels': classes,
        'indices': indices[rows],
        'pca': components['coordinates'].astype(np.float32),
        'tsne': embedding.tsne(vectors).astype(np.float32),
      },
    )
    records.write_json(folder / 'qualitative.json', summary)
  shown = summary['embedding']
  return (
    f'{subject.model}: {len(split)} images; Grad-CAM of {found["stage"]}; kNN '
    f'accuracy of pre_logits {shown["knn_accuracy"]:.3f}, silhouette '
    f'{shown["silhouette"]:.3f}'
  )


def _observe(subject: Subject, split: Split) -> dict[str, Any]:
  """Maps [N, h, w], pooled features and pre_logits of a split."""
  stages = subject.network.model.spec.stages
  stages = tuple(sorted(_feature_names(subject), key=list(stages).index))
  columns: dict[str, list] = {}
  stage, step = stages[-1], None
  for batch in subject.batches(split):
    on_device = sharding.shard_batch(
      {name: batch[name] for name in ('image', 'label', 'mask')}, subject.mesh
    )
    if step is None:
      stage, step = _reaching_step(subject, stages, on_device)
    outputs = step(subject.variables, on_device['image'], on_device['label'])
    mask = sharding.gather({'mask': on_device['mask']}, subject.mesh)
    host = jax.device_get(outputs | mask)
    keep = host['mask'] > 0
    for name in ('maps', 'pre_logits'):
      columns.setdefault(name, []).append(host[name][keep])
    for name, value in host['features'].items():
      columns.setdefault(f'features/{name}', []).append(value[keep])
  joined = {name: np.concatenate(parts) for name, parts in columns.items()}
  return {
    'stage': stage,
    'stages': list(stages),
    'maps': joined['maps'],
    'pre_logits': joined['pre_logits'],
    'features': {n: joined[f'features/{n}'] for n in stages},
  }


def _feature_names(subject: Subject) -> list[str]:
  model, size = subject.network.model, subject.dataset.image_size
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)

  def outputs(params, model_state, images):
    prepared = subject.network.prepare(images)
    return model.apply(params, model_state, prepared)[0]

  shapes = jax.eval_shape(
    outputs, model.params_shape, model.model_state_shape, images
  )
  return list(shapes['features'])


def _reaching_step(subject: Subject, stages, batch):
  """The last stage whose maps reach the logits, and its step."""
  for stage in reversed(stages):
    step = make_step(subject.network, stage, subject.mesh)
    outputs = step(subject.variables, batch['image'], batch['label'])
    if np.asarray(outputs['reaches']):
      return stage, step
  # All weights of the head are zero: the last stage, whose maps are empty.
  return stages[-1], make_step(subject.network, stages[-1], subject.mesh)


def make_step(view, stage: str, mesh):
  """Builds step(variables, uint8 images [B, S, S, 3], labels [B]) -> outputs.

  Returns:
    A jitted function that gives `logits`, `pre_logits`, `features` averaged
    over the image {stage: [B, c]}, `maps` [B, h, w] (Grad-CAM of the labels)
    and `reaches` (whether any gradient reached the stage).
  """

  def step(variables, images, labels):
    def apply(images):
      return view.model.apply(*variables, view.prepare(images))[0]

    def forward(images):
      outputs = apply(images)
      return outputs['logits'], outputs['features'][stage]

    outputs = apply(images)
    maps, gradient = gradcam.stage_gradient(forward, images, labels)
    return {
      'logits': outputs['logits'],
      'pre_logits': outputs['pre_logits'].astype(jnp.float32),
      'features': {
        name: value.astype(jnp.float32).mean((1, 2))
        for name, value in outputs['features'].items()
      },
      'maps': gradcam.class_activation(maps, gradient),
      'reaches': (gradient != 0).any(),
    }

  copied, split = sharding.replicated(mesh), sharding.batch_sharded(mesh)
  return jax.jit(
    step, in_shardings=(copied, split, split), out_shardings=copied
  )


def pack_images(split: Split) -> dict[str, np.ndarray]:
  """JPEGs of at most THUMBNAIL pixels, end to end, with their offsets."""
  parts = []
  for image in split.images:
    picture = Image.fromarray(np.asarray(image))
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, 'JPEG', quality=_JPEG_QUALITY)
    parts.append(data.getvalue())
  offsets = np.cumsum([0, *map(len, parts)])
  return {
    'jpeg': np.frombuffer(b''.join(parts), np.uint8),
    'offsets': offsets.astype(np.int64),
    'names': np.asarray(split.names, np.str_),
  }


def unpack_images(path: pathlib.Path) -> dict[int, bytes]:
  """Index -> JPEG, from images.npz."""
  stored = records.read_arrays(path)
  data, offsets = stored['jpeg'].tobytes(), stored['offsets'].tolist()
  return {
    int(index): data[offsets[i] : offsets[i + 1]]
    for i, index in enumerate(stored['indices'])
  }
