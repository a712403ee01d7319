"""What the torch-only CPU platform relies on."""

from __future__ import annotations

from tests.contract.changed import Changed
from tests.contract.needs import Attributes, Base, Calls, Fields, Names, Options, Order, Signature
from tests.contract.row import row

INTERFACE = "sglang.srt.platforms.interface"
CPU = "sglang.srt.platforms.cpu"
PAGED = "sglang.srt.mem_cache.allocator.paged"
SCHEDULER = "sglang.srt.managers.scheduler"
CONTROLLER = "sglang.srt.managers.data_parallel_controller"
IO = "sglang.srt.managers.io_struct"
PROFILER = "sglang.srt.managers.scheduler_components.profiler_manager"
TORCH_NATIVE = "sglang.srt.layers.attention.torch_native_backend"
NIXL = "sglang.srt.disaggregation.nixl.conn"

ROWS = (
    row(
        "platforms.cpu platforms",
        "what an out-of-tree platform answers",
        Attributes(
            INTERFACE,
            "SRTPlatform",
            (
                "apply_server_args_defaults",
                "get_default_attention_backend",
                "get_dispatch_key_name",
                "get_paged_allocator_cls",
            ),
        ),
    ),
    row(
        "platforms.cpu",
        "asked for the KV pool's class, which may be SGLang's own",
        Changed(
            Attributes(INTERFACE, "SRTPlatform", ("get_mha_kv_pool_cls", "get_mla_kv_pool_cls")),
            Attributes(INTERFACE, "SRTPlatform", ("get_kv_pool_cls",)),
            "both are answered (`platforms.cpu`)",
        ),
    ),
    row(
        "platforms.cpu",
        "a profile's activity by the platform's own name",
        Attributes(
            "sglang.srt.platforms.device_mixin",
            "DeviceMixin",
            ("get_torch_profiler_activity", "get_torch_profiler_activity_str"),
        ),
    ),
    row(
        "platforms.cpu",
        "SGLang's CPU device operations, shared",
        Names(CPU, ("CpuDeviceMixin",)),
    ),
    row(
        "platforms.cpu",
        "out of tree: operators take their native forward",
        Names(INTERFACE, ("SRTPlatform", "PlatformEnum")),
    ),
    row(
        "platforms.detect",
        "the entry points that SGLang asks",
        Order("sglang.srt.plugins", "", ("PLATFORM_PLUGINS_GROUP = 'sglang.srt.platforms'",)),
    ),
    row(
        "platforms.allocator",
        "overridden: no device kernel",
        Signature(
            PAGED,
            "PagedTokenToKVPoolAllocator.alloc_extend",
            (
                "prefix_lens",
                "prefix_lens_cpu",
                "seq_lens",
                "seq_lens_cpu",
                "last_loc",
                "extend_num_tokens",
                "num_new_pages",
            ),
            exact=True,
        ),
    ),
    row(
        "platforms.allocator",
        "overridden: no device kernel",
        Signature(
            PAGED,
            "PagedTokenToKVPoolAllocator.alloc_decode",
            ("seq_lens", "seq_lens_cpu", "last_loc"),
            exact=True,
        ),
    ),
    row(
        "platforms.allocator",
        "SGLang's reference of the kernel's layout",
        Signature(
            PAGED,
            "alloc_extend_naive",
            (
                "prefix_lens",
                "seq_lens",
                "last_loc",
                "free_pages",
                "out_indices",
                "page_size",
                "device",
            ),
        ),
    ),
    row(
        "platforms.allocator",
        "how many pages a batch opens",
        Signature(
            "sglang.srt.utils.common",
            "get_num_new_pages",
            (),
            ("seq_lens", "page_size", "prefix_lens", "decode"),
        ),
    ),
    row(
        "platforms.allocator",
        "free pages, sorted before the pool counts as short",
        Attributes(PAGED, "PagedTokenToKVPoolAllocator", ("free_pages",)),
    ),
    row(
        "platforms.cpu",
        "the plain KV pools",
        Names("sglang.srt.mem_cache.memory_pool", ("MHATokenToKVPool", "MLATokenToKVPool")),
    ),
    row(
        "platforms.hooks platforms.idle",
        "hooked: an idle scheduler waits for messages",
        Signature(SCHEDULER, "Scheduler.on_idle", ()),
    ),
    row(
        "platforms.hooks platforms.idle",
        "hooked: a paused scheduler sleeps a moment",
        Signature(SCHEDULER, "Scheduler._record_scheduler_state_for_paused_engine", ()),
    ),
    row(
        "platforms.idle",
        "a scheduler's own socket, on the first rank of an instance",
        Order(SCHEDULER, "Scheduler", ("self.recv_from_tokenizer",)),
    ),
    row(
        "platforms.idle",
        "the stock controller asks without waiting",
        Order(
            CONTROLLER,
            "DataParallelController.event_loop",
            ("sock_recv(self.recv_from_tokenizer, flags=zmq.NOBLOCK)",),
        ),
    ),
    row(
        "platforms.hooks platforms.host_memory",
        "hooked: `args` comes first, and its memory kinds are read afterwards",
        Signature(
            NIXL,
            "NixlKVManager.__init__",
            ("args", "disaggregation_mode", "server_args", "is_mla_backend"),
        ),
    ),
    row(
        "platforms.host_memory",
        "memory kinds, one a buffer",
        Order(
            NIXL,
            "NixlKVManager.__init__",
            ("getattr(self.kv_args, 'kv_data_mem_kinds', None)", "len(self.kv_args.kv_data_ptrs)"),
        ),
    ),
    row(
        "platforms.host_memory",
        "where the agent's class comes from",
        Order(NIXL, "NixlKVManager.__init__", ("from nixl._api import nixl_agent",)),
    ),
    row(
        "platforms.hooks platforms.torch_attention",
        "hooked: chunks without their prefix's queries",
        Signature(
            TORCH_NATIVE,
            "TorchNativeAttnBackend._run_sdpa_forward_extend",
            (
                *("query", "output", "k_cache", "v_cache", "req_to_token", "req_pool_indices"),
                *("seq_lens", "extend_prefix_lens", "extend_seq_lens", "encoder_lens", "scaling"),
                *("enable_gqa", "causal", "is_cross_attn", "sliding_window_size"),
            ),
            exact=True,
        ),
    ),
    row(
        "platforms.hooks platforms.torch_attention",
        "hooked: decode without copies",
        Signature(
            TORCH_NATIVE,
            "TorchNativeAttnBackend._run_sdpa_forward_decode",
            (
                *("query", "output", "k_cache", "v_cache", "req_to_token", "req_pool_indices"),
                *("seq_lens", "encoder_lens", "scaling"),
                *("enable_gqa", "causal", "is_cross_attn", "sliding_window_size"),
            ),
            exact=True,
        ),
    ),
    *(
        row(
            "platforms.hooks platforms.sinks",
            "hooked: sinks take their part of the softmax; a backend is called with them by name",
            Signature(
                TORCH_NATIVE,
                f"TorchNativeAttnBackend.forward_{mode}",
                ("q", "k", "v", "layer", "forward_batch", "save_kv_cache"),
                exact=True,
            ),
        )
        for mode in ("extend", "decode")
    ),
    row(
        "platforms.sinks",
        "a backend's pools, and a batch's requests",
        Attributes(
            TORCH_NATIVE, "TorchNativeAttnBackend", ("req_to_token_pool", "token_to_kv_pool")
        ),
    ),
    row(
        "platforms.hooks platforms.profiling",
        "hooked: profiles that a CPU cannot make are refused",
        Signature(PROFILER, "SchedulerProfilerManager._profile", ("recv_req",), exact=True),
    ),
    row(
        "platforms.profiling",
        "what a profile asks for, and its answer",
        Fields(IO, "ProfileReq", ("req_type", "activities")),
    ),
    row(
        "platforms.profiling",
        "a refusal's form",
        Fields(IO, "ProfileReqOutput", ("success", "message")),
    ),
    row(
        "platforms.profiling",
        "which requests start a profile",
        Names(IO, ("ProfileReqType",)),
    ),
    row(
        "platforms.hooks platforms.threads",
        "hooked: cores of a rank",
        Signature(
            "sglang.srt.utils.numa_utils",
            "init_threads_binding",
            (),
            ("numa_index", "world_size"),
            exact=True,
        ),
    ),
    row(
        "platforms.hooks platforms.threads",
        "hooked: nothing of `sgl_kernel` is called",
        Names("sglang.srt.distributed.bootstrap", ("_init_cpu_threads_env",)),
    ),
    row(
        "platforms.defaults platforms.cpu",
        "options that get a CPU's defaults",
        Options(
            "sglang.srt.arg_groups.fields",
            (
                "device",
                "dtype",
                "max_total_tokens",
                "max_running_requests",
                "mem_fraction_static",
                "sampling_backend",
                "disable_overlap_schedule",
                "disaggregation_mode",
                "disaggregation_transfer_backend",
                "disaggregation_decode_retraction_backup",
                "context_length",
                "dp_size",
            ),
        ),
    ),
    row(
        "platforms.cpu",
        "a device mixin of SGLang's own",
        Base(CPU, "CpuDeviceMixin", "DeviceMixin"),
    ),
    row(
        "platforms",
        "the platform is chosen while `import sglang` runs",
        Calls("sglang.srt.platforms", "", "load_plugins_by_group"),
    ),
)
