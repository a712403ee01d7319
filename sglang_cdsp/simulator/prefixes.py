"""Cached prefixes: what each instance keeps, evicts and is asked for.

In one server as in SGLang: when a prompt is computed, its whole blocks are in its home's cache, and
with the answer's when it has ended; blocks that a request uses are locked; the others take only
slots that are promised to nobody, and the least recently used go first, leaves before what they
follow. The index is the server's own, and so a running prompt counts at its home, where a plan that
starts from it waits for it. What a plan reuses is locked when the plan is bound, where a server
locks it when the task heads its queue and plans anew what has gone meanwhile; so is what a home
elsewhere has of it, which does not travel. Before decode instances a prompt is in its home's cache
when decode has it (keeping.py).

Blocks stand for their whole prefix: two requests that have a block in common have all before it in
common, too, as in Mooncake's trace.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from sglang_cdsp.planner.memory import pages
from sglang_cdsp.planner.prefixes.hot import PrefixUses, Turnover, target_of_copy, wants_copy
from sglang_cdsp.planner.prefixes.index import PrefixIndex
from sglang_cdsp.planner.types import HeldPrefix, Plan
from sglang_cdsp.simulator.one_server import Role
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.shared_slots import SharedSlots
from sglang_cdsp.simulator.task import Task


class Cache:
    """One instance's cached blocks."""

    def __init__(self) -> None:
        # Blocks that nobody uses, the next to go first; and how often the others are in use.
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._locks: dict[int, int] = {}

    @property
    def idle(self) -> int:
        """Blocks that may be evicted."""
        return len(self._idle)

    def __contains__(self, block: int) -> bool:
        return block in self._idle or block in self._locks

    def lock(self, blocks: Sequence[int]) -> list[int]:
        """Use a prefix from now on; returns the blocks of it that are new here."""
        new = [block for block in blocks if block not in self]
        for block in blocks:
            self._idle.pop(block, None)
            self._locks[block] = self._locks.get(block, 0) + 1
        return new

    def unlock(self, blocks: Sequence[int]) -> None:
        """Use a prefix no more. Of those that nobody uses, what follows goes before the rest."""
        for block in reversed(blocks):
            left = self._locks[block] - 1
            if left:
                self._locks[block] = left
            else:
                del self._locks[block]
                self._idle[block] = None

    def shrink(self, most: int) -> list[int]:
        """Evict until at most so many blocks are idle; returns what went."""
        gone = []
        while len(self._idle) > most:
            gone.append(self._idle.popitem(last=False)[0])
        return gone


