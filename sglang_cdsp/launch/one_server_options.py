"""SGLang's options where one server prefills and decodes: what differs from a prefill server.

There SGLang's own loop decodes, retracts and keeps its prefix cache, so its options about these
have their effect.
"""

from __future__ import annotations

from sglang_cdsp.launch.stock_options import (
    OPTIONS,
    Option,
    honoured,
    instance,
    nothing,
)

DECODES = "SGLang's own decode batches"
NO_OTHER_SERVER = "there is no other server"

DIFFERENCES: tuple[Option, ...] = (
    honoured("--disable-overlap-schedule", "as given: SGLang's own loops, with the engine's turn"),
    honoured("--num-continuous-decode-steps", DECODES),
    honoured("--retraction-policy", DECODES),
    honoured("SGLANG_FORCE_STREAM_INTERVAL", DECODES),
    honoured("SGLANG_INIT_NEW_TOKEN_RATIO", DECODES),
    honoured("SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR", DECODES),
    honoured("SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS", DECODES),
    honoured("SGLANG_RETRACT_DECODE_STEPS", DECODES),
    honoured("SGLANG_REQ_RUNNING_TIMEOUT", "once a request decodes; a plan runs to its end"),
    honoured("SGLANG_CACHE_HIT_RATE_WINDOW_SECONDS", "SGLang's own prefix cache"),
    honoured("--kv-events-config", "the controller publishes, for all instances as one"),
    honoured("--max-running-requests", "an instance's rows; a prompt that is ready waits for one"),
    instance("--enable-mixed-chunk", "SGLang's own batches; chunks run beside"),
    instance("--prefill-decode-interval", "SGLang's own batches"),
    instance("--prefill-decode-interval-min-bs", "SGLang's own batches"),
    instance("--disable-priority-preemption", "SGLang's own batches"),
    instance("--priority-scheduling-preemption-threshold", "SGLang's own batches"),
    *(
        nothing(option.name, NO_OTHER_SERVER)
        for option in OPTIONS
        if option.name.startswith("SGLANG_DISAGG")
    ),
)
"""What an option does in one server, where that is something else than on a prefill server."""

_CHANGED = {option.name: option for option in DIFFERENCES}

ONE_SERVER_OPTIONS: tuple[Option, ...] = tuple(
    _CHANGED.get(option.name, option) for option in OPTIONS
)
