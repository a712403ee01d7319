"""Which cores a rank gets."""

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.platforms.threads import ThreadBinding, choose_binding, parse_cpu_list

CPUS = st.sets(st.integers(0, 255), min_size=1, max_size=32).map(sorted)


def test_one_rank_computes_with_every_core_unpinned() -> None:
    assert choose_binding(0, 1, [0, 1, 5]) == ThreadBinding((0, 1, 5), pinned=False)


@settings(print_blob=True, deadline=None, max_examples=100)
@given(cpus=CPUS, world_size=st.integers(2, 40))
def test_ranks_share_the_cores_evenly(cpus: list[int], world_size: int) -> None:
    bindings = [choose_binding(rank, world_size, cpus) for rank in range(world_size)]
    assert len({len(binding.cpus) for binding in bindings}) == 1
    used = [cpu for binding in bindings for cpu in binding.cpus]
    assert set(used) <= set(cpus)
    if world_size <= len(cpus):
        assert len(used) == len(set(used))
        assert all(binding.pinned for binding in bindings)
    else:
        assert all(len(binding.cpus) == 1 and not binding.pinned for binding in bindings)


def test_the_users_list_is_followed() -> None:
    bound = choose_binding(1, 2, [0, 1, 2, 3], bind="0|1-2,3")
    assert bound == ThreadBinding((1, 2, 3), pinned=True)


@pytest.mark.parametrize("text", ["", "a", "1-", "0,,1", "1-b"])
def test_a_malformed_list_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"for example 0-1\|2,3"):
        parse_cpu_list(text) if text != "1-" else parse_cpu_list("-1")


def test_a_list_without_an_entry_for_the_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="give 3 entries"):
        choose_binding(2, 3, [0, 1], bind="0|1")


@pytest.mark.slow
def test_binding_pins_every_thread_of_the_process() -> None:
    last = max(os.sched_getaffinity(0))
    script = (
        "import os, torch\n"
        "from sglang_cdsp.platforms.threads import bind_rank_threads\n"
        "torch.randn(600, 600) @ torch.randn(600, 600)\n"
        f"assert bind_rank_threads(numa_index=0, world_size=1) == '{last}'\n"
        "threads = map(int, os.listdir('/proc/self/task'))\n"
        f"assert all(os.sched_getaffinity(thread) == {{{last}}} for thread in threads)\n"
        "own = os.getpriority(os.PRIO_PROCESS, os.getppid())\n"
        "nices = {os.getpriority(os.PRIO_PROCESS, int(t)) for t in os.listdir('/proc/self/task')}\n"
        "assert nices == {min(own + 5, 19)}, nices\n"
        "print(torch.get_num_threads())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "SGLANG_CPU_OMP_THREADS_BIND": str(last)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "1"
