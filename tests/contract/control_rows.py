"""What the pool relies on at SGLang's control endpoints and messages."""

from __future__ import annotations

from tests.contract.changed import Changed, Not
from tests.contract.needs import Attributes, Fields, Names, Order, Signature
from tests.contract.row import row

IO = "sglang.srt.managers.io_struct"
MIXIN = "sglang.srt.managers.tokenizer_control_mixin"
PROFILER = "sglang.srt.managers.scheduler_components.profiler_manager"
PROFILES = "sglang.srt.utils.profile_utils"
SCHEDULER = "sglang.srt.managers.scheduler"
HTTP = "sglang.srt.entrypoints.http_server"
CONTROLLER = "sglang.srt.managers.data_parallel_controller"

OUTPUT = "sglang.srt.managers.scheduler_components.output_sender"

WEIGHTS = "sglang.srt.managers.scheduler_components.weight_updater"

ROWS = (
    row(
        "controller.controller",
        "control messages that have no handler of their own go to all instances",
        Order(
            CONTROLLER,
            "DataParallelController.init_dispatcher",
            ("self._request_dispatcher.add_fallback_fn(self.send_control_message)",),
        ),
    ),
    row(
        "controller.control_messages",
        "what changes weights, memory or cache",
        Names(
            IO,
            (
                "ContinueGenerationReqInput",
                "FlushCacheReqInput",
                "FlushCacheReqOutput",
                "PauseGenerationReqInput",
                "ProfileReq",
                "ProfileReqType",
                "ReleaseMemoryOccupationReqInput",
                "ResumeMemoryOccupationReqInput",
                "UpdateWeightFromDiskReqInput",
                "UpdateWeightFromDiskReqOutput",
            ),
        ),
    ),
    row(
        "controller.control_messages",
        "whether new weights flush the cache",
        Fields(IO, "UpdateWeightFromDiskReqInput", ("flush_cache",)),
    ),
    row(
        "controller.control_messages",
        "the answer to new weights",
        Fields(IO, "UpdateWeightFromDiskReqOutput", ("success", "message")),
    ),
    row(
        "controller.control_messages",
        "which memory is released",
        Fields(IO, "ReleaseMemoryOccupationReqInput", ("tags",)),
    ),
    row(
        "controller.control_messages",
        "which memory is taken again",
        Fields(IO, "ResumeMemoryOccupationReqInput", ("tags",)),
    ),
    row(
        "controller.control_messages",
        "how long a flush may wait",
        Fields(IO, "FlushCacheReqInput", ("timeout_s",)),
    ),
    row(
        "controller.control_messages control.fan_out",
        "the answer to a flush",
        Fields(IO, "FlushCacheReqOutput", ("success", "message")),
    ),
    row(
        "controller.standing control.memory",
        "the regions of memory",
        Names("sglang.srt.constants", ("GPU_MEMORY_ALL_TYPES",)),
    ),
    row(
        "controller.control_messages",
        "new weights want their flush to work",
        Changed(
            Order(
                WEIGHTS,
                "SchedulerWeightUpdaterManager.flush_cache_after_weight_update",
                ("if recv_req.flush_cache:", "assert flush_cache_success"),
            ),
            Order(
                WEIGHTS,
                "SchedulerWeightUpdaterManager.flush_cache_after_weight_update",
                ("if recv_req.flush_cache and (not self.flush_cache(", "return (False"),
            ),
            "Either way they wait until no instance holds KV (`controller/control_messages.py`).",
        ),
    ),
    row(
        "controller.controller",
        "a control message is answered once for each instance",
        Order(
            "sglang.srt.managers.communicator",
            "FanOutCommunicator.handle_recv",
            ("if len(self._result_values) == self._result_fan_out:",),
        ),
    ),
    row(
        "control.fan_out",
        "a flush asks all instances and tells of the first",
        Order(MIXIN, "TokenizerControlMixin.flush_cache", ("self.flush_cache_communicator(",)),
    ),
    row(
        "control.fan_out",
        "a profile asks all instances and tells of the first, or raises",
        Order(
            MIXIN,
            "TokenizerControlMixin._execute_profile",
            ("self.profile_communicator(req)", "raise RuntimeError(result.message)"),
        ),
    ),
    row(
        "routes control.guards",
        "requests that are not answered yet",
        Attributes("sglang.srt.managers.tokenizer_manager", "TokenizerManager", ("rid_to_state",)),
    ),
    row("routes", "where the tokenizer manager is", Names(HTTP, ("get_global_state",))),
    row(
        "engine.profiles",
        "the scheduler asks its profiler by these names",
        Signature(PROFILER, "SchedulerProfilerManager._profile", ("recv_req",), exact=True),
    ),
    row(
        "engine.profiles engine.scheduler",
        "before every batch",
        Signature(
            PROFILER, "SchedulerProfilerManager._profile_batch_predicate", ("batch",), exact=True
        ),
    ),
    row(
        "engine.profiles",
        "what a profile that failed leaves behind",
        Attributes(
            PROFILER,
            "SchedulerProfilerManager",
            (
                "torch_profiler",
                "profile_in_progress",
                "profile_by_stage",
                "profiler_start_forward_ct",
                "profiler_target_forward_ct",
                "_profile_manager",
            ),
        ),
    ),
    row(
        "engine.profiles",
        "the same with `SGLANG_PROFILE_V2`",
        Attributes(PROFILES, "ProfileManager", ("stage_based_trigger", "profiler")),
    ),
    row(
        "engine.profiles",
        "what it counts",
        Attributes(PROFILES, "_StageBasedTrigger", ("running_state", "stage_configs")),
    ),
    row(
        "engine.profiles",
        "the answer to a profile",
        Fields(IO, "ProfileReqOutput", ("success", "message")),
    ),
    row(
        "engine.profiles",
        "a request to start or stop one",
        Fields(IO, "ProfileReqType", ("START_PROFILE", "STOP_PROFILE")),
    ),
    row(
        "engine.scheduler",
        "a paused loop takes its turn here",
        Signature(SCHEDULER, "Scheduler._record_scheduler_state_for_paused_engine", (), exact=True),
    ),
    row(
        "controller.standing",
        "what holds for every process of the pool",
        Names(
            IO,
            (
                "ConfigureLoggingReq",
                "ContinueGenerationReqInput",
                "PauseGenerationReqInput",
                "ReleaseMemoryOccupationReqInput",
                "ResumeMemoryOccupationReqInput",
                "SetInternalStateReq",
                "SlowDownReqInput",
                "UpdateWeightFromDiskReqInput",
                "UpdateWeightVersionReqInput",
            ),
        ),
    ),
    row(
        "controller.standing",
        "what a new process is told of weights",
        Fields(
            IO,
            "UpdateWeightFromDiskReqInput",
            ("model_path", "load_format", "weight_version", "manifest"),
        ),
    ),
    row(
        "controller.standing",
        "options are merged one by one",
        Fields(IO, "SetInternalStateReq", ("server_args",)),
    ),
    row(
        "controller.answers engine.answers",
        "answers that SGLang waits for, one from each instance",
        Names(
            IO,
            (
                "CheckWeightsReqOutput",
                "DumperControlReqOutput",
                "FlushCacheReqOutput",
                "GetInternalStateReqOutput",
                "GetWeightsByNameReqOutput",
                "ProfileReqOutput",
                "ReleaseMemoryOccupationReqOutput",
                "ResumeMemoryOccupationReqOutput",
                "SetInternalStateReqOutput",
                "SlowDownReqOutput",
                "UpdateWeightFromDiskReqOutput",
                "UpdateWeightVersionReqOutput",
            ),
        ),
    ),
    *(
        row(
            "controller.answers", "an answer in an absent instance's name", Fields(IO, owner, names)
        )
        for owner, names in (
            ("CheckWeightsReqOutput", ("success", "message")),
            ("DumperControlReqOutput", ("success", "response")),
            ("GetInternalStateReqOutput", ("internal_state",)),
            ("GetWeightsByNameReqOutput", ("parameter",)),
            ("SetInternalStateReqOutput", ("updated",)),
            ("BaseReq", ("http_worker_ipc",)),
        )
    ),
    row(
        "controller.answers",
        "the answer about a cache that only the newer release has",
        Changed(
            Not(Names(IO, ("GetHiCacheL3LayoutReqOutput",))),
            Fields(IO, "GetHiCacheL3LayoutReqOutput", ("layout",)),
            "An absent instance's layout is empty (`controller/answers.py`).",
        ),
    ),
    row(
        "engine.answers",
        "answers leave a scheduler here, with who asked",
        Signature(OUTPUT, "SenderWrapper.send_output", ("output", "recv_obj"), exact=True),
    ),
    row(
        "engine.answers",
        "what goes to the tokenizer manager is one message",
        Order(OUTPUT, "SenderWrapper.send_output", ("sock_send(self.socket, output)",)),
    ),
    row(
        "engine.scheduler",
        "the sender can be exchanged before anybody has it",
        Order(SCHEDULER, "Scheduler.init_ipc_channels", ("self.ipc_channels =",)),
    ),
    row(
        "engine.scheduler",
        "where the sender is",
        Fields(
            "sglang.srt.managers.scheduler_components.ipc_channels",
            "SchedulerIpcChannels",
            ("send_to_tokenizer",),
        ),
    ),
)
