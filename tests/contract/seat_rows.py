"""What starting, watching and replacing schedulers relies on."""

from __future__ import annotations

from tests.contract.changed import Changed, Not
from tests.contract.needs import Attributes, Fields, Names, Order, Signature
from tests.contract.row import row

CONTROLLER = "sglang.srt.managers.data_parallel_controller"
CLASS = "DataParallelController"
ENGINE = "sglang.srt.entrypoints.engine"
SCHEDULER = "sglang.srt.managers.scheduler"
ARGS = "sglang.srt.server_args"
LOADS = "sglang.srt.managers.load_snapshot"
IO = "sglang.srt.managers.io_struct"
FIELDS = "sglang.srt.arg_groups.fields"
RECORDS = "_record_scheduler_init_infos"

ROWS = (
    # -- how stock starts schedulers ------------------------------------------------------------
    row(
        "controller.controller",
        "overridden: the launch of all instances",
        Signature(
            CONTROLLER, f"{CLASS}.launch_dp_schedulers", ("server_args", "port_args"), exact=True
        ),
    ),
    row(
        "controller.controller",
        "told of an instance that listens, or does not any more",
        Attributes(CONTROLLER, CLASS, ("status", "_refresh_active_workers")),
    ),
    row(
        "controller.controller",
        "control messages go to those whose status says so",
        Order(CONTROLLER, f"{CLASS}._refresh_active_workers", ("active and self.status[i]",)),
    ),
    row(
        "controller.controller",
        "what schedulers say of themselves is told to the launching process",
        Changed(
            Not(Attributes(CONTROLLER, CLASS, (RECORDS,))),
            Signature(CONTROLLER, f"{CLASS}.{RECORDS}", ("infos",), exact=True),
            "the pool controller's launch hands it over (`controller.controller`)",
            "controller_records_facts",
        ),
    ),
    row(
        "controller.controller",
        "the start's times, where that is the launch's own matter",
        Signature(
            "sglang.srt.observability.startup_time",
            "aggregate_scheduler_startup_times",
            ("startup_times",),
            exact=True,
        ),
    ),
    row(
        "controller.seats.stock_ranks",
        "a scheduler's process is started with these",
        Signature(
            SCHEDULER,
            "run_scheduler_process",
            (
                *("server_args", "port_args", "gpu_id", "tp_rank", "pp_rank", "dp_rank"),
                *("pipe_writer", "display_tp_rank", "display_dp_rank", "display_moe_ep_rank"),
            ),
            exact=True,
        ),
    ),
    row(
        "controller.seats.stock_ranks",
        "addresses of one instance",
        Signature(ARGS, "PortArgs.init_new", ("server_args",)),
    ),
    row(
        "controller.seats.stock_ranks",
        "addresses that are the server's",
        Order(
            CONTROLLER,
            f"{CLASS}.launch_dp_schedulers",
            (
                "tmp_port_args = PortArgs.init_new(server_args)",
                "tmp_port_args.tokenizer_ipc_name = port_args.tokenizer_ipc_name",
                "tmp_port_args.detokenizer_ipc_name = port_args.detokenizer_ipc_name",
                "tmp_port_args.instance_id = port_args.instance_id",
                "get_parallel().tp_size * get_parallel().pp_size * get_device().gpu_id_step",
                "tmp_port_args.scheduler_input_ipc_name",
            ),
        ),
    ),
    row(
        "controller.seats.stock_ranks",
        "where its ranks meet",
        Fields(ARGS, "PortArgs", ("nccl_port",)),
    ),
    row(
        "controller.seats.stock_ranks",
        "which device a rank has",
        Fields(f"{FIELDS}.device", "Device", ("base_gpu_id", "gpu_id_step")),
    ),
    row(
        "controller.seats.stock_ranks",
        "how many ranks there are",
        Fields(f"{FIELDS}.parallel", "Parallel", ("tp_size", "moe_dp_size", "ep_size")),
    ),
    row(
        "controller.seats.stock_ranks",
        "the environment that a rank is started in",
        Order(
            CONTROLLER,
            f"{CLASS}.launch_tensor_parallel_group",
            (
                "TorchMemorySaverAdapter.create(enable=get_exec().features.enable_memory_saver)",
                "maybe_reindex_device_id(gpu_id)",
                "memory_saver_adapter.configure_subprocess()",
                "numa_utils.configure_subprocess(server_args, gpu_id)",
                "proc.start()",
            ),
        ),
    ),
    row(
        "controller.seats.stock_ranks",
        "asked for device, features and parallelism",
        Names("sglang.srt.runtime_context", ("get_device", "get_exec", "get_parallel")),
    ),
    row(
        "controller.wires",
        "a socket of a life",
        Signature(
            "sglang.srt.utils.network",
            "get_zmq_socket",
            ("context", "socket_type", "endpoint", "bind"),
        ),
    ),
    row(
        "controller.wires controller.seats.socket",
        "what is called of a socket",
        Order(IO, "sock_send", ("socket.send_pyobj(obj, flags=flags, ", "socket.send(")),
    ),
    row(
        "controller.pool_seats",
        "a seat that is empty has no load: a writer begins with one of nothing",
        Order(
            LOADS,
            "ShmLoadSnapshotWriter.__init__",
            ("self._write_payload(LoadSnapshot(dp_rank=dp_rank))",),
        ),
    ),
    row(
        "controller.pool_seats",
        "where an instance's load stands",
        Signature(LOADS, "ShmLoadSnapshotWriter.__init__", ("path", "dp_size", "dp_rank")),
    ),
    row(
        "controller.pool_seats",
        "the file of all instances' loads",
        Signature(LOADS, "shm_path_for", ("ipc_name",), exact=True),
    ),
    # -- how schedulers end ---------------------------------------------------------------------
    row(
        "controller.seats.first_lives",
        "a scheduler says that it is ready once it is, then serves",
        Order(
            SCHEDULER,
            "run_scheduler_process",
            (
                "scheduler = Scheduler(server_args, port_args)",
                "pipe_writer.send(scheduler.get_init_info())",
                "scheduler.run_event_loop()",
            ),
        ),
    ),
    row(
        "controller.pool_seats",
        "what it says holds its slots",
        Order(SCHEDULER, "Scheduler.get_init_info", ("'max_total_num_tokens'",)),
    ),
    row(
        "controller.seats.signals",
        "an exception in its loop sends SIGQUIT to the controller",
        Order(
            SCHEDULER,
            "run_scheduler_process",
            ("except Exception:", "parent_process.send_signal(signal.SIGQUIT)"),
        ),
    ),
    row(
        "controller.seats.signals",
        "so does its watchdog",
        Order(
            "sglang.srt.utils.watchdog",
            "WatchdogRaw._watchdog_once",
            ("self.parent_process.send_signal(signal.SIGQUIT)",),
        ),
    ),
    row(
        "engine.scheduler",
        "overridden: what ends the loop is left for the controller",
        Signature(SCHEDULER, "Scheduler.run_event_loop", (), exact=True),
    ),
    row(
        "hooks launch.sigquit",
        "hooked: it starts the controller and waits for nothing",
        Attributes(ENGINE, "Engine", ("_launch_scheduler_processes",)),
    ),
    # -- what a next life is told ---------------------------------------------------------------
    row(
        "engine.scheduler",
        "the slots of a next life, set before the KV pool is built",
        Signature("sglang.srt.runtime_context", "RuntimeContext.override", ("source",)),
    ),
    row(
        "engine.scheduler",
        "where they are read",
        Order(
            "sglang.srt.mem_cache.kv_cache_configurator",
            "KVCacheConfigurator._apply_token_constraints",
            ("user_limit = get_schedule().max_total_tokens", "min(token_capacity, user_limit)"),
        ),
    ),
    row(
        "controller.told",
        "new weights, which a next life would not have",
        Fields(IO, "UpdateWeightFromDiskReqInput", ("model_path",)),
    ),
)
