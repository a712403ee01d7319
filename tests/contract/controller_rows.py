"""What the pool controller relies on: its process and the class that it extends."""

from __future__ import annotations

from tests.contract.changed import Changed, Not
from tests.contract.needs import Attributes, Fields, Names, Order, Signature
from tests.contract.row import row

CONTROLLER = "sglang.srt.managers.data_parallel_controller"
CLASS = "DataParallelController"
ENGINE = "sglang.srt.entrypoints.engine"
STATS = "sglang.srt.observability.req_time_stats"

BUILT = f"controller = {CLASS}(server_args, port_args, run_scheduler_process_func"

ROWS = (
    # -- the controller process -----------------------------------------------------------------
    row(
        "controller.controller controller.process",
        "built by position in the controller process; what follows is passed on",
        Signature(
            CONTROLLER,
            f"{CLASS}.__init__",
            ("server_args", "port_args", "run_scheduler_process_func"),
        ),
    ),
    row(
        "controller.process platforms.controller",
        "called by us with what its caller passes",
        Signature(
            CONTROLLER,
            "run_data_parallel_controller_process",
            ("server_args", "port_args", "pipe_writer", "run_scheduler_process_func"),
        ),
    ),
    row(
        "controller.process",
        "looks its class up in its module, tells its limits, then serves",
        Changed(
            Order(
                CONTROLLER,
                "run_data_parallel_controller_process",
                (BUILT, "controller.max_req_input_len", "controller.event_loop()"),
            ),
            Order(
                CONTROLLER,
                "run_data_parallel_controller_process",
                (BUILT, "controller.get_init_info()", "controller.event_loop()"),
            ),
            "nothing: the limits that the pool controller sets are read by that method",
        ),
    ),
    row(
        "hooks controller.process platforms.controller",
        "the launching process names the target by this global and passes these arguments",
        Order(
            ENGINE,
            "Engine._launch_scheduler_processes",
            (
                "target=run_data_parallel_controller_process",
                "server_args=server_args",
                "port_args=port_args",
                "pipe_writer=writer",
                "run_scheduler_process_func=run_scheduler_process_func",
            ),
        ),
    ),
    row(
        "hooks platforms.controller",
        "the global that is replaced",
        Names(ENGINE, ("run_data_parallel_controller_process",)),
    ),
    row(
        "hooks controller.process platforms.controller",
        "the class that is replaced",
        Names(CONTROLLER, ("DataParallelController",)),
    ),
    row(
        "releases platforms.controller controller.process",
        "hooks registered for the controller's process need plugins loaded there",
        Changed(
            Not(Names(CONTROLLER, ("load_plugins",))),
            Order(CONTROLLER, "run_data_parallel_controller_process", ("load_plugins()",)),
            "our targets of that process load them; the CPU platform leaves SGLang's own target "
            "in place where that does (`platforms.controller`)",
            "controller_loads_plugins",
        ),
    ),
    # -- the controller class -------------------------------------------------------------------
    row(
        "controller.controller controller.dispatcher",
        "sockets, processes and parts that the pool controller uses",
        Attributes(
            CONTROLLER,
            CLASS,
            (
                "recv_from_tokenizer",
                "workers",
                "scheduler_procs",
                "run_scheduler_process_func",
                "context",
                "server_args",
                "soft_watchdog",
                "max_req_input_len",
                "_request_dispatcher",
                "send_control_message",
                "dispatching_with_trace",
            ),
        ),
    ),
    row(
        "controller.controller",
        "schedulers are up, and the dispatcher is made, when the constructor returns",
        Order(
            CONTROLLER,
            f"{CLASS}.__init__",
            ("self.launch_dp_schedulers(server_args, port_args)", "self.init_dispatcher()"),
        ),
    ),
    row(
        "controller.controller",
        "overridden: handlers of requests and aborts",
        Signature(CONTROLLER, f"{CLASS}.init_dispatcher", (), exact=True),
    ),
    row(
        "controller.controller",
        "the dispatcher's table, changed in place",
        Order("sglang.utils", "TypeBasedDispatcher.__init__", ("self._mapping",)),
    ),
    row(
        "controller.controller platforms.hooks",
        "overridden, and hooked on machines without an accelerator",
        Signature(CONTROLLER, f"{CLASS}.event_loop", (), exact=True),
    ),
    row(
        "controller.controller",
        "stock's way for requests that name their instance",
        Signature(CONTROLLER, f"{CLASS}.dispatching_with_trace", ("req",)),
    ),
    row(
        "controller.controller",
        "orders to every instance",
        Signature(CONTROLLER, f"{CLASS}.send_control_message", ("obj",)),
    ),
    row(
        "controller.dispatcher",
        "time stamps on a request, as stock's dispatch leaves them",
        Order(
            CONTROLLER,
            f"{CLASS}.dispatching_with_trace",
            (
                "DPControllerReqTimeStats.new_from_obj(unwrap_from_pickle(req.time_stats))",
                "time_stats.set_dp_dispatch_time()",
                "req.time_stats = wrap_as_pickle(time_stats)",
            ),
        ),
    ),
    row(
        "controller.dispatcher",
        "the stamp itself",
        Attributes(STATS, "DPControllerReqTimeStats", ("set_dp_dispatch_time",)),
    ),
    row(
        "controller.startup",
        "options about order, length and time of the queue, honoured at the pool's",
        Fields(
            "sglang.srt.arg_groups.fields.schedule",
            "Schedule",
            (
                "enable_priority_scheduling",
                "schedule_low_priority_values_first",
                "abort_on_priority_when_disabled",
                "max_queued_requests",
            ),
        ),
    ),
    row(
        "controller.queue_limits",
        "a request without a priority comes last",
        Order(
            "sglang.srt.managers.scheduler",
            "Scheduler._set_or_validate_priority",
            ("req.priority = sys.maxsize", "req.priority = -sys.maxsize - 1"),
        ),
    ),
)
