"""Point-to-point links among the ranks of the prefill pool.

One mesh spans the pool and lives as long as the server; an SP group is a list of its ranks, so
that nothing is built per request. The mesh has a process group of its own, apart from the default
group of ``torch.distributed``, which belongs to SGLang. Tensors travel as raw bytes; nothing is
pickled.

There is no time limit inside an operation: a gloo time-out closes all of a rank's links, healthy
ones too. Whoever supervises the instances notices a missing partner and closes the mesh.

Backends: ``gloo`` for tensors on the CPU, ``nccl`` for CUDA, ``gloo-host`` for CUDA tensors that
gloo carries by way of host memory. The last is for several ranks on one GPU, which NCCL refuses.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch

# The classes that torch.distributed re-exports without saying so in its types.
from torch._C._distributed_c10d import PrefixStore, ProcessGroup, Store, TCPStore

from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.host_copies import arrive, landing, to_host
from sglang_cdsp.parallel.links.types import Message
from sglang_cdsp.parallel.process_groups import NO_TIMEOUT, gloo_links, nccl_group

BACKENDS = ("gloo", "nccl", "gloo-host")
BACKEND_VAR = "SGLANG_CDSP_MESH_BACKEND"
"""Environment variable that names the pool's backend where the device's own will not do."""

_CONNECT_TIMEOUT = timedelta(seconds=300)


def pool_backend(device: str) -> str:
    """Return the backend of a pool whose tensors live on ``device`` ("cuda", "cpu").

    ``SGLANG_CDSP_MESH_BACKEND`` takes precedence over the device's own.

    Raises:
        LinkError: the variable names no backend.
    """
    chosen = os.environ.get(BACKEND_VAR, "")
    if chosen and chosen not in BACKENDS:
        raise LinkError(f"{BACKEND_VAR}={chosen!r} is no mesh backend: use one of {BACKENDS}")
    return chosen or ("nccl" if device == "cuda" else "gloo")


class _Pending(Protocol):
    def wait(self, timeout: timedelta = ...) -> Any: ...


@dataclass(frozen=True)
class Work:
    """Operations under way. Keeps their tensors alive until it is waited for."""

    _pending: tuple[_Pending, ...]
    _messages: tuple[Message, ...]
    _limited: bool = False
    """gloo waits as long as it may take to connect, unless told otherwise at each wait. NCCL must
    not be told: it would block the host until the data is there."""
    _arrivals: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
    """``(tensor, host)``: what lands in host memory first, and the tensor that it is meant for."""
    _carried: tuple[torch.Tensor, ...] = ()
    """Copies in host memory of what is being sent."""

    def wait(self) -> None:
        """Return when every tensor may be used again (on CUDA: order the current stream after).

        Call it once: gloo would wait for another message.

        Raises:
            LinkError: a partner is gone, or the mesh was closed.
        """
        try:
            for pending in self._pending:
                if self._limited:
                    pending.wait(NO_TIMEOUT)
                else:
                    pending.wait()
        except RuntimeError as error:
            peers = sorted({message.peer for message in self._messages})
            raise LinkError(
                f"a link to mesh rank(s) {peers} broke: their instance ended or closed its mesh; "
                f"close this mesh too and connect it anew ({error})"
            ) from error
        for tensor, host in self._arrivals:
            arrive(tensor, host)


class Mesh:
    """Links from this rank to every other rank of a process group.

    Example:
        >>> mesh = Mesh.connect(rank, 2, "127.0.0.1", 29600, "gloo")
        >>> work = mesh.exchange([Message(out, 1 - rank)], [Message(into, 1 - rank)])
        >>> work.wait()

    Attributes:
        rank: this process's number in the mesh.
        size: number of ranks.
    """

    def __init__(
        self,
        group: ProcessGroup,
        device: torch.device | None = None,
        *,
        through_host: bool = False,
    ) -> None:
        """Take over ``group``, for tensors on ``device`` (default: the CPU).

        With ``through_host`` the group itself carries host memory, to and from which the mesh
        copies.
        """
        self._group: ProcessGroup | None = group
        self._device = device or torch.device("cpu")
        self._through_host = through_host
        self.rank = int(group.rank())
        self.size = int(group.size())

    @classmethod
    def connect(
        cls,
        rank: int,
        size: int,
        store_host: str,
        store_port: int,
        backend: str = "gloo",
        *,
        hosts_store: bool | None = None,
        name: str = "sp-mesh",
        bind_host: str | None = None,
        device: torch.device | None = None,
        timeout: timedelta = _CONNECT_TIMEOUT,
    ) -> Mesh:
        """Meet the other ranks at a TCPStore and build the links; every rank must call it.

        Args:
            rank: this process's number, 0 to ``size - 1``.
            size: number of ranks.
            store_host, store_port: where the store listens.
            backend: ``gloo`` for tensors on the CPU, ``nccl`` or ``gloo-host`` for CUDA.
            hosts_store: whether this process opens the store; by default rank 0 does.
            name: prefix of this mesh's keys; a mesh that is connected anew needs a new name.
            bind_host: gloo only: the address or host name whose interface carries the links;
                by default the one that this machine's own host name resolves to.
            device: not for ``gloo``: this rank's CUDA device; by default the current one.
            timeout: how long to wait for the other ranks.

        Raises:
            LinkError: the ranks did not meet in time, or the backend is unknown.
        """
        try:
            store = TCPStore(
                store_host,
                store_port,
                None,
                rank == 0 if hosts_store is None else hosts_store,
                timeout=timeout,
                wait_for_workers=False,
            )
        except RuntimeError as error:
            raise LinkError(
                f"mesh rank {rank} cannot use the store at {store_host}:{store_port}: check that "
                f"its host runs and that the port is free ({error})"
            ) from error
        return cls.from_store(
            store, rank, size, backend, name=name, bind_host=bind_host, device=device,
            timeout=timeout,
        )  # fmt: skip

    @classmethod
    def from_store(
        cls,
        store: Store,
        rank: int,
        size: int,
        backend: str = "gloo",
        *,
        name: str = "sp-mesh",
        bind_host: str | None = None,
        device: torch.device | None = None,
        timeout: timedelta = _CONNECT_TIMEOUT,
    ) -> Mesh:
        """Build the links over a store that all ranks reach. See ``connect``."""
        if backend not in BACKENDS:
            raise LinkError(
                f"unknown mesh backend {backend!r}: use 'gloo' (CPU), 'nccl' (CUDA) or 'gloo-host' "
                "(CUDA, through host memory)"
            )
        keys = PrefixStore(name, store)
        try:
            if backend == "gloo":
                return cls(gloo_links(keys, rank, size, bind_host, timeout))
            if device is None or (device.type == "cuda" and device.index is None):
                device = torch.device("cuda", torch.cuda.current_device())
            if backend == "gloo-host":
                links = gloo_links(keys, rank, size, bind_host, timeout)
                return cls(links, device, through_host=True)
            return cls(nccl_group(keys, rank, size, device), device)
        except RuntimeError as error:
            raise LinkError(
                f"mesh rank {rank} could not reach all {size} ranks of {name!r} within "
                f"{timeout.total_seconds():g} s: check that every instance is up ({error})"
            ) from error

    def send(self, tensor: torch.Tensor, dst: int, tag: int = 0) -> Work:
        """Send ``tensor`` (contiguous) to rank ``dst``; leave it alone until the work is done."""
        return self.exchange([Message(tensor, dst, tag)], [])

    def recv(self, tensor: torch.Tensor, src: int, tag: int = 0) -> Work:
        """Fill ``tensor`` (contiguous) from rank ``src``."""
        return self.exchange([], [Message(tensor, src, tag)])

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message], note: int = 0) -> Work:
        """Start all of ``sends`` and ``recvs`` together, receives first.

        On NCCL they form one group call, so that two neighbours that send to each other cannot
        block. Empty tensors are left out on both sides. Through host memory, the host waits here
        until what is sent has been computed and copied, and ``Work.wait`` copies what came to the
        device on the current stream.

        Raises:
            LinkError: the mesh is closed, or a message does not fit it.
        """
        if self._group is None:
            raise LinkError("this mesh is closed: connect a new one")
        sends = [message for message in sends if self._checked(message)]
        recvs = [message for message in recvs if self._checked(message)]
        messages = (*recvs, *sends)
        if not messages:
            return Work((), ())
        grouped = self._device.type == "cuda" and not self._through_host
        group: Any = self._group
        into, out = [m.tensor for m in recvs], [m.tensor for m in sends]
        arrivals: list[tuple[torch.Tensor, torch.Tensor]] = []
        if self._through_host:
            into, out = [landing(tensor) for tensor in into], to_host(out)
            arrivals = [(m.tensor, host) for m, host in zip(recvs, into, strict=True)]
        try:
            if grouped:
                group._start_coalescing(self._device)
            pending = [group.recv([t], m.peer, m.tag) for t, m in zip(into, recvs, strict=True)]
            pending += [group.send([t], m.peer, m.tag) for t, m in zip(out, sends, strict=True)]
            if grouped:
                pending = [group._end_coalescing(self._device)]
        except RuntimeError as error:
            raise LinkError(
                f"mesh rank {self.rank} cannot start an exchange with rank(s) "
                f"{sorted({m.peer for m in messages})}: close this mesh and connect it anew "
                f"({error})"
            ) from error
        carried = tuple(out) if self._through_host else ()
        return Work(tuple(pending), messages, not grouped, tuple(arrivals), carried)

    def close(self) -> None:
        """Drop all links. Partners that wait for this rank get a ``LinkError``.

        An operation that this rank waits for in another thread is not woken (gloo cannot): it
        ends when its partner's process ends or closes its mesh.
        """
        group, self._group = self._group, None
        if group is not None:
            group.shutdown()

    def _checked(self, message: Message) -> bool:
        """Return whether there is anything to carry; raise if the mesh cannot carry it."""
        tensor, peer = message.tensor, message.peer
        if peer == self.rank or not 0 <= peer < self.size:
            raise LinkError(
                f"rank {self.rank} has no link to rank {peer}: the mesh has ranks 0 to "
                f"{self.size - 1}, and none links to itself"
            )
        if tensor.device.type != self._device.type:
            raise LinkError(
                f"a tensor on {tensor.device} cannot travel on a mesh for {self._device}: "
                "connect the mesh with the backend for that device"
            )
        if not tensor.is_contiguous():
            raise LinkError("only contiguous tensors travel: call .contiguous() first")
        return tensor.numel() > 0
