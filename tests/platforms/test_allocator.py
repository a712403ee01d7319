"""The host allocator lays requests out in pages like SGLang's kernels do."""

import pytest
import sglang  # noqa: F401 - declares torchvision's operators first
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sglang_cdsp.platforms.allocator import HostPagedAllocator

PAGES = 24


class AllocatorMachine(RuleBasedStateMachine):
    """Requests that start, grow by many or by one token, and end."""

    @initialize(page_size=st.sampled_from([1, 4, 16]))
    def start(self, page_size: int) -> None:
        self.page_size = page_size
        self.allocator = HostPagedAllocator(
            PAGES * page_size, page_size, torch.float32, "cpu", None, need_sort=True
        )
        self.slots: list[list[int]] = []

    @rule(new=st.lists(st.integers(1, 40), min_size=1, max_size=3))
    def begin(self, new: list[int]) -> None:
        self._extend([[] for _ in new], new)

    @rule(data=st.data(), more=st.integers(1, 40))
    def extend(self, data: st.DataObject, more: int) -> None:
        if self.slots:
            row = self.slots.pop(data.draw(st.integers(0, len(self.slots) - 1)))
            self._extend([row], [more])

    @rule()
    def decode(self) -> None:
        if not self.slots:
            return
        lengths = torch.tensor([len(row) + 1 for row in self.slots])
        last = torch.tensor([row[-1] for row in self.slots])
        new = self.allocator.alloc_decode(lengths, lengths, last)
        if new is not None:
            for row, slot in zip(self.slots, new.tolist(), strict=True):
                row.append(slot)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.slots:
            row = self.slots.pop(data.draw(st.integers(0, len(self.slots) - 1)))
            self.allocator.free(torch.tensor(row))

    def _extend(self, rows: list[list[int]], more: list[int]) -> None:
        prefix = torch.tensor([len(row) for row in rows])
        lengths = prefix + torch.tensor(more)
        last = torch.tensor([row[-1] if row else -1 for row in rows])
        before = self.allocator.available_size()
        new = self.allocator.alloc_extend(prefix, prefix, lengths, lengths, last, sum(more))
        if new is None:
            opened = sum(
                -(-length // self.page_size) - -(-len(row) // self.page_size)
                for row, length in zip(rows, lengths.tolist(), strict=True)
            )
            assert opened * self.page_size > before  # it really did not fit
            assert self.allocator.available_size() == before
            self.slots += [row for row in rows if row]
            return
        parts = new.split(more)
        self.slots += [row + part.tolist() for row, part in zip(rows, parts, strict=True)]

    @invariant()
    def slots_are_distinct_and_lie_in_their_places(self) -> None:
        taken = [slot for row in self.slots for slot in row]
        assert len(taken) == len(set(taken))
        assert all(self.page_size <= slot < (PAGES + 1) * self.page_size for slot in taken)
        for row in self.slots:
            for position, slot in enumerate(row):
                assert slot % self.page_size == position % self.page_size
                if position % self.page_size:
                    assert slot == row[position - 1] + 1

    @invariant()
    def pages_are_taken_or_free(self) -> None:
        taken = sum(-(-len(row) // self.page_size) for row in self.slots)
        assert self.allocator.available_size() == (PAGES - taken) * self.page_size


AllocatorMachine.TestCase.settings = settings(
    print_blob=True, deadline=None, max_examples=25, stateful_step_count=15
)
TestAllocator = AllocatorMachine.TestCase


@pytest.mark.parametrize("page_size", [1, 16])
def test_the_padding_slot_is_never_handed_out(page_size: int) -> None:
    allocator = HostPagedAllocator(
        PAGES * page_size, page_size, torch.float32, "cpu", None, need_sort=False
    )
    everything = allocator.alloc(PAGES * page_size)
    assert everything.min() == page_size
    assert allocator.available_size() == 0
