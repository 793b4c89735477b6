"""Add the digests of today's code to code.lock, if no golden number has changed.

`python tests/golden/same_code.py`, typed in the project's folder. Finished runs, also those in reports/reference, then
count as made by today's code.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import golden


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        golden.prepare(results, golden.CASES)
        for case in golden.CASES:
            if complaint := golden.complaint_about_metrics(case, golden.measured(golden.train(case, results))):
                print(complaint)
                return 1
    new = golden.new_code()
    golden.write_code()
    print(f"{golden.code.EQUAL_CODE.name}: {len(new)} new digests")
    return 0


if __name__ == "__main__":
    sys.exit(main())
