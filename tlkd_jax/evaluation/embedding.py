"""The space of `pre_logits`: how it looks and how well it separates classes."""

import numpy as np
from sklearn import decomposition, manifold, metrics, neighbors

_PERPLEXITY = 30.0


def principal_components(features, count: int = 2) -> dict[str, np.ndarray]:
  """PCA of features [N, D].

  Returns:
    `coordinates` [N, count] and `explained` [count], shares of the variance.
  """
  features = np.asarray(features, np.float64)
  count = min(count, *features.shape)
  pca = decomposition.PCA(count, svd_solver='full')
  coordinates = pca.fit_transform(features)
  explained = np.nan_to_num(pca.explained_variance_ratio_)
  return {'coordinates': coordinates, 'explained': explained}


def tsne(features, seed: int = 0) -> np.ndarray:
  """t-SNE (van der Maaten and Hinton 2008), float [N, 2].

  From the first 50 principal components, started from the first two; distances
  between clusters mean little. For N < 5 the first two principal components
  themselves, a missing one as zeros; zeros too where all points are one.
  """
  features = np.asarray(features, np.float64)
  if not (features != features[:1]).any():
    return np.zeros((len(features), 2))
  if len(features) < 5:
    found = principal_components(features)['coordinates']
    return np.pad(found, ((0, 0), (0, 2 - found.shape[1])))
  reduced = principal_components(features, 50)['coordinates']
  perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
  return manifold.TSNE(
    2, perplexity=perplexity, init='pca', random_state=seed
  ).fit_transform(reduced)


def knn_accuracy(features, labels, neighbours: int = 10) -> float:
  """Leave-one-out accuracy of k nearest neighbours by cosine distance.

  Args:
    features: [N, D].
    labels: int [N].
    neighbours: k, at most N - 1.

  Returns:
    A float; NaN for N < 2. A tie goes to the lowest class.
  """
  features, labels = np.asarray(features, np.float64), np.asarray(labels)
  if len(features) < 2:
    return float('nan')
  count = min(neighbours, len(features) - 1)
  search = neighbors.NearestNeighbors(n_neighbors=count, metric='cosine')
  # Asked about its own points, the search leaves each one itself out.
  near = search.fit(features).kneighbors(return_distance=False)
  votes = np.stack(
    [np.bincount(row, minlength=labels.max() + 1) for row in labels[near]]
  )
  return float((votes.argmax(axis=1) == labels).mean())


def silhouette(features, labels) -> float:
  """Mean silhouette (Rousseeuw 1987) of the classes, cosine distance.

  -1 to 1; NaN where there are not 2 to N - 1 classes.
  """
  labels = np.asarray(labels)
  if not 2 <= len(np.unique(labels)) <= len(labels) - 1:
    return float('nan')
  features = np.asarray(features, np.float64)
  return float(metrics.silhouette_score(features, labels, metric='cosine'))
