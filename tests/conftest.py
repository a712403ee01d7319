"""What tests of several directories share."""

from pathlib import Path

import pytest

from sglang_cdsp.testing.checkpoint import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration's checkpoint, written once a session."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))
