"""What the controller's process tells the one that launched it."""

from __future__ import annotations

from multiprocessing import Pipe

from sglang_cdsp.controller.process import OneReplicaPipe


def test_the_pool_presents_itself_as_one_replica() -> None:
    reader, writer = Pipe(duplex=False)
    pipe = OneReplicaPipe(writer)
    pipe.send({"status": "ready", "max_req_input_len": 99})
    assert reader.recv() == {"status": "ready", "max_req_input_len": 99, "dp_size": 1}
    assert pipe.fileno() == writer.fileno(), "the rest is the pipe's"
