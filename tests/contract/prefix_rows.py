"""What cached prefixes rely on: SGLang's trees, their locks, and what they tell of themselves."""

from __future__ import annotations

from tests.contract.changed import Changed, Not
from tests.contract.needs import Attributes, Calls, Fields, Names, Order, Signature, Value
from tests.contract.row import row

UTILS = "sglang.srt.mem_cache.utils"
BASE = "sglang.srt.mem_cache.base_prefix_cache"
UNIFIED = "sglang.srt.mem_cache.unified_radix_cache"
RADIX = "sglang.srt.mem_cache.radix_cache"
RUST = "sglang.srt.mem_cache.rust_tree_core.adapter"
CORE = "sglang.srt.mem_cache.unified_cache.unified_tree_core"
ALLOCATOR = "BaseTokenToKVPoolAllocator"
EVENTS = "sglang.srt.mem_cache.events"
WIRE = "sglang.srt.disaggregation.kv_events"
BUILDER = "sglang.srt.mem_cache.kv_cache_builder"
SCHEDULER = "sglang.srt.managers.scheduler"
PUBLISHER = "sglang.srt.managers.scheduler_components.kv_events_publisher"
NATIVE = "sglang.srt.mem_cache.cpp_utils.native_hash"
POLICY = "sglang.srt.managers.schedule_policy"
COMMON = "sglang.srt.mem_cache.common"
METADATA = "sglang.srt.disaggregation.utils"
BATCH = "sglang.srt.managers.schedule_batch"

STORED = (
    *("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id"),
    *("medium", "cache_salt", "session_id"),
)
LOCKS = "both forms are served (`engine.prefixes`)"
CACHE = "UnifiedRadixCache"

