"""Plans that start from cached prefixes, in any order of what may happen to them."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.controller.any_order import AnyOrder
from tests.controller.one_server_order import AnyOrderOfOneServer
from tests.controller.reusing import ReusingPool, ReusingPrefillPool


class NoNameTwice:
    """The fake instances know prompts by their ids, and answer one of each.

    Who shares an id shares no prefix: other tests have requests under a name in use.
    """

    def arrive_under_a_name_in_use(self, *drawn: object) -> None:
        """No rule here."""


class AnyOrderReusing(NoNameTwice, AnyOrderOfOneServer):
    """As without, but most plans start from a prefix, and some homes do not find it."""

    make_pool = ReusingPool

    @rule(tokens=st.integers(1, 1500))
    def arrive_with_plan(self, tokens: int) -> None:
        """Those that bring their plans reuse nothing: others come in their place."""
        self._submit(self.pool.request(tokens), None, "no decode")

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "pool"):
            assert isinstance(self.pool, ReusingPool)
            assert not self.pool.prefixes._drawn, "a request that has ended is not forgotten"


class AnyOrderReusingBeforeDecode(NoNameTwice, AnyOrder):
    """A pool before decode servers, whose homes keep prompts and start from what they have."""

    make_pool = ReusingPrefillPool

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "pool"):
            assert isinstance(self.pool, ReusingPrefillPool)
            assert not self.pool.prefixes._drawn, "a request that has ended is not forgotten"
