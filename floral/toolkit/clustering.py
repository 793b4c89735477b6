"""Cluster clients from the distances between them, on the server."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ITERATIONS = 100
"""Number of iterations of k-means, which converges before."""


def spectral_clusters(distances: Tensor, clusters: int) -> Tensor:
    """Return the cluster [n] of each of n clients by spectral clustering of their distances [n, n].

    Two clients i and j are similar by exp(-d_ij²/(2σ²)), where σ is the median distance between different clients. The
    eigenvectors of the C smallest eigenvalues of the normalised Laplacian give each client a vector [C]. The vectors
    have length 1 and are clustered by `k_means`. If distances are not finite, training has diverged, and all clients
    are in cluster 0. With fewer clients than clusters, some clusters stay empty.
    """
    count = len(distances)
    if not distances.isfinite().all() or clusters == 1 or count <= 1:
        return torch.zeros(count, dtype=torch.long, device=distances.device)
    distances = distances.double()
    different = ~torch.eye(count, dtype=torch.bool, device=distances.device)
    deviation = distances[different].median().clamp(min=1e-12)
    similarity = torch.exp(-distances.square() / (2 * deviation**2)) * different
    degree = similarity.sum(1).clamp(min=1e-12)
    _, vectors = torch.linalg.eigh(-similarity / (degree[:, None] * degree).sqrt())
    rows = vectors[:, :clusters]
    return k_means(rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12), clusters)


def subspace_distances(factors: Tensor) -> Tensor:
    """Return the distances [n, n] of n clients, 1 - ‖U_iᵀU_j‖²/R for their factors [n, d, R].

    U_i are the left singular vectors of the factor of client i. The distances of a client whose factor is not finite
    are NaN.
    """
    singular, _, _ = torch.linalg.svd(factors.nan_to_num(), full_matrices=False)  # which refuses NaN
    overlaps = torch.einsum("idr,jds->ijrs", singular, singular).square().sum((2, 3))
    is_finite = factors.isfinite().flatten(1).all(1)
    return torch.where(is_finite[:, None] & is_finite, 1 - overlaps / singular.shape[2], torch.nan)


def cluster_of_all(labels: Tensor, present: Tensor) -> Tensor:
    """Return the cluster [K] of each of K clients, in the type of `present`.

    `present` [K] is above 0 for the n clients that have taken part. Their clusters are `labels` [n]. All other clients
    join the largest cluster.
    """
    clusters = torch.full_like(present, float(labels.bincount().argmax()))
    clusters[present > 0] = labels.to(clusters.dtype)
    return clusters


def k_means(points: Tensor, clusters: int) -> Tensor:
    """Return the cluster [n] of each of the points [n, d]. Nothing is random.

    The first centre is the point that is farthest from the mean. Each further centre is the point that is farthest from
    all centres before it. Then the usual iteration follows. A cluster without points keeps its centre.
    """
    indices = [int((points - points.mean(0)).norm(dim=1).argmax())]
    for _ in range(1, clusters):
        indices.append(int(torch.cdist(points, points[indices]).amin(1).argmax()))
    centres = points[indices].clone()
    nearest = torch.cdist(points, centres).argmin(1)
    for _ in range(ITERATIONS):
        for cluster in range(clusters):
            members = points[nearest == cluster]
            if len(members):
                centres[cluster] = members.mean(0)
        moved = torch.cdist(points, centres).argmin(1)
        if torch.equal(moved, nearest):
            break
        nearest = moved
    return nearest


def average_linkage(distances: Tensor, numbers: Sequence[int]) -> list[Tensor]:
    """Return the clusters [n] of n clients by agglomerative clustering of their distances [n, n], for several `numbers`
    of clusters.

    At first, each client is a cluster. The two clusters with the smallest mean distance between their members are
    joined, again and again. Clusters are numbered in the order of their first members. The distances must be finite.

    Costs: only the means of a new cluster are computed after a step, so n clients take about n² means.
    """
    members = list(torch.arange(len(distances), device=distances.device).split(1))
    means = distances.double().cpu().numpy().copy()
    means[np.triu_indices_from(means)] = np.inf  # pair (a, b) of clusters stands in row a and column b < a
    result = {}
    while True:
        if len(members) in numbers:
            result[len(members)] = torch.empty(len(distances), dtype=torch.long, device=distances.device)
            for cluster, clients in enumerate(sorted(members, key=lambda clients: int(clients.min()))):
                result[len(members)][clients] = cluster
        if len(members) <= min(numbers):
            return [result[number] for number in numbers]
        first, second = (int(at) for at in np.unravel_index(means.argmin(), means.shape))
        members[second] = torch.cat([members[second], members.pop(first)])
        means = np.delete(np.delete(means, first, 0), first, 1)
        for cluster in range(len(members)):
            if cluster != second:
                a, b = max(cluster, second), min(cluster, second)
                means[a, b] = float(distances[members[a]][:, members[b]].mean())


def silhouette(distances: Tensor, labels: Tensor) -> float:
    """Return the mean silhouette of n clients with the distances [n, n] and the clusters `labels` [n].

    The silhouette of a client is (b - a)/max(a, b). a is its mean distance from the other clients of its cluster, and b
    the smallest mean distance from the clients of another cluster. It is 0 for the only client of a cluster.
    """
    members = {label: (labels == label).nonzero()[:, 0] for label in labels.unique().tolist()}
    values = []
    for label, row in zip(labels.tolist(), distances, strict=True):
        same = members[label]
        if len(same) == 1:
            values.append(0.0)
            continue
        inside = float(row[same].sum() / (len(same) - 1))
        outside = min(float(row[clients].mean()) for other, clients in members.items() if other != label)
        values.append((outside - inside) / max(outside, inside, 1e-30))
    return sum(values) / len(values)


def best_linkage(distances: Tensor, most: int) -> Tensor:
    """Return the clusters [n] of `average_linkage` for the number of clusters with the largest mean silhouette.

    All numbers from 2 to `most` are tried, but at most n - 1. With fewer than 3 clients, `most` 1, or distances
    that are not finite, there is one cluster.
    """
    count = len(distances)
    if most < 2 or count < 3 or not distances.isfinite().all():
        return torch.zeros(count, dtype=torch.long, device=distances.device)
    options = average_linkage(distances, range(2, min(most, count - 1) + 1))
    return max(options, key=lambda labels: silhouette(distances, labels))
