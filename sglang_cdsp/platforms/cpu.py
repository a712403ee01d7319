"""The out-of-tree platform: host memory, torch operators, no device kernels.

SGLang's own CPU path needs ``sgl_kernel``'s CPU build. As an out-of-tree platform SGLang takes
every operator's torch-native forward instead.
"""

from typing import Any

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.interface import PlatformEnum, SRTPlatform

from sglang_cdsp.platforms.defaults import apply_cpu_defaults
from sglang_cdsp.platforms.hooks import check_hooks_live


class TorchCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """A CPU on which SGLang runs with nothing but torch."""

    _enum = PlatformEnum.OOT
    device_name = "cdsp_cpu"
    device_type = "cpu"

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Set what a torch-only CPU needs and the user left open; see ``apply_cpu_defaults``.

        Raises:
            HookNotLive: a hook of this platform is not in place in the server's process.
        """
        if server_args.device != "cpu":
            return
        check_hooks_live()
        apply_cpu_defaults(server_args)

    def get_device(self, device_id: int | None = 0) -> str:
        """Name the device; SGLang's argument resolution needs a string, not a torch.device."""
        return "cpu"

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def get_dispatch_key_name(self) -> str:
        return "native"

    def get_kv_pool_cls(self, *, kind: str) -> type | None:
        """SGLang's own pool, which lives on any torch device, for each kind (SGLang 0.5.23)."""
        return None

    # What SGLang 0.5.21 asks instead.

    def get_mha_kv_pool_cls(self) -> type:
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        return MHATokenToKVPool

    def get_mla_kv_pool_cls(self) -> type:
        from sglang_cdsp.platforms.latent_pool import HostLatentPool

        return HostLatentPool

    def get_paged_allocator_cls(self) -> type:
        from sglang_cdsp.platforms.allocator import HostPagedAllocator

        return HostPagedAllocator

    def is_pin_memory_available(self, device: Any = None) -> bool:
        return False

    def get_torch_profiler_activity(self) -> Any:
        return torch.profiler.ProfilerActivity.CPU

    def get_torch_profiler_activity_str(self) -> str:
        """Name the device's activity beside SGLang's own names.

        Not "CPU": SGLang has that one already, and a second profiler under the same name (with
        ``SGLANG_PROFILE_V2``) cannot start beside the first.
        """
        return "HOST"
