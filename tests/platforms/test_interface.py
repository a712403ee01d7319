"""What SGLang asks of a platform while it serves, this one answers; profiles above all."""

import inspect
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import sglang  # noqa: F401 - declares torchvision's operators first
from sglang.srt.platforms.interface import SRTPlatform

from sglang_cdsp.platforms.cpu import TorchCpuPlatform

UNREACHABLE = {
    # Asked for with device graphs only, which the platform denies (`support_cuda_graph`, ...).
    "get_graph_runner_cls",
    "get_piecewise_backend_cls",
    # Asked for with a speculative algorithm only, which it denies, too.
    "get_default_speculative_draft_attention_backend",
    # DeepSeek's sparse attention, whose indexer has device kernels only.
    "get_dsa_kv_pool_cls",
}

PROFILE = """
import glob, sys
import torch, sglang
from sglang.srt.managers.io_struct import ProfileReq, ProfileReqType
from sglang.srt.plugins import load_plugins
load_plugins()
from types import SimpleNamespace
from sglang.srt.managers.scheduler_components import profiler_manager as module
from sglang.srt.utils import profile_utils
parallel = SimpleNamespace(
    tp_rank=0, dp_rank=0, pp_rank=0, moe_ep_rank=0, dp_size=1, pp_size=1, tp_size=1, moe_ep_size=1,
    num_dp_ranks=1
)
device = SimpleNamespace(gpu_id=0, base_gpu_id=0)
for found in (module, profile_utils):
    for name, value in (("get_parallel", parallel), ("get_device", device)):
        if hasattr(found, name):
            setattr(found, name, lambda value=value: value)
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0,
    world_size=1)
group = torch.distributed.group.WORLD
if hasattr(module, "get_dp_tp_group"):  # SGLang 0.5.23 looks its group up
    module.get_dp_tp_group = lambda: SimpleNamespace(cpu_group=group)
    more = {}
else:
    more = {"dp_tp_cpu_group": group}
manager = module.SchedulerProfilerManager(get_forward_ct=lambda: 0, **more)
def ask(kind, **more):
    answer = manager._profile(ProfileReq(req_type=kind, **more))
    return answer.success, answer.message
start, stop = ProfileReqType.START_PROFILE, ProfileReqType.STOP_PROFILE
for activities in (["CPU", "MEM"], ["CUDA_PROFILER"], ["CPU", "RPD"], ["GPU"]):
    print(ask(start, activities=activities))
for activities in (None, ["CPU"]):
    directory = f"{sys.argv[1]}/{activities and activities[0]}"
    print(ask(start, output_dir=directory, activities=activities, profile_id="7"))
    torch.ones(9) @ torch.ones(9)
    print(ask(stop))
    print(len(glob.glob(directory + "/*.trace.json.gz")))
# The second form, behind SGLANG_PROFILE_V2.
profiler = profile_utils._ProfilerBase.create(
    ["CPU", "GPU"], with_stack=False, record_shapes=False, output_dir=sys.argv[1],
    output_prefix="", output_suffix="", profile_id="8", cpu_group=None, first_rank_in_node=True)
profiler.start()
profiler.inners[0].torch_profiler.stop()
print(len(profiler.inners))
"""


def test_nothing_that_can_be_asked_for_is_left_out() -> None:
    """A method of the interface that raises has to be one that nobody calls here."""
    raising = {
        name
        for name, method in inspect.getmembers(TorchCpuPlatform, inspect.isfunction)
        if "raise NotImplementedError" in inspect.getsource(method)
    }
    assert raising <= UNREACHABLE
    platform = TorchCpuPlatform()
    gates: dict[str, tuple[str, ...]] = {
        "support_cuda_graph": (),
        "support_piecewise_cuda_graph": (),
        "supports_speculative_algorithm": ("EAGLE",),
        "supports_speculative_draft_attention_backend": ("EAGLE", "torch_native"),
    }
    # 0.5.23 asks fewer of these questions.
    asked = [name for name in gates if hasattr(platform, name)]
    assert asked
    assert not any(getattr(platform, name)(*gates[name]) for name in asked)


@pytest.mark.parametrize(
    "name",
    sorted(
        name
        for name, method in inspect.getmembers(SRTPlatform, inspect.isfunction)
        if not name.startswith("_")
        and name not in UNREACHABLE
        and all(
            p.default is not p.empty or p.name == "self"
            for p in inspect.signature(method).parameters.values()
        )
    ),
)
def test_every_question_without_arguments_gets_an_answer(name: str) -> None:
    getattr(TorchCpuPlatform(), name)()


@pytest.mark.slow
def test_a_profile_starts_and_ends(tmp_path: Path) -> None:
    """Through SGLang's own manager, in a process that has our hooks as a scheduler has."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SGLANG_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROFILE), str(tmp_path)],
        env=kept,
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    refused, answers, second = lines[:4], lines[4:-1], lines[-1]
    assert second == "1"
    assert all("(False" in line and 'ask for ["CPU"]' in line for line in refused)
    assert len(answers) == 6
    for started, stopped, files in zip(answers[::3], answers[1::3], answers[2::3], strict=True):
        assert started.startswith("(True")
        assert stopped.startswith("(True")
        assert files == "1"
