"""Clusters of embeddings: learned by FAISS from a sample, then integers like everything else that decides a plan."""

from __future__ import annotations

import numpy as np

from strategies.arrays import Int16Array, Int32Array, Int64Array
from strategies.related.affinity import products, quantise

_ROUNDS = 10
_MOST_POINTS = 1 << 16
_BATCH = 1 << 13  # embeddings compared with all centroids at once


def learn_centroids(sample: Int16Array, num_clusters: int) -> Int16Array:
    """Learn the centroids of clusters, as embeddings, by spherical k-means.

    sample: embeddings, at least `num_clusters` of them.  # shape: (num_samples, num_dimensions)

    It runs on one thread, so that the number of threads changes nothing. Raises `ModuleNotFoundError` without FAISS.
    # shape: (num_clusters, num_dimensions)
    """
    import faiss  # noqa: PLC0415 - only large runs need it

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        kmeans = faiss.Kmeans(
            sample.shape[1],
            num_clusters,
            niter=_ROUNDS,
            spherical=True,
            seed=0,
            min_points_per_centroid=1,
            max_points_per_centroid=_MOST_POINTS,
        )
        kmeans.train(sample[:_MOST_POINTS].astype(np.float32))
        assert kmeans.centroids is not None
    finally:
        faiss.omp_set_num_threads(threads)
    return quantise(kmeans.centroids)


def nearest_centroid(embeddings: Int16Array, centroids: Int16Array) -> Int32Array:
    """Return the nearest cluster of each embedding, of equally near ones the first.  # shape: (num_embeddings,)"""
    nearest = np.empty(len(embeddings), np.int32)
    for start in range(0, len(embeddings), _BATCH):
        nearest[start : start + _BATCH] = products(embeddings[start : start + _BATCH], centroids).argmax(axis=1)
    return nearest


def neighbours_first(centroids: Int16Array) -> Int32Array:
    """Return for each cluster all clusters by their nearness to it, itself first.

    # shape: (num_clusters, num_clusters)
    """
    near = products(centroids)
    np.fill_diagonal(near, np.inf)
    return np.argsort(-near, axis=1, kind="stable").astype(np.int32)


def chain(centroids: Int16Array) -> Int64Array:
    """Return an order of the clusters in which neighbours stand together: each is followed by the nearest one left.

    O(num_clusters²).  # shape: (num_clusters,)
    """
    near = products(centroids)
    order = [0]
    for _ in range(1, len(centroids)):
        near[:, order[-1]] = -np.inf
        order.append(int(near[order[-1]].argmax()))
    return np.array(order, np.int64)
