"""Which models and KV formats chunk tasks can run exactly; the others stop the server."""

from __future__ import annotations

from sglang.srt.configs.model_config import AttentionArch

from sglang_cdsp.engine.stock import StockScheduler

REMEDY = "serve this model without --cdsp"


class UnsupportedModel(SystemExit):
    """The model cannot be served with ``--cdsp``. (SGLang does not swallow SystemExit.)"""


def check_model(scheduler: StockScheduler) -> None:
    """Refuse what the shards' attention or transfer would get wrong.

    Raises:
        UnsupportedModel: names the property.
    """
    config = scheduler.model_config
    runner = scheduler.tp_worker.model_runner
    pool = runner.token_to_kv_pool
    refused = {
        "takes images, audio or video": bool(config.is_multimodal),
        "generates nothing": not config.is_generation,
        "uses multi-head latent attention": config.attention_arch != AttentionArch.MHA,
        "has sliding-window layers": bool(scheduler.is_hybrid_swa),
        "has state-space layers": bool(getattr(scheduler, "is_hybrid_ssm", False)),
        "encodes before it decodes": bool(config.is_encoder_decoder),
    }
    for what, present in refused.items():
        if present:
            raise UnsupportedModel(f"sglang-cdsp: the model {what}; {REMEDY}")
    if pool.dtype != runner.dtype:
        raise UnsupportedModel(
            f"sglang-cdsp: KV is kept as {pool.dtype}, the model computes in {runner.dtype}; "
            "remove --kv-cache-dtype"
        )
