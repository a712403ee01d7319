"""What the watch over the controller relies on, and how SGLang's processes end with each other."""

from __future__ import annotations

from tests.contract.needs import Attributes, Calls, Fields, Names, Order, Value
from tests.contract.row import row

HTTP = "sglang.srt.entrypoints.http_server"
TOKENIZER = "sglang.srt.managers.tokenizer_manager"
WATCHDOG = "sglang.srt.utils.watchdog"
CONTROLLER = "sglang.srt.managers.data_parallel_controller"
SCHEDULER = "sglang.srt.managers.scheduler"
DECODE = "sglang.srt.disaggregation.decode"
RELEASE = "SGLANG_DISAGGREGATION_DEFERRED_DECODE_KV_RELEASE_TIMEOUT"

ROWS = (
    row(
        "launch.controller_watch",
        "the tokenizer manager of the process that answers HTTP",
        Names(HTTP, ("get_global_state",)),
    ),
    row(
        "launch.controller_watch",
        "where it is kept",
        Fields(HTTP, "_GlobalState", ("tokenizer_manager",)),
    ),
    row(
        "launch.controller_watch",
        "SGLang's own watchdog over the controller's process, and the loop that answers HTTP",
        Attributes(TOKENIZER, "TokenizerManager", ("_subprocess_watchdog", "event_loop")),
    ),
    row(
        "launch.controller_watch",
        "how one sees that it was told to stop",
        Order(WATCHDOG, "SubprocessWatchdog.stop", ("self._stop_event.set()",)),
    ),
    row(
        "launch.controller_watch",
        "an orderly end tells it so before the processes end",
        Order(
            TOKENIZER,
            "TokenizerManager.sigterm_watchdog",
            ("self._subprocess_watchdog.stop()", "ShutdownReq()", "kill_process_tree("),
        ),
    ),
    row(
        "launch.controller_watch",
        "SIGQUIT ends the launching process with all its children, after crash dumps",
        Order(
            TOKENIZER,
            "SignalHandler.running_phase_sigquit_handler",
            (
                "_subprocess_watchdog.stop()",
                "dump_requests_before_crash()",
                "kill_process_tree(os.getpid())",
            ),
        ),
    ),
    row(
        "protocol.parent plugin",
        "the controller asks the kernel to end it with its parent",
        Calls(CONTROLLER, "run_data_parallel_controller_process", "kill_itself_when_parent_died"),
    ),
    row(
        "protocol.parent plugin",
        "a scheduler loads plugins, so that ours can ask the kernel for the same",
        Calls(SCHEDULER, "run_scheduler_process", "load_plugins"),
    ),
    row(
        "controller.controller controller.decode.unconfirmed",
        "decode's release time-out by its name, and its default",
        Value("sglang.srt.environ", f"Envs.{RELEASE}", "EnvFloat(30.0)"),
    ),
    row(
        "controller.decode.unconfirmed",
        "decode uses an aborted room's pages after it, acknowledged or not",
        Order(
            DECODE,
            "DecodeTransferQueue.resolve_deferred_releases",
            ("deadline", "if not drained:", "ack from prefill; releasing anyway."),
        ),
    ),
    row(
        "transfer.nixl",
        "stock keeps the first agent of a name, and raises where it cannot load one",
        Order(
            "sglang.srt.disaggregation.nixl.conn",
            "NixlKVManager._add_remote_peer",
            (
                "if agent_name in self.decode_kv_args_table:",
                "self.decode_kv_args_table[agent_name] = decode_kv_args",
                "self.agent.add_remote_agent(decode_kv_args.agent_metadata)",
                "self._prepare_payload_xfer(decode_kv_args)",
            ),
        ),
    ),
)
