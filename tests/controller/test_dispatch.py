"""Which of the controller's methods SGLang's messages reach."""

from __future__ import annotations

import pytest
from sglang.srt.managers import io_struct
from sglang.srt.managers.io_struct import BlockReqInput

from sglang_cdsp.controller.controller import PoolController
from sglang_cdsp.protocol.answers import ANSWERS


@pytest.mark.parametrize("name", [*ANSWERS, BlockReqInput.__name__])
def test_every_question_takes_the_one_way(name: str) -> None:
    """Red when stock's own entry is left: the answers would be of a question that nobody knows."""
    question = getattr(io_struct, name, None)
    if question is None:
        assert name == "GetHiCacheL3LayoutReq", "SGLang 0.5.23 has it"
        return
    controller = object.__new__(PoolController)
    controller.init_dispatcher()
    taken = controller._request_dispatcher._mapping.get(question, controller._on_control)
    assert taken == controller._on_control
