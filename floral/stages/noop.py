"""Write the files of a run without data (`data: nothing`). Nothing is trained, and torch is not imported."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

import floral
from floral.config.run import Run
from floral.io.files import atomic
from floral.runs import layout
from floral.runs.core_seconds import PARTS

SCORES = (
    "official_score", "official_score_sampled", "own_test_accuracy", "validation_accuracy", "validation_loss",
    "worst_cluster_accuracy", "worst_decile_accuracy", "ari", "route_entropy", "mismatch", "diverged_at",
    "partition_digest", "classes", "test_top5_accuracy", "worst_cluster_loss", "worst_decile_loss", "excess_risk",
    "cluster_accuracy", "cluster_loss",
)  # fmt: skip
"""Values of summary.json that a run without data lacks (null)."""

COSTS: dict[str, Any] = {
    "parameters": dict.fromkeys(
        ("base", "trainable_per_client", "served", "sent_down", "sent_up", "kept_private", "server"), 0
    ),
    "bytes_per_round": 0,
    "passes_per_sample": 0.0,
    "seconds": {"setup": 0.0, "train": 0.0, "evaluate": 0.0, "total": 0.0},
    "core_seconds": dict.fromkeys((*PARTS, "total"), 0.0),
    "peak_memory_bytes": 0,
    "execution": {"backend": "none", "device": "none", "dtype": "none"},
    "resumptions": 0,
    "machine": dict.fromkeys(("python", "torch", "platform", "cpu", "cores")),
    "versions": {"floral": floral.__version__, "torch": None, "numpy": None},
    "git_commit": None,
}


def noop(run: Run, results: Path) -> dict[str, Any]:
    """Write the files of a run with 0 rounds and score 0, and return the summary. summary.json is written last."""
    folder = results / run.folder
    layout.write_run(folder, run, None)
    metrics = [[0, "test", metric, 0.0, 0, 0, 0.0] for metric in ("loss", "accuracy")]
    client = {"client": 0, "cluster": 0, "train_rows": 0, "test_rows": 0, "correct": 0, "accuracy": 0.0, "loss": 0.0}
    clients = [client | {"own_rows": 0, "own_correct": 0, "route": None, "name": None}]
    schema = {"client": pl.Int32, "cluster": pl.Int32, "route": pl.List(pl.Float64), "name": pl.String}
    table = pl.DataFrame(metrics, schema=layout.METRICS, orient="row")
    atomic(folder / "metrics.parquet", layout.parquet_bytes(table))
    atomic(folder / "clients.parquet", layout.parquet_bytes(pl.DataFrame(clients, schema_overrides=schema)))
    atomic(folder / "costs.json", layout.json_bytes(COSTS))
    summary = {
        "status": "done",
        **layout.identifying_columns(run),
        "round": 0,
        "test_accuracy": 0.0,
        "test_loss": 0.0,
        **dict.fromkeys(SCORES),
        **dict.fromkeys(("bytes", "client_samples", "client_passes"), 0),
        "data_exact": True,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    atomic(folder / "summary.json", layout.json_bytes(summary))
    return summary
