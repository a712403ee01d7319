"""What requests rely on that leave an instance with their output and go on at another."""

from __future__ import annotations

from tests.contract.needs import Attributes, Calls, Fields, Order, Signature
from tests.contract.row import row

SCHEDULER = "sglang.srt.managers.scheduler"
BATCH = "sglang.srt.managers.schedule_batch"
IO = "sglang.srt.managers.io_struct"
CHANNELS = "sglang.srt.managers.scheduler_components.ipc_channels"
STREAMER = "sglang.srt.managers.scheduler_components.output_streamer"
DETOKENIZER = "sglang.srt.managers.detokenizer_manager"
PENALTIES = "sglang.srt.sampling.penaltylib.orchestrator"
GRAMMAR = "sglang.srt.constrained.base_grammar_backend"

ROWS = (
    row(
        "engine.outputs",
        "output messages, request by request",
        Fields(
            IO,
            "BatchTokenIDOutput",
            ("output_ids", "finished_reasons", "cached_tokens", "retraction_counts"),
        ),
    ),
    row(
        "engine.scheduler engine.outputs",
        "all output leaves by one sender, which is replaced",
        Fields(CHANNELS, "SchedulerIpcChannels", ("send_to_detokenizer",)),
    ),
    row(
        "engine.outputs",
        "output is sent through it",
        Calls(
            STREAMER,
            "SchedulerOutputStreamer._stream_output_generation",
            "self.send_to_detokenizer.send_output",
        ),
    ),
    row(
        "controller.controller",
        "without a tokenizer output goes to the tokenizer manager, else to the detokenizer",
        Order(
            CHANNELS,
            "SchedulerIpcChannels.create",
            (
                "if skip_tokenizer_init:",
                "port_args.tokenizer_ipc_name",
                "port_args.detokenizer_ipc_name",
            ),
        ),
    ),
    row(
        "engine.req_state",
        "the detokenizer keeps what it has of a request, whoever sends",
        Order(
            DETOKENIZER,
            "DetokenizerManager._decode_batch_token_id_output",
            ("if rid not in self.decode_status:", "s.decode_ids.extend("),
        ),
    ),
    row(
        "engine.req_state",
        "how much of a request's output was sent",
        Attributes(
            BATCH,
            "Req",
            (
                "output_ids",
                "send_token_offset",
                "send_decode_id_offset",
                "send_output_token_logprobs_offset",
                "input_logprob_sent",
            ),
        ),
    ),
    row(
        "engine.req_state",
        "what else a client is told of a request that was retracted",
        Attributes(
            BATCH,
            "Req",
            ("retracted_stain", "retraction_count", "cached_tokens", "cached_tokens_device"),
        ),
    ),
    row(
        "engine.req_state",
        "the text before a request's output, for the detokenizer",
        Signature(BATCH, "Req.init_incremental_detokenize", ()),
    ),
    row(
        "engine.req_state",
        "log-probabilities of output tokens",
        Fields(
            BATCH,
            "ReqLogprob",
            (
                "output_token_logprobs_val",
                "output_token_logprobs_idx",
                "output_top_logprobs_val",
                "output_top_logprobs_idx",
                "output_token_ids_logprobs_val",
                "output_token_ids_logprobs_idx",
            ),
        ),
    ),
    row(
        "engine.req_state",
        "state that a request does not take along",
        Attributes(
            BATCH,
            "Req",
            (
                "custom_logit_processor",
                "multimodal_inputs",
                "input_embeds",
                "session",
                "lora_id",
                "beam_group",
                "return_hidden_states",
                "return_routed_experts",
                "return_indexer_topk",
                "return_sampling_mask",
                "customized_info",
                "weight_version_events",
            ),
        ),
    ),
    row(
        "engine.req_state",
        "a grammar is brought where it was",
        Signature(GRAMMAR, "BaseGrammarObject.accept_token", ("token",)),
    ),
    row(
        "engine.req_state",
        "so are penalties",
        Signature(
            PENALTIES, "BatchedPenalizerOrchestrator.cumulate_output_tokens", ("output_ids",)
        ),
    ),
    row(
        "engine.scheduler",
        "what SGLang retracts is queued again in one place",
        Calls(SCHEDULER, "Scheduler.update_running_batch", "self._add_request_to_queue"),
    ),
    row(
        "engine.joining engine.moving",
        "a request leaves the running batch between two steps",
        Signature(BATCH, "ScheduleBatch.filter_batch", (), ("keep_indices",)),
    ),
    row(
        "engine.joining",
        "with overlap a step under way counts for nobody who was retracted",
        Attributes(BATCH, "Req", ("is_retracted",)),
    ),
    row(
        "engine.chunk_engine",
        "a request that cannot go on is answered as one that was refused",
        Signature(BATCH, "Req.set_finish_with_abort", ("error_msg",)),
    ),
)
