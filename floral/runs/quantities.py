"""Names of quantities in MLflow, by their names in the files of a run.

MLflow groups metrics by the part before a slash. So `test_accuracy` of summary.json and summary.parquet is
`test/accuracy` in MLflow. `test/…` are the numbers of the report's main table. Curves of the split `test` in
metrics.parquet are measured on each client's own test samples, so they are `own_test/…`. Costs are `cost/…`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IN_SUMMARY = {
    "test_accuracy": "test/accuracy", "test_loss": "test/loss", "test_top5_accuracy": "test/top5_accuracy",
    "official_score": "test/official_score", "own_test_accuracy": "own_test/accuracy",
    "worst_cluster_accuracy": "test/worst_cluster_accuracy", "worst_decile_accuracy": "test/worst_decile_accuracy",
    "excess_risk": "test/excess_risk", "ari": "route/ari", "route_entropy": "route/entropy",
    "mismatch": "route/mismatch", "bytes": "cost/bytes", "client_passes": "cost/client_passes",
}  # fmt: skip
"""Values of summary.json that MLflow has, and their names there."""
ERRORS = ("test_loss", "official_score", "excess_risk")
"""Values of summary.json that are errors in regression."""


def curve_name(split: str, metric: str) -> str:
    """Return the name of a curve of metrics.parquet in MLflow, such as `own_test/accuracy`."""
    return f"{'own_test' if split == 'test' else split}/{metric}"


def named_costs(costs: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of costs.json by their names in MLflow, such as `cost/seconds_total`."""
    numbers = {**costs["parameters"], **{f"seconds_{key}": value for key, value in costs["seconds"].items()}}
    numbers |= {key: costs[key] for key in ("bytes_per_round", "passes_per_sample", "peak_memory_bytes", "resumptions")}
    return {f"cost/{key}": float(value) for key, value in numbers.items() if value is not None}