class Prefixes:
    """The caches of all instances, and what a policy is told of them.

    Attributes:
        reused_tokens: prompt tokens that were not computed. cached_tokens: prompt tokens of bound
            requests that some instance had. evicted_blocks: how many went. copied_tokens: whose KV
            was copied from one cache to another. hot_copies: copies of what was asked for often.
        free: KV slots promised to nobody, by instance: the pool's own, which sets it.
        shared: slots of prefixes that several tasks hold; the pool's own, too.
    """

    def __init__(self, setup: Setup) -> None:
        n = setup.instances
        self._block, self._page = setup.cache_block, setup.page_size
        self._caches = [Cache() for _ in range(n)]
        self._index = PrefixIndex([setup.slots // self._block + 1] * n)
        self._decodes = setup.one_server is not None
        self._asked: dict[str, Task] = {}
        self._locked: dict[Task, tuple[int, Sequence[int]]] = {}
        self._there: dict[Task, tuple[int, Sequence[int]]] = {}  # at a home outside its group
        self._coming: dict[Task, Sequence[int]] = {}
        self.free: Sequence[int] = [setup.slots] * n
        self.shared = SharedSlots()
        self.reused_tokens = self.cached_tokens = self.evicted_blocks = 0
        self.copied_tokens = self.hot_copies = 0
        self._cost = setup.copy_cost()
        self._model = setup.model
        takes = setup.one_server.of(n) if setup.one_server else ()
        self._takes_chunks = [i for i, role in enumerate(takes) if role is not Role.DECODE]
        self._uses, self._turnover = PrefixUses(), Turnover(n)
        self._hot: tuple[int, Sequence[int]] | None = None

    # -- as a policy sees it ----------------------------------------------------------------

    def held(self, rid: str) -> tuple[HeldPrefix, ...]:
        """Who has what of a prompt that waits; a `PrefixSource`."""
        task = self._asked.get(rid)
        if task is None:
            return ()
        request = task.request
        blocks = request.blocks[: (request.prompt_tokens - 1) // self._block]
        need = pages(request.prompt_tokens, self._page)
        if self._decodes:
            need += pages(request.output_tokens, self._page)
        stored = {i: held.pages for held in self._index.lookup(blocks) for i in held.instances}
        most = dict(stored)
        for leader, theirs in self._coming.items():
            home = self._home(leader)
            there = _in_common(blocks, theirs)
            if home is not None and there > most.get(home, 0):
                most[home] = there
        ordered = sorted(most.items(), key=lambda entry: (-entry[1], entry[0]))
        return tuple(
            HeldPrefix(
                i,
                count * self._block,
                need * self._page - self._promised(i, blocks[:count]),
                stored.get(i, 0) * self._block,
            )
            for i, count in ordered
        )

    def _promised(self, instance: int, blocks: Sequence[int]) -> int:
        """Slots of a prefix at an instance that a plan in force was promised."""
        there = self.shared.promised(instance, blocks[-1])
        return len(blocks) * self._block if there else 0

    def promised_already(self, task: Task, plan: Plan) -> int:
        """Of the slots that a plan needs at its home, those that another one shares with it."""
        return self._promised(plan.home, task.request.blocks[: plan.reused // self._block])

    def cached(self, task: Task) -> list[int]:
        """How many of a prompt's first tokens each instance has cached."""
        blocks = task.request.blocks[: task.request.prompt_tokens // self._block]
        tokens = [0] * len(self._caches)
        for held in self._index.lookup(blocks):
            for i in held.instances:
                tokens[i] = held.pages * self._block
        return tokens

    def there(self, task: Task) -> int:
        """How many of a prompt's first tokens its home has, which is outside of its group."""
        _, blocks = self._there.get(task, (0, ()))
        return len(blocks) * self._block

    # -- a request's way --------------------------------------------------------------------

    def waits(self, task: Task) -> None:
        """A prompt waits for a plan."""
        if task.request.blocks:
            self._asked[task.rid] = task

    def bound(self, now: float, task: Task, plan: Plan) -> None:
        """It gets a plan: what that reuses is locked at its home."""
        self._asked.pop(task.rid, None)
        self.cached_tokens += plan.cached
        self.reused_tokens += plan.reused
        copied = plan.copy.tokens if plan.copy is not None else 0
        self.copied_tokens += copied
        if plan.reused:
            # What is copied enters the cache when its slots are promised: others give way to it.
            self._use(now, task, plan.home, plan.reused - copied)
        home = task.decode_instance if self._decodes else plan.home
        assert home is not None
        if plan.reused and home == plan.home:
            last = task.request.blocks[plan.reused // self._block - 1]
            self.shared.join(task, home, last, plan.reused)
        if task.request.blocks and home not in plan.instances:
            blocks = task.request.blocks[: self.cached(task)[home] // self._block]
            self._caches[home].lock(blocks)
            self._there[task] = home, blocks
        if task.request.blocks and (self._decodes or task.keeps):
            self._coming[task] = task.request.blocks[: task.request.prompt_tokens // self._block]

    def promised(self, now: float, task: Task) -> None:
        """A bound prompt has its slots: what it starts from may come to its home."""
        plan = task.plan
        if plan is not None and plan.copy is not None:
            instance, there = self._locked[task]
            self._use(now, task, instance, plan.reused)
            self._caches[instance].unlock(there)

    def used(self, now: float, task: Task, queue_s: Sequence[float]) -> float | None:
        """A bound prompt was cached in part; when a copy of that arrives that begins now, if any.

        As in the server (`planner/prefixes/hot.py`).
        """
        plan, cost = task.plan, self._cost
        if cost is None or plan is None or not plan.cached:
            return None
        blocks = task.request.blocks[: plan.cached // self._block]
        uses = self._uses.used(blocks[-1], now)
        holders = {i for h in self._index.lookup(blocks) if h.pages == len(blocks)
                   for i in h.instances}  # fmt: skip
        coming = {self._home(t) for t, theirs in self._coming.items()
                  if _in_common(blocks, theirs) == len(blocks)}  # fmt: skip
        copies = sum(1 for i in self._takes_chunks if i in holders or i in coming)
        seconds = cost.seconds(plan.cached)
        if self._hot is not None or not holders or not wants_copy(uses, copies):
            return None
        if seconds >= self._model.predict(self._model.sp_sizes[0], 0, plan.cached):
            return None
        ages = [
            self._turnover.age_s(i, self._index.count(i) * self._block, self.free[i], now)
            for i in range(len(self._caches))
        ]
        able = [
            i
            for i in self._takes_chunks
            if not (i in holders or i in coming) and self.free[i] >= plan.cached
        ]
        target = target_of_copy(uses, copies, ages, queue_s, able)
        if target is None:
            return None
        self._hot = target, blocks
        return now + seconds

    def copied(self, now: float) -> None:
        """The copy that had begun has arrived."""
        assert self._hot is not None
        (target, blocks), self._hot = self._hot, None
        cache = self._caches[target]
        there = [block for block in blocks if block in cache]
        cache.lock(there)
        lacks = len(blocks) - len(there)
        if self.free[target] // self._block >= lacks:
            self.hot_copies += 1
            self.copied_tokens += lacks * self._block
            self.press(target, lacks)
            self._stored(now, target, cache.lock(blocks))
            cache.unlock(blocks)
        cache.unlock(there)
        self.press(target)

    def computed(self, now: float, task: Task) -> None:
        """Its home has all of its prompt."""
        assert task.decode_instance is not None
        self._coming.pop(task, None)
        self._leave(task)
        self._use(now, task, task.decode_instance, task.request.prompt_tokens)

    def ended(self, now: float, task: Task) -> None:
        """It has its last token, and its slots are promised to nobody any more."""
        self._stays(now, task, task.total_tokens)

    def sent(self, now: float, task: Task) -> None:
        """Decode has its prompt, and its slots are promised to nobody any more."""
        assert task.plan is not None
        self._coming.pop(task, None)
        tokens = task.request.prompt_tokens if task.keeps else task.plan.reused
        self._stays(now, task, tokens)

    def _stays(self, now: float, task: Task, tokens: int) -> None:
        """Its home has the first tokens cached, and nobody uses them on its behalf."""
        home = self._home(task)
        assert home is not None
        self._leave(task)
        self._use(now, task, home, tokens)
        self._leave(task)
        self.press(home)

    def _home(self, task: Task) -> int | None:
        """Where it has, or will have, all of its prompt."""
        if self._decodes:
            return task.decode_instance
        return task.plan.home if task.plan is not None else None

    def press(self, instance: int, coming: int = 0) -> None:
        """Slots of an instance were promised, or blocks are coming: what is cached gives way."""
        most = max(0, self.free[instance] // self._block - coming)
        gone = self._caches[instance].shrink(most)
        self.evicted_blocks += len(gone)
        self._index.removed(instance, gone)

    def _use(self, now: float, task: Task, instance: int, tokens: int) -> None:
        """Lock the first tokens of a task on an instance, in whole blocks."""
        blocks = task.request.blocks[: tokens // self._block]
        self._stored(now, instance, self._caches[instance].lock(blocks))
        self._locked[task] = instance, blocks

    def _stored(self, now: float, instance: int, blocks: Sequence[int]) -> None:
        self._index.stored(instance, blocks)
        self._turnover.stored(instance, len(blocks) * self._block, now)

    def _leave(self, task: Task) -> None:
        """Unlock what a task uses."""
        for locks in (self._locked, self._there):
            instance, blocks = locks.pop(task, (0, ()))
            self._caches[instance].unlock(blocks)
            if instance != self._home(task):
                self.press(instance)

    # -- accounts ---------------------------------------------------------------------------

    def differences(self) -> list[str]:
        """Where the index and the caches disagree; for tests, which ask at random moments."""
        found = []
        for instance, cache in enumerate(self._caches):
            blocks: Iterable[int] = (*cache._idle, *cache._locks)
            known = self._index.count(instance)
            if known != len(set(blocks)):
                found.append(
                    f"instance {instance}: {known} blocks indexed, {len(set(blocks))} kept"
                )
        return found


def _in_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many blocks two prompts begin with alike: equal blocks have equal ones before them."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[middle - 1] == other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
