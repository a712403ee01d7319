"""The folder of a run's files: gone after success and after Ctrl-C, kept after a failure."""

from pathlib import Path

import pytest

from sglang_cdsp.testing.scratch import kept_on_failure


def left(error: BaseException | None) -> bool:
    """Whether the folder is there after a block that ended with `error`."""
    folder = Path()
    try:
        with kept_on_failure("test-scratch") as folder:
            (folder / "a.log").write_text("what went wrong")
            if error:
                raise error
    except BaseException as ended:
        if ended is not error:
            raise
    there = (folder / "a.log").exists()
    if there:
        (folder / "a.log").unlink()
        folder.rmdir()
    return there


@pytest.mark.parametrize(
    ("error", "kept"), [(None, False), (KeyboardInterrupt(), False), (RuntimeError("x"), True)]
)
def test_what_is_left(error: BaseException | None, kept: bool) -> None:
    assert left(error) is kept
