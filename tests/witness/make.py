"""Write split.json, train the witness and write accuracies.json: `python tests/witness/make.py` (minutes)."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
import witness

FILE = Path(__file__).with_name("accuracies.json")
SEEDS = (0, 1, 2)
FEW_ROUNDS = 5
"""The tests train every method for this many rounds again, and compare its accuracy with the written one."""


def made() -> dict[str, Any]:
    """Return the accuracies in percent: of all rounds for each seed, and of the first rounds of seed 0."""
    whole, few = witness.Settings(), witness.Settings(rounds=FEW_ROUNDS)
    modules = {"numpy": np.__version__, "sklearn": sklearn.__version__, "torch": torch.__version__}
    return {
        "settings": asdict(whole),
        "seeds": list(SEEDS),
        "few_rounds": FEW_ROUNDS,
        "made_with": {"python": platform.python_version(), **modules},
        "accuracies": {
            method: {
                "all_rounds": [witness.accuracy(method, seed, whole) for seed in SEEDS],
                "few_rounds": witness.accuracy(method, SEEDS[0], few),
            }
            for method in witness.METHODS
        },
    }


if __name__ == "__main__":
    rows = ",\n".join(f"  {json.dumps(client)}" for client in witness.draw_split())
    witness.SPLIT.write_text(f"[\n{rows}\n]\n")
    FILE.write_text(json.dumps(made(), indent=2) + "\n")