ROWS = (
    row(
        "engine.prefixes",
        "the longest cached prefix of some tokens",
        Signature(UNIFIED, f"{CACHE}.match_prefix", ("params",)),
    ),
    row(
        "engine.prefixes",
        "what is matched, in which namespace",
        Signature(RADIX, "RadixKey.__init__", ("token_ids",), ("extra_key", "cache_salt")),
    ),
    row(
        "engine.prefixes",
        "where a match ends, and its slots",
        Changed(
            Fields(BASE, "MatchResult", ("device_indices", "last_device_node")),
            Fields(BASE, "MatchResult", ("device_prefix_len", "last_device_node")),
            LOCKS,
            "kv_is_checkpointed",
        ),
    ),
    row(
        "engine.prefixes",
        "what is locked is not evicted",
        Changed(
            Calls(POLICY, "PrefillAdder", "self.tree_cache.inc_lock_ref"),
            Calls(POLICY, "PrefillAdder", "self.tree_cache.lock"),
            LOCKS,
            "kv_is_checkpointed",
        ),
    ),
    row(
        "engine.prefixes",
        "whoever holds a lock gives it back with its receipt",
        Signature(UNIFIED, f"{CACHE}.dec_lock_ref", ("node_id", "params")),
    ),
    row(
        "engine.prefixes",
        "a request with a cached prefix, as after a match of SGLang's own",
        Changed(
            Attributes(BATCH, "Req", ("prefix_indices", "lock_receipt", "last_node")),
            Attributes(BATCH, "Req", ("prefix_len", "lock", "last_node")),
            LOCKS,
            "kv_is_checkpointed",
        ),
    ),
    row(
        "engine.copying",
        "a request that nobody made, by which a prefix enters the tree",
        Signature(
            BATCH,
            "Req.__init__",
            ("rid", "origin_input_text", "origin_input_ids", "sampling_params"),
            ("cache_salt",),
        ),
    ),
    row(
        "engine.kept",
        "a request of SGLang's stand-in for decode leaves nothing in a tree",
        Order(COMMON, "release_kv_cache", ("not req.skip_radix_cache_insert",)),
    ),
    row(
        "engine.chunk_work",
        "what decode hears of a prompt's cached tokens",
        Order(
            METADATA, "MetadataBuffers.set_buf", ("req.cached_tokens", "req.cached_tokens_device")
        ),
    ),
    row(
        "engine.cache_events hooks",
        "hooked: trees keep their events where prefixes are reused",
        Order(BUILDER, "build_kv_cache", ("enable_kv_cache_events=enable_kv_cache_events",)),
    ),
    row(
        "engine.cache_events",
        "the hook is called",
        Calls(SCHEDULER, "Scheduler", "kv_cache_builder.build_kv_cache"),
    ),
    row(
        "engine.cache_events",
        "events since they were taken last",
        Signature(UNIFIED, f"{CACHE}.take_events", ()),
    ),
    row(
        "engine.cache_events engine.scheduler",
        "an instance's own publisher: without the option there is none",
        Order(
            SCHEDULER,
            "Scheduler.init_kv_events_publisher",
            ("SchedulerKvEventsPublisher(kv_events_config=get_observability().kv_events_config",),
        ),
    ),
    row(
        "engine.cache_events",
        "nor does it ask its tree for events",
        Order(
            PUBLISHER,
            "SchedulerKvEventsPublisher.publish_kv_events",
            ("if not self.enable_kv_cache_events:", "self.tree_cache.take_events()"),
        ),
    ),
    row(
        "engine.cache_events controller.prefixes.merged",
        "what events say",
        Fields(WIRE, "BlockStored", STORED),
    ),
    row(
        "engine.cache_events controller.prefixes.merged",
        "what evictions say",
        Fields(WIRE, "BlockRemoved", ("block_hashes", "medium")),
    ),
    row(
        "engine.cache_events controller.prefixes.merged",
        "what a flush says",
        Names(WIRE, ("AllBlocksCleared",)),
    ),
    row(
        "controller.prefixes.publisher",
        "SGLang's publisher, of rank 0: sequence numbers, replay and topic are its own",
        Signature(WIRE, "EventPublisherFactory.create", ("config", "attn_dp_rank")),
    ),
    row(
        "controller.prefixes.publisher",
        "the port of rank 0 is the one that is named",
        Order(
            WIRE,
            "ZmqEventPublisher.offset_endpoint_port",
            ("if not endpoint or data_parallel_rank == 0:", "return endpoint"),
        ),
    ),
    row(
        "controller.prefixes.publisher",
        "a batch of events",
        Fields(WIRE, "EventBatch", ("ts", "events", "attn_dp_rank")),
    ),
    row(
        "protocol.kv_events launch.kv_events",
        "the option's value",
        Fields(WIRE, "KVEventsConfig", ("publisher", "endpoint", "replay_endpoint")),
    ),
    row(
        "controller.prefixes.publisher",
        "the format `dynamo`, in which an extra key has a part in names",
        Changed(
            Not(Names(WIRE, ("kv_event_namespace_seed", "namespaced_block_hash"))),
            Names(WIRE, ("kv_event_namespace_seed", "namespaced_block_hash")),
            "instances keep the default format, whose names the controller knows; it publishes in "
            "the one that is asked for (`controller.prefixes.shown`)",
            "kv_events_have_formats",
        ),
    ),
    row(
        "controller.controller controller.prefixes.publisher",
        "where the native gRPC server subscribes",
        Changed(
            Not(Attributes(WIRE, "ZmqEventPublisher", ("describe_local_source",))),
            Attributes(WIRE, "ZmqEventPublisher", ("describe_local_source",)),
            "told where it is asked for (`controller.prefixes.publisher`)",
        ),
    ),
    row(
        "hooks control.publisher",
        "hooked: what `/server_info` tells routers of publishers",
        Signature(
            "sglang.srt.runtime_context",
            "describe_kv_events_publisher",
            ("server_args",),
            exact=True,
        ),
    ),
    row(
        "hooks control.publisher",
        "a router opens a socket for each rank that is told",
        Order(
            "sglang.srt.runtime_context",
            "describe_kv_events_publisher",
            ("'block_size'", "'dp_size':"),
        ),
    ),
    row(
        "engine.cache_events",
        "device memory among the places where pages lie",
        Value(WIRE, "StorageMedium.GPU", '"GPU"'),
    ),
    row(
        "engine.cache_events",
        "the Python tree's recorder, which names pages with a compiled extension",
        Attributes(EVENTS, "KVCacheEventRecorder", ("enabled", "record_store")),
    ),
    row(
        "engine.cache_events",
        "that extension",
        Signature(NATIVE, "get_native_hash", ("token_ids", "prior_digest", "page_size")),
    ),
    row(
        "controller.prefixes.hashes",
        "the salt that pages are named from; an extra key has no part in their names",
        Order(
            UTILS,
            "compute_node_event_hash_values",
            ("node.key.cache_salt is not None", "sglang-cache-salt-v1", "hexdigest()"),
        ),
    ),
    row(
        "engine.cache_walk",
        "the slots of a tree, of either core",
        Signature(UNIFIED, f"{CACHE}.all_values_flatten", ()),
    ),
    row(
        "engine.cache_walk",
        "the pages that nobody has",
        Signature("sglang.srt.mem_cache.allocator.base", f"{ALLOCATOR}.get_all_free_pages", ()),
    ),
    row(
        "engine.cache_walk",
        "the digests of a node's pages, after those of the node before",
        Signature(UTILS, "get_hash_str", ("token_ids", "prior_hash", "page_size")),
    ),
    row(
        "engine.cache_walk",
        "nodes of the Python tree",
        Attributes(CORE, "UnifiedTreeNode", ("children", "key")),
    ),
    row(
        "engine.cache_walk",
        "the Rust tree has none to show",
        Order(RUST, "RustUnifiedTreeCore.root_node", ("raise NotImplementedError",)),
    ),
    row(
        "controller.prefixes.hashes",
        "the first 8 bytes of a page's digest are its name",
        Order(UTILS, "hash_str_to_int64", ("int(hash_str[:16], 16)",)),
    ),
)
