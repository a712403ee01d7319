"""A pool for single cases."""

from __future__ import annotations

import pytest

from tests.controller.fake_pool import FakePool


@pytest.fixture
def pool() -> FakePool:
    return FakePool(size=4, policy="threshold:1000")
