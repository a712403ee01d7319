"""Which SGLang options the pool can serve with; everything else is refused before start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sglang_cdsp.args import TESTED_SGLANG_VERSIONS, CdspArgs, CdspConfigError
from sglang_cdsp.form import Form
from sglang_cdsp.transfer.registry import transfer_engine

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs


@dataclass(frozen=True)
class Refusal:
    """One combination that is refused.

    Attributes:
        applies: tells whether the given server arguments ask for it.
        message: what is wrong and what to do instead.
        forms: of the pool in which it is refused.
    """

    applies: Callable[[ServerArgs], bool]
    message: str
    forms: frozenset[Form] = frozenset(Form)


PREFILL_FORM = frozenset({Form.PREFILL})

REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        lambda a: a.disaggregation_mode == "decode",
        "--cdsp does not run decode servers: remove --cdsp here, or remove --disaggregation-mode "
        "for one server that prefills and decodes",
    ),
    # SGLang 0.5.23 makes --dp-size an --attn-dp-size when it resolves --enable-dp-attention.
    Refusal(
        lambda a: a.enable_dp_attention or getattr(a, "attn_dp_size", 1) > 1,
        "--cdsp needs plain data parallelism: remove --enable-dp-attention and --attn-dp-size, and "
        "set --dp-size to the number of instances",
    ),
    Refusal(
        lambda a: a.dp_size < 2,
        "--cdsp needs a pool of at least two instances: set --dp-size to the number of instances",
    ),
    Refusal(
        lambda a: a.speculative_algorithm is not None,
        "--cdsp computes prompts for the model alone, a draft model would miss its own KV: remove "
        "--speculative-algorithm",
    ),
    Refusal(
        lambda a: a.pp_size > 1,
        "--cdsp does not combine with pipeline parallelism: set --pp-size 1",
    ),
    Refusal(
        lambda a: a.attn_cp_size > 1 or a.dcp_size > 1,
        "--cdsp takes the place of static context parallelism: remove --attn-cp-size and "
        "--dcp-size",
    ),
    Refusal(
        lambda a: bool(a.enable_lora or a.lora_paths),
        "--cdsp does not serve LoRA adapters: remove --enable-lora and --lora-paths",
    ),
    Refusal(
        lambda a: bool(a.enable_multimodal),
        "--cdsp serves text prompts only: remove --enable-multimodal",
    ),
    Refusal(
        lambda a: bool(a.enable_hierarchical_cache),
        "--cdsp does not combine with the hierarchical cache, whose copies on the host it does not "
        "count: remove --enable-hierarchical-cache",
    ),
    Refusal(
        lambda a: bool(a.enable_pd_role_switch),
        "--cdsp keeps its role: remove --enable-pd-role-switch",
    ),
    Refusal(
        lambda a: a.tokenizer_worker_num > 1,
        "--cdsp answers one tokenizer process: set --tokenizer-worker-num 1",
    ),
    Refusal(
        lambda a: a.nnodes > 1,
        "--cdsp runs on one node in this release: set --nnodes 1",
    ),
    Refusal(
        lambda a: bool(
            a.enable_return_hidden_states
            or a.return_hidden_states_mode
            or getattr(a, "enable_return_aux_hidden_states", False)
        ),
        "--cdsp returns no hidden states: remove --enable-return-hidden-states, "
        "--return-hidden-states-mode and --enable-return-aux-hidden-states",
    ),
    Refusal(
        lambda a: bool(a.enable_return_routed_experts or a.enable_return_indexer_topk),
        "--cdsp returns neither routed experts nor indexer choices: remove "
        "--enable-return-routed-experts and --enable-return-indexer-topk",
    ),
    Refusal(
        lambda a: bool(
            a.enable_eplb
            or a.expert_distribution_recorder_mode
            or getattr(a, "expert_balancedness_report_mode", "off") != "off"
        ),
        "--cdsp computes chunks outside of SGLang's expert recorder: remove --enable-eplb, "
        "--expert-distribution-recorder-mode and --expert-balancedness-report-mode",
    ),
    Refusal(
        lambda a: bool(a.allow_auto_truncate),
        "--cdsp refuses what is too long and does not shorten it, which each instance would do to "
        "a length of its own: remove --allow-auto-truncate",
    ),
    Refusal(
        lambda a: bool(a.enable_mixed_chunk),
        "--cdsp prefill instances do not decode: remove --enable-mixed-chunk",
        PREFILL_FORM,
    ),
    Refusal(
        lambda a: bool(a.disaggregation_enable_kv_checksum),
        "--cdsp spreads a prompt's KV over instances, and no one of them can sum it up: remove "
        "--disaggregation-enable-kv-checksum on both servers",
        PREFILL_FORM,
    ),
    # New in SGLang 0.5.23, hence the defaults.
    Refusal(
        lambda a: getattr(a, "disaggregation_decode_allocation_policy", "early") != "early",
        "--cdsp writes KV to decode while a prompt is being prefilled: set "
        "--disaggregation-decode-allocation-policy early on both servers",
        PREFILL_FORM,
    ),
    Refusal(
        lambda a: getattr(a, "enable_kv_cache_sharding", False),
        "--cdsp spreads a prompt's KV over instances itself: remove --enable-kv-cache-sharding",
    ),
    Refusal(
        lambda a: getattr(a, "enable_watermark", False),
        "--cdsp does not watermark a prompt's first token: remove --enable-watermark",
    ),
)


def forced_settings(disaggregation_mode: str, *, prefix_cache: bool) -> dict[str, object]:
    """SGLang settings that ``--cdsp`` decides itself, as ``ServerArgs`` fields.

    On a prefill server the overlap scheduler would start a stock batch while a chunk task waits for
    its partners, and the radix cache is off unless the pool is to reuse prefixes. One server leaves
    both as they are given.

    Args:
        prefix_cache: ``--cdsp-prefix-cache`` was given.
    """
    if disaggregation_mode != Form.PREFILL.value:
        return {}
    cache: dict[str, object] = {} if prefix_cache else {"disable_radix_cache": True}
    return {**cache, "disable_overlap_schedule": True}


def check_version(cdsp: CdspArgs, version: str) -> None:
    """Refuse an SGLang release that was not tested.

    Raises:
        CdspConfigError: unless ``--cdsp-any-sglang-version`` was given.
    """
    if version in TESTED_SGLANG_VERSIONS or cdsp.any_sglang_version:
        return
    raise CdspConfigError(
        f"sglang {version} was not tested with this sglang-cdsp (tested: "
        f"{', '.join(TESTED_SGLANG_VERSIONS)}); install a tested release, or add "
        "--cdsp-any-sglang-version to try this one"
    )


def check_transfer_backend(backend: str) -> None:
    """Refuse a transfer backend, as resolved by SGLang (a platform may choose its default).

    Raises:
        CdspConfigError: it has no row in ``transfer.registry``, or cannot run here.
    """
    transfer_engine(backend).check()


def refusals(server_args: ServerArgs) -> list[str]:
    """What the pool cannot serve with, one line each with the remedy."""
    mode = server_args.disaggregation_mode
    return [
        refusal.message
        for refusal in REFUSALS
        if refusal.applies(server_args) and (mode == "decode" or Form(mode) in refusal.forms)
    ]
