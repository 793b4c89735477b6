"""Write hashes.yaml and metrics.json anew: `python tests/golden/renew.py`, typed in the project's folder.

Do this only when names or numbers were meant to change. `git diff tests/golden` then shows what changed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import golden


def main() -> None:
    if not golden.SUITES:
        raise SystemExit("there is no config/suites here: type the command in the project's folder")
    golden.write_digests()
    print(f"{golden.HASHES.name}: {len(golden.SUITES)} suites")
    with tempfile.TemporaryDirectory() as results:
        golden.write_metrics(Path(results))
    print(f"{golden.METRICS.name}: {len(golden.CASES)} runs")


if __name__ == "__main__":
    main()
