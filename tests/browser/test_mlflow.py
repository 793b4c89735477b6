"""MLflow's own pages in a real browser: they compare methods by the means over their seeds."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from projects import BIN, environment
from run_folders import make_run, write_run

from floral.cli.labels import labels_of
from floral.tracking.mlflow_store import default_uri
from floral.tracking.track import track
from floral.tracking.views import MEANS_VIEW, address_of_view

VARIANTS = {"fedavg": "0.61", "ensemble": "0.81", "floral_1": "0.86"}
COLOURS = {"fedavg": "rgb(63, 131, 201)", "floral_1": "rgb(217, 83, 30)"}  # of reports/template/styles.yaml


@pytest.fixture
def address(tmp_path: Path, empty_store: None) -> Iterator[str]:
    """Where MLflow shows the means of a suite of 3 variants × 3 seeds."""
    runs = [make_run("digits_rotate", variant, seed) for variant in VARIANTS for seed in range(3)]
    for run in runs:
        write_run(tmp_path, run)
    track("suite", runs, tmp_path, labels=labels_of(runs))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [BIN / "mlflow", "server", "--port", str(port), "--workers", "1"]
    settings = environment(
        MLFLOW_BACKEND_STORE_URI=default_uri(tmp_path), MLFLOW_DISABLE_TELEMETRY="true",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=settings, stdout=log, stderr=log)
    try:
        answered(f"http://127.0.0.1:{port}/health", server, tmp_path / "log")
        yield address_of_view(f"http://127.0.0.1:{port}", "1", MEANS_VIEW)
    finally:
        server.terminate()
        server.wait(timeout=30)


def answered(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 240
    while True:
        assert server.poll() is None and time.monotonic() < end, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)


def test_the_charts_compare_methods_by_their_means(browser: Browser, address: str) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    page.goto(address)
    expect(page.get_by_text("3 matching runs")).to_be_visible()
    for variant in VARIANTS:
        expect(page.get_by_role("link", name=f"{variant} on digits_rotate")).to_have_count(1)
    expect(page.get_by_text("Group: digits_rotate")).to_be_visible()
    chart = page.locator("[data-testid='experiment-view-compare-runs-card']").first
    expect(chart).to_contain_text("test/accuracy")
    for accuracy in VARIANTS.values():
        expect(chart.locator(".bartext").filter(has_text=accuracy)).to_have_count(1)
    expect(chart.locator(".bartext")).to_have_count(len(VARIANTS))
    expect(chart.locator(".bartext").last).to_be_in_viewport()
    for colour in COLOURS.values():
        expect(chart.locator(f".bars path[style*='fill: {colour}']")).to_have_count(1)
