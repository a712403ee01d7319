"""The torch-only CPU platform: SGLang on machines without an accelerator.

``activate`` is the entry point ``cdsp_cpu`` of the group ``sglang.srt.platforms``. SGLang calls it
in every process, while ``import sglang`` is still running; so this module and what it imports at
the top must not import SGLang.
"""

from sglang_cdsp.platforms.detect import torch_only_platform_wanted

PLATFORM_CLASS = "sglang_cdsp.platforms.cpu.TorchCpuPlatform"


def activate() -> str | None:
    """Name the platform class where nothing better works here, else ``None``.

    Also declares the operator schemas that torchvision needs before anything imports it, and
    registers the platform's hooks (applied later, by SGLang's own ``load_plugins``). Calling it
    again changes nothing.
    """
    if not torch_only_platform_wanted():
        return None
    from sglang_cdsp.platforms.hooks import register_hooks
    from sglang_cdsp.platforms.schemas import declare_torchvision_schemas

    declare_torchvision_schemas()
    register_hooks()
    return PLATFORM_CLASS
