"""The ranks of an instance, as SGLang's data-parallel controller starts them.

SGLang's own launch is made for one start of all instances together. It keeps its end of each pipe,
so that it waits for ever for a rank that died first, and each instance's processes end with the
thread that launched it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sglang.srt.runtime_context import get_device, get_exec, get_parallel
from sglang.srt.server_args import PortArgs
from sglang.srt.utils import numa_utils
from sglang.srt.utils.common import maybe_reindex_device_id
from sglang.srt.utils.torch_memory_saver_adapter import TorchMemorySaverAdapter

from sglang_cdsp.controller.seats.local import WRITER, Rank
from sglang_cdsp.protocol.ports import free_ports


@dataclass(frozen=True)
class StockRanks:
    """Makes the processes of a seat's life.

    Attributes:
        server_args, port_args: of the server.
        target: what a scheduler's process runs.
    """

    server_args: Any
    port_args: Any
    target: Callable[..., Any]
    _given: set[int] = field(default_factory=set)
    """Ports of lives so far: one that comes up may not listen on its own yet."""

    def addresses(self) -> Any:
        """SGLang's addresses for a new life: its own input, and the server's outputs.

        The rendezvous port is one that the system gives to nobody else meanwhile.
        """
        addresses = PortArgs.init_new(self.server_args)
        addresses.tokenizer_ipc_name = self.port_args.tokenizer_ipc_name
        addresses.detokenizer_ipc_name = self.port_args.detokenizer_ipc_name
        addresses.instance_id = self.port_args.instance_id
        ports = free_ports(len(self._given) + 1)
        addresses.nccl_port = next(port for port in ports if port not in self._given)
        self._given.add(addresses.nccl_port)
        return addresses

    def ranks(self, seat: int, addresses: Any) -> list[Rank]:
        """The ranks of a life of ``seat`` on this machine, with its addresses."""
        parallel, device = get_parallel(), get_device()
        size, step = int(parallel.tp_size), int(device.gpu_id_step)
        experts = size // int(parallel.moe_dp_size)
        found: list[Rank] = []
        for tp_rank in range(size):
            gpu_id = int(device.base_gpu_id) + (seat * size + tp_rank) * step
            moe_ep_rank = tp_rank % experts // (experts // int(parallel.ep_size))
            # SGLang may show the process one device only, and call that 0.
            with maybe_reindex_device_id(gpu_id) as shown_id:
                arguments = (
                    *(self.server_args, addresses, shown_id, tp_rank, 0, seat, WRITER),
                    *(tp_rank, seat, moe_ep_rank),
                )
            surroundings = partial(self._surroundings, gpu_id)
            found.append(Rank(self.target, arguments, surroundings))
        return found

    @contextlib.contextmanager
    def _surroundings(self, gpu_id: int) -> Iterator[None]:
        """The environment in which SGLang starts a scheduler for a device."""
        saver = TorchMemorySaverAdapter.create(enable=get_exec().features.enable_memory_saver)
        with (
            maybe_reindex_device_id(gpu_id) as shown_id,
            saver.configure_subprocess(),
            numa_utils.configure_subprocess(self.server_args, shown_id),
        ):
            yield
