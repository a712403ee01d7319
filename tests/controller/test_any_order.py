"""The life cycle under any order of arrivals, pages, progress, failures and aborts."""

from __future__ import annotations

from tests.controller.any_order import SETTINGS, AnyOrder

AnyOrder.TestCase.settings = SETTINGS
TestAnyOrder = AnyOrder.TestCase
