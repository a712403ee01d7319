"""As which kind of memory prefill and decode register KV with NIXL, by their pool's device."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

from sglang.srt.disaggregation import decode, prefill
from sglang.srt.disaggregation.nixl import conn
from sglang.srt.disaggregation.utils import TransferBackend

BUFFERS = 3


class RecordingAgent:
    """A NIXL agent that remembers what it is asked to register."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def register_memory(self, addresses: list[Any], kind: str) -> list[Any]:
        self.kinds += [kind] * len(addresses)
        return addresses


class RecordingManager(conn.NixlKVManager):
    """The NIXL manager up to the registration of its buffers."""

    def __init__(self, args: Any, *more: Any) -> None:
        self.kv_args = args
        kinds = getattr(args, "kv_data_mem_kinds", None)
        args.kv_data_mem_kinds = conn._normalize_kv_mem_kinds(kinds, len(args.kv_data_ptrs))
        self.agent = RecordingAgent()
        self.register_buffer_to_engine()


def run() -> dict[str, dict[str, list[str]]]:
    """Kinds of the KV buffers, target's before draft's, by side and device."""
    sides = {"prefill": _prefill_kinds, "decode": _decode_kinds}
    return {side: {at: kinds(at) for at in ("cpu", "cuda:0")} for side, kinds in sides.items()}


def _prefill_kinds(device: str) -> list[str]:
    queue = SimpleNamespace(
        tp_rank=0,
        pp_rank=0,
        token_to_kv_pool=_pool(device),
        draft_token_to_kv_pool=_pool(device),
        is_mla_backend=False,
        transfer_backend=TransferBackend.NIXL,
        metadata_buffers=SimpleNamespace(get_buf_infos=lambda: ([7], [8], [8])),
        scheduler=mock.MagicMock(rust_server=None),
    )
    with _stubs(prefill, _transfer_start_layer=lambda **_: 0):
        return _kv_kinds(prefill.PrefillBootstrapQueue._init_kv_manager(queue))


def _decode_kinds(device: str) -> list[str]:
    queue = SimpleNamespace(
        tp_rank=0,
        pp_rank=0,
        token_to_kv_pool=_pool(device),
        draft_token_to_kv_pool=_pool(device),
        is_mla_backend=False,
        enable_staging=False,
        transfer_backend=TransferBackend.NIXL,
        metadata_buffers=SimpleNamespace(get_buf_infos=lambda: ([7], [8], [8])),
        scheduler=mock.MagicMock(enable_hisparse=False),
    )
    with _stubs(decode):
        return _kv_kinds(decode.DecodePreallocQueue._init_kv_manager(queue))


def _kv_kinds(manager: Any) -> list[str]:
    return manager.agent.kinds[: 2 * BUFFERS]


def _stubs(module: Any, **more: Any) -> Any:
    parallel = SimpleNamespace(attn_tp_size=1, dp_rank=0)
    disagg = SimpleNamespace(
        disaggregation_ib_device=None, disaggregation_decode_host_receive_threshold=0
    )
    classes = {"KVARGS": SimpleNamespace, "MANAGER": RecordingManager}
    return mock.patch.multiple(
        module,
        get_parallel=lambda: parallel,
        get_disagg=lambda: disagg,
        get_device=lambda: SimpleNamespace(gpu_id=0),
        get_kv_class=lambda backend, wanted: classes[wanted.name],
        build_kv_layer_ids=lambda **_: [],
        setup_state_kv_args=_no_state,
        **more,
    )


def _no_state(kv_args: Any, *_: Any, **__: Any) -> None:
    kv_args.state_types = []
    kv_args.state_data_ptrs = []
    kv_args.state_data_lens = []


def _pool(device: str) -> SimpleNamespace:
    infos = ([1] * BUFFERS, [64] * BUFFERS, [8] * BUFFERS)
    return SimpleNamespace(
        device=device,
        page_size=1,
        head_num=1,
        start_layer=0,
        get_contiguous_buf_infos=lambda: tuple(list(info) for info in infos),
    )
