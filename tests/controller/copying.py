"""A pool of fake instances that copy cached prefixes to each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from sglang_cdsp.controller.homes import home_tokens
from sglang_cdsp.controller.prefixes.copy import Copy, Reason
from sglang_cdsp.controller.prefixes.hashes import PageHashes
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.prefixes.copies import CopyTimes
from sglang_cdsp.planner.types import HeldPrefix
from sglang_cdsp.protocol.messages import CopyEnded, CopyReady
from tests.controller.fake_pool import FakePool
from tests.controller.fake_tasks import FakeTask, Move
from tests.controller.one_server import DecodingInstance
from tests.controller.reusing import DrawnPrefixes, ReusingPool


@dataclass(eq=False)
class ComingCopy:
    """A prefix that is to come; it takes slots of its own where no plan was promised them."""

    copy: Copy
    own: int
    ready: bool = False


class CopyingInstance(DecodingInstance):
    """Sends and takes cached prefixes.

    Attributes:
        sent: copies that have left here.
        unfound: copies that have not come to here.
    """

    def __init__(self, me: int, pool: FakePool) -> None:
        super().__init__(me, pool)
        self.copies_in: dict[int, ComingCopy] = {}
        self.copies_out: dict[int, Copy] = {}
        self.sent: set[int] = set()
        self.unfound: set[int] = set()

    def end(self) -> None:
        """Nothing is copied any more."""
        super().end()
        self.copies_in, self.copies_out = {}, {}

    def moves(self) -> Iterator[Move]:
        """What the instance could do now."""
        yield from super().moves()
        if self.paused:
            return
        for number, coming in list(self.copies_in.items()):
            yield from self._coming_copy(number, coming)
        for number, copy in list(self.copies_out.items()):
            yield Move(f"{self.me} sends copy {number}", partial(self._send_copy, copy))
            lacks = partial(self._lacks, copy)
            yield Move(f"{self.me} lacks copy {number}", lacks, fault=True)

    def _coming_copy(self, number: int, coming: ComingCopy) -> Iterator[Move]:
        fail = partial(self._end_copy, coming, "a link broke")
        if not coming.ready:
            yield Move(f"{self.me} gets ready for copy {number}", partial(self._ready_for, coming))
            had = partial(self._end_copy, coming, "")
            yield Move(f"{self.me} had all of copy {number}", had, fault=True)
            yield Move(f"{self.me} has no room for copy {number}", fail, fault=True)
            return
        source = self.pool.instances[coming.copy.source]
        assert isinstance(source, CopyingInstance)
        if number in source.sent:
            come = partial(self._end_copy, coming, "")
            yield Move(f"copy {number} has come to {self.me}", come)
        yield Move(f"{self.me} loses copy {number}", fail, fault=True)

    def on_copy_in(self, copy: Copy) -> None:
        """Get ready for a prefix."""
        assert copy.number not in self.copies_in
        own = copy.tokens if copy.reason is Reason.USE else 0
        self._take(own)
        self.copies_in[copy.number] = ComingCopy(copy, own)

    def _ready_for(self, coming: ComingCopy) -> None:
        coming.ready = True
        self._say(0, CopyReady, seq=coming.copy.number, held=0)

    def _end_copy(self, coming: ComingCopy, error: str) -> None:
        number = coming.copy.number
        del self.copies_in[number]
        self.used -= coming.own
        if error:
            self.unfound.add(number)
        self._say(0, CopyEnded, seq=number, error=error)

    def on_copy_out(self, copy: Copy) -> None:
        """Send a prefix."""
        assert copy.number not in self.copies_out
        self.copies_out[copy.number] = copy

    def _send_copy(self, copy: Copy) -> None:
        del self.copies_out[copy.number]
        self.sent.add(copy.number)
        self._say(0, CopyEnded, seq=copy.number, found=copy.tokens)

    def _lacks(self, copy: Copy) -> None:
        del self.copies_out[copy.number]
        self._say(0, CopyEnded, seq=copy.number, error="it was evicted", found=0)

    def on_copy_end(self, number: int) -> None:
        """A copy does not come about."""
        if number in self.copies_in:
            self._end_copy(self.copies_in[number], "it was called off")
        elif number in self.copies_out:
            del self.copies_out[number]
            self._say(0, CopyEnded, seq=number, error="it was called off", found=1 << 20)

    def _may_announce(self, task: FakeTask) -> bool:
        waits = task.home == self.me and task.copy in self.copies_in
        return super()._may_announce(task) and not waits

    def _announce(self, task: FakeTask) -> None:
        if task.starts_from_cache(self.me) and task.copy in self.unfound:
            self._miss(task)
        else:
            super()._announce(task)


class DrawnCopies(DrawnPrefixes):
    """Prefixes that can be copied, all of them of one series of tokens."""

    def held(self, rid: str) -> tuple[HeldPrefix, ...]:
        """As drawn; who may not send cannot."""
        if rid not in self._drawn:
            return ()
        request, drawn = self._drawn[rid]
        need = home_tokens(request, self._page)
        return tuple(
            HeldPrefix(seat, tokens, need, self._ready(request, seat, pages, pages))
            for seat, tokens in drawn
            for pages in (tokens // self._page,)
        )

    def pages_of(self, request: PoolRequest) -> PageHashes | None:
        """The pages of any request."""
        return PageHashes([7] * request.tokens, self._page)

    def holders(self, pages: PageHashes) -> tuple[list[int], list[int]]:
        """Drawn, too."""
        return self._random.sample(range(self._size), self._random.randint(0, self._size)), []


class CopyingPool(ReusingPool):
    """A pool whose cached prefixes are copied.

    Attributes:
        copied: copies that are over.
    """

    make_instance = CopyingInstance

    def __init__(self, **options: object) -> None:
        self.copied: list[Copy] = []
        super().__init__(**options)

    def make_prefixes(self, size: int, page_size: int) -> DrawnCopies:
        """Drawn ones."""
        self.prefixes = prefixes = DrawnCopies(size, page_size)
        return prefixes

    def make_copies(self) -> CopyTimes:
        """They take next to nothing."""
        return CopyTimes(1)

    def copy_in(self, copy: Copy) -> None:
        """The target gets ready."""
        assert copy.serial > self._last_serial, "each use of a lane has a number of its own"
        self._last_serial = copy.serial
        assert copy.source != copy.target
        at = self._copying_at(copy.target)
        at.order(partial(at.on_copy_in, copy))

    def copy_out(self, copy: Copy) -> None:
        """The source sends."""
        at = self._copying_at(copy.source)
        at.order(partial(at.on_copy_out, copy))

    def copy_end(self, number: int, instance: int) -> None:
        """An instance hears that a copy does not come about."""
        at = self._copying_at(instance)
        at.order(partial(at.on_copy_end, number))

    def copy_over(self, copy: Copy) -> None:
        """Nobody has anything of it."""
        assert all(copy is not other for other in self.copied), "a copy is over once"
        self.copied.append(copy)
        for seat in (copy.source, copy.target):
            at = self._copying_at(seat)
            if not at.lost:
                assert copy.number not in at.copies_in
                assert copy.number not in at.copies_out

    def _copying_at(self, instance: int) -> CopyingInstance:
        at = self.instances[instance]
        assert isinstance(at, CopyingInstance)
        return at
