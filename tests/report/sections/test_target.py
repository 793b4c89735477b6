"""Costs until a declared target, on the fixtures' curves: 0.1, 0.3 and the run's accuracy at rounds 0, 2 and 4."""

import pytest
from run_folders import make_run

from floral.report.collect import collect
from floral.report.sections.target import target, target_cells


@pytest.fixture
def collected(results, write):
    runs = [make_run("digits_rotate", name, seed) for name in ("fedavg", "floral_1", "ensemble") for seed in (0, 1)]
    for run in runs:
        write(run)
    return collect("quickstart", runs, results)


def test_the_target_is_a_share_of_the_references_last_value_alone(collected):
    assert target(collected, collected.configurations[0]) == pytest.approx(0.95 * 0.855)


def test_what_it_takes_and_who_does_not_arrive(collected):
    """The target is 0.812: ensemble has 0.80 and 0.81 in its seeds, fedavg 0.60 and 0.61."""
    configuration = collected.configurations[0]
    cells = target_cells(collected, configuration, target(collected, configuration))
    assert {key: cell.order for key, cell in cells["floral_1"].items()} == {
        "round": 4, "bytes": 4000, "client_passes": 40, "seconds": 1.0,
    }  # fmt: skip
    assert cells["fedavg"]["round"].text == cells["ensemble"]["round"].text == "not reached"
    some = target_cells(collected, configuration, 0.805)["ensemble"]
    assert list(some) == ["round"] and some["round"].note == "1 of 2 seeds reach it"
    early = target_cells(collected, configuration, 0.3)["fedavg"]
    assert early["bytes"].order == 2000 and early["seconds"].order == 0.5


def test_a_loss_is_reached_from_above(results, write):
    runs = [make_run("synthetic_linear", name, 0) for name in ("fedavg", "floral_1")]
    for run in runs:
        write(run)
    found = collect("quickstart", runs, results)
    aim = target(found, found.configurations[0])
    assert aim == pytest.approx((2.1 - 0.85) / 0.95)
    cells = target_cells(found, found.configurations[0], aim)
    assert cells["floral_1"]["round"].order == 4 and cells["fedavg"]["round"].text == "not reached"


def test_without_the_reference_there_is_no_target(results, write):
    run = make_run("digits_rotate", "fedavg", 0)
    write(run)
    found = collect("quickstart", [run], results)
    assert target(found, found.configurations[0]) is None


def test_a_diverged_seed_has_not_reached_the_target(results, write):
    """Official fidelity drops it from means, and here it counts among those that were asked for."""
    runs = [make_run("digits_rotate", "floral_1", seed, "official") for seed in (0, 1)]
    write(runs[0])
    write(runs[1], "diverged")
    found = collect("quickstart", runs, results)
    cells = target_cells(found, found.configurations[0], 0.3)
    assert cells["floral_1"]["round"].text == "not reached" and "1 of 2 seeds" in cells["floral_1"]["round"].note
