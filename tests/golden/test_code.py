"""Changed code of a method, model or adaptor is noticed: its version rises, or the golden runs prove equal numbers."""

from __future__ import annotations

import golden


def test_the_code_of_every_method_and_model_is_listed_in_code_lock() -> None:
    new = golden.new_code()
    assert not new, (
        f"the code of these files changed: {', '.join(new)}.\n"
        "If the same run gives other numbers now: increase the version of the method, model or adaptor kind.\n"
        f"Then add the new digests: {golden.SAME_CODE}"
    )


def test_code_lock_lists_no_file_that_is_gone() -> None:
    assert set(golden.code.equal_code()) == set(golden.code_files())
