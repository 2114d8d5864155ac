import numpy as np
import pytest
from sklearn import neighbors

from tlkd_jax.evaluation import embedding


def clusters(separation, seed=0):
  rng = np.random.default_rng(seed)
  labels = np.repeat(np.arange(3), 20)
  centres = separation * np.eye(3, 8)
  return centres[labels] + rng.normal(size=(60, 8)), labels


def test_principal_components_explain_the_variance():
  x, _ = clusters(3.0)
  found = embedding.principal_components(x, 8)
  centred = x - x.mean(axis=0)
  np.testing.assert_allclose(found['explained'].sum(), 1.0)
  np.testing.assert_allclose(
    found['coordinates'].var(axis=0).sum(), centred.var(axis=0).sum()
  )
  assert embedding.principal_components(x)['coordinates'].shape == (60, 2)


def test_knn_leaves_each_example_out():
  x, labels = clusters(2.0)
  expected = []
  for i in range(len(x)):
    rest = np.arange(len(x)) != i
    knn = neighbors.KNeighborsClassifier(10, metric='cosine', algorithm='brute')
    knn.fit(x[rest], labels[rest])
    expected.append(knn.predict(x[i : i + 1])[0] == labels[i])
  assert embedding.knn_accuracy(x, labels) == pytest.approx(np.mean(expected))
  assert 0.5 < np.mean(expected) < 1
  # A point is not its own neighbour.
  assert embedding.knn_accuracy(np.eye(2) + 1, np.array([0, 1])) == 0


def test_silhouette_grows_with_separation():
  values = [embedding.silhouette(*clusters(s)) for s in (0.0, 3.0, 9.0)]
  assert values[0] < 0.05 < values[1] < values[2] <= 1
  assert np.isnan(embedding.silhouette(np.ones((4, 2)), np.zeros(4, int)))


def test_tsne_keeps_clusters_together():
  x, labels = clusters(12.0)
  places = embedding.tsne(x)
  assert places.shape == (60, 2) and np.isfinite(places).all()
  knn = neighbors.KNeighborsClassifier(5).fit(places, labels)
  assert knn.score(places, labels) > 0.95
  np.testing.assert_array_equal(places, embedding.tsne(x))
  assert not embedding.tsne(np.ones((20, 4))).any()


@pytest.mark.parametrize('count', [1, 2, 3, 4])
@pytest.mark.parametrize('width', [1, 2, 6])
def test_few_points_are_their_principal_components(count, width):
  """The first two, which hold all that points in a plane have."""
  x = np.random.default_rng(0).normal(size=(count, width))
  places = embedding.tsne(x)
  assert places.shape == (count, 2)
  centred = x - x.mean(axis=0)
  # Of the matrix of inner products, by another way than the code's.
  values, vectors = np.linalg.eigh(centred @ centred.T)
  first = vectors[:, ::-1][:, :2] * np.sqrt(values[::-1][:2].clip(0))
  expected = np.zeros((count, 2))
  expected[:, : first.shape[1]] = first
  np.testing.assert_allclose(abs(places), abs(expected), atol=1e-7)
