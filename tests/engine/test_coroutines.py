"""Coroutines of one rank, and of ranks that must switch alike: order, waiting, failures, state."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.engine.coroutines import (
    LONGEST_WAIT_S,
    PRESSED_S,
    SHORTEST_SLEEP_S,
    Coroutines,
    StoppedError,
)

FLAG: ContextVar[str] = ContextVar("flag", default="default")


class Globals:
    """One process-wide variable that forwards set."""

    value = "outside"

    def take(self) -> str:
        return self.value

    def put(self, state: str) -> None:
        self.value = state


class Alone:
    size = 1

    def least(self, numbers: Sequence[int]) -> list[int]:
        return list(numbers)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def alone(clock: Clock | None = None, stretch_s: float = 1.0, **more: Any) -> Coroutines:
    return Coroutines(
        surroundings=more.pop("surroundings", Globals()),
        ranks=more.pop("ranks", Alone()),
        leads=more.pop("leads", True),
        stretch_s=stretch_s,
        clock=clock or Clock(),
        interrupted=lambda: True,
        **more,
    )


def steps(
    run: Coroutines, said: list[str], name: str, clock: Clock, count: int, step_s: float = 1.0
) -> Callable[[], None]:
    def work() -> None:
        run.give_way()
        for number in range(count):
            said.append(f"{name}{number}")
            clock.now_s += step_s
            run.give_way()

    return work


def test_the_loop_gets_its_turn_after_a_stretch() -> None:
    clock, said = Clock(), list[str]()
    run = alone(clock, stretch_s=2.0)
    run.start("a", (0, 0), steps(run, said, "a", clock, 5))
    turns = []
    while run.turn():
        turns.append(len(said))
    assert turns == [2, 4, 5]
    assert len(run) == 0


def test_a_long_stretch_ends_where_more_than_decode_waits() -> None:
    clock, said, messages = Clock(), list[str](), list[bool]()
    run = alone(clock, stretch_s=10 * PRESSED_S, pressed=lambda: bool(messages))
    step_s = PRESSED_S / 2
    run.start("a", (0, 0), steps(run, said, "a", clock, 25, step_s))
    turns = []
    for pressed in (False, True, False):
        messages[:] = [True] * pressed
        before = len(said)
        run.turn()
        turns.append(len(said) - before)
    assert turns == [20, 2, 3], "not before PRESSED_S, for others are to go on too"


def test_the_more_urgent_goes_first_and_passes_one_that_has_begun() -> None:
    clock, said = Clock(), list[str]()
    run = alone(clock, stretch_s=1.0)
    run.start("long", (0, 1), steps(run, said, "l", clock, 4))
    run.turn()
    run.start("short", (-1, 2), steps(run, said, "s", clock, 2))
    while run.turn():
        pass
    assert said == ["l0", "s0", "s1", "l1", "l2", "l3"]


def test_nobody_stands_still_for_who_is_aside_and_it_goes_on_whenever_it_can() -> None:
    """It waits for others most of the time; an urgent one that waits would stop them."""
    clock, said = Clock(), list[str]()
    run = alone(clock, stretch_s=100.0)
    layers = iter((0, 2, 3))

    def computed(layer: int) -> bool:
        return said.count("chunk") > layer

    def aside() -> None:
        run.give_way()
        for layer in layers:
            run.give_way(partial(computed, layer))
            said.append(f"layer {layer}")

    def chunk() -> None:
        run.give_way()
        for _ in range(4):
            said.append("chunk")
            clock.now_s += 1.0
            run.give_way()

    run.start("chunk", (0, 1), chunk)
    run.start("aside", (-1, 1), aside, aside=True)
    assert run.computes
    while run.turn():
        pass
    assert said == ["chunk", "layer 0", "chunk", "chunk", "layer 2", "chunk", "layer 3"]


def test_who_is_aside_stands_still_for_nobody_and_computes_nothing() -> None:
    clock, said = Clock(), list[str]()
    run = alone(clock, stretch_s=1.0, expected=lambda: True)
    run.start("urgent", (-1, 1), lambda: run.give_way(lambda: False))
    run.start("aside", (0, 1), steps(run, said, "a", clock, 2), aside=True)
    while len(said) < 2:
        assert run.turn()
    lone = alone(clock)
    lone.start("aside", (0, 1), lambda: lone.give_way(lambda: False), aside=True)
    assert len(lone) == 1
    assert not lone.computes


def test_time_in_which_another_one_ran_is_no_time_of_its_own() -> None:
    clock, said = Clock(), list[str]()
    run = alone(clock, stretch_s=1.0)
    long = run.start("long", (0, 1), steps(run, said, "l", clock, 3))
    run.turn()
    run.start("short", (-1, 2), steps(run, said, "s", clock, 2))
    while run.turn():
        pass
    assert long.passed_s == 2.0
    run.passed(5.0)
    assert long.passed_s == 2.0, "it has ended"


def test_how_often_it_stood_aside_is_counted() -> None:
    clock, said = Clock(), list[str]()
    run = alone(clock, stretch_s=1.0)
    long = run.start("long", (0, 1), steps(run, said, "l", clock, 3))
    run.turn()
    assert long.gave_way == 0
    run.start("short", (-1, 2), steps(run, said, "s", clock, 2))
    run.turn()
    assert long.gave_way == 1, "once, however long the other runs"
    while run.turn():
        pass
    assert long.gave_way == 1
    other = run.start("other", (0, 3), steps(run, said, "o", clock, 3))
    run.turn()
    run.passed(2.0)
    assert other.gave_way == 1, "for a batch of SGLang's, too"


def test_one_that_has_ended_is_kept_by_nobody() -> None:
    """It would hold the tensors of its surroundings."""
    clock, said = Clock(), list[str]()
    run = alone(clock, stretch_s=1.0)
    kept = weakref.ref(run.start("short", (0, 1), steps(run, said, "s", clock, 1)))
    while run.turn():
        pass
    gc.collect()
    assert kept() is None


def test_who_waits_is_passed_over_until_what_it_waits_for_is_there() -> None:
    clock, said, there = Clock(), list[str](), list[bool]()
    run = alone(clock)

    def waits() -> None:
        run.give_way()
        run.give_way(lambda: bool(there))
        said.append("waited")

    run.start("waits", (0, 0), waits)
    run.start("works", (0, 1), steps(run, said, "w", clock, 2))
    run.turn()
    assert said == ["w0", "w1"] or said == ["w0"]
    while run.turn():
        pass
    assert "waited" not in said
    assert len(run) == 1
    there.append(True)
    assert run.turn()
    assert said[-1] == "waited"


def test_what_cannot_be_waited_for_fails_the_coroutine() -> None:
    caught = []
    run = alone()

    def broken() -> bool:
        raise ValueError("the link broke")

    def work() -> None:
        try:
            run.give_way()
            run.give_way(broken)
        except StoppedError as error:
            caught.append(str(error))

    run.start("a", (0, 0), work)
    while run.turn():
        pass
    assert caught == ["the link broke"]


@pytest.mark.parametrize("begun", [False, True])
def test_stop_takes_effect_where_it_gave_way(begun: bool) -> None:
    clock, said, run = Clock(), list[str](), alone(stretch_s=0.0)

    def work() -> None:
        try:
            run.give_way()
            steps(run, said, "a", clock, 9)()
        except StoppedError as error:
            said.append(str(error))

    coroutine = run.start("a", (0, 0), work)
    if begun:
        run.turn()
        run.turn()
    before = len(said)
    run.stop(coroutine, "nobody wants it")
    assert said[before:] == ["nobody wants it"]
    assert len(run) == 0
    run.stop(coroutine, "twice")


def test_every_coroutine_has_its_own_surroundings_and_context() -> None:
    """Red without the exchange at each switch: the second forward's state is the first one's."""
    state, clock, seen = Globals(), Clock(), list[tuple[str, str, str]]()
    run = alone(clock, surroundings=state, shake=random.Random(5))

    def work(name: str) -> Callable[[], None]:
        def body() -> None:
            run.give_way()
            state.value = name
            FLAG.set(name)
            for _ in range(20):
                run.give_way()
                seen.append((name, state.value, FLAG.get()))

        return body

    FLAG.set("caller's")
    for name in ("a", "b", "c"):
        run.start(name, (0, ord(name)), work(name))
    while run.turn():
        assert (state.value, FLAG.get()) == ("outside", "caller's")
    assert len(seen) == 60
    assert all(name == value == flag for name, value, flag in seen)
    assert [name for name, *_ in seen] != sorted(name for name, *_ in seen), "it was shaken"


def test_outside_of_a_coroutine_it_polls_in_place() -> None:
    polls = list[None]()
    run = alone(poll=lambda: polls.append(None))
    run.give_way()
    run.give_way(lambda: len(polls) >= 3)
    assert len(polls) >= 3


class Together:
    """Ranks in threads that meet at each agreement."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size, timeout=20)
        self._said: list[list[int]] = [[] for _ in range(size)]
        self.rounds = 0

    def rank(self, me: int) -> Any:
        outer = self

        class Rank:
            size = outer.size

            def least(self, numbers: Sequence[int]) -> list[int]:
                outer._said[me] = list(numbers)
                outer._barrier.wait()
                assert len({len(said) for said in outer._said}) == 1, "ranks are out of step"
                result = [min(column) for column in zip(*outer._said, strict=True)]
                outer._barrier.wait()
                outer.rounds += me == 0
                return result

        return Rank()


@given(st.integers(0, 2**31), st.data())
def test_ranks_switch_alike_whatever_arrives_when(seed: int, data: st.DataObject) -> None:
    """Blocks reach the ranks at different times, one fails: all run the same pieces in one order.

    Rule: a rank never waits in place for another instance. Red when a rank decides by what is
    there at itself alone.
    """
    size, names = 2, ["x", "y", "z"]
    failing = data.draw(st.sampled_from([None, *names]))
    urgent = data.draw(st.tuples(*[st.integers(0, 1) for _ in names]))
    ranks = Together(size)
    orders: list[list[str]] = [[] for _ in range(size)]
    problems: list[BaseException] = []

    def run_rank(me: int) -> None:
        mine, shared = random.Random(seed * 7 + me), random.Random(seed)
        clock = Clock()
        run = alone(
            clock,
            ranks=ranks.rank(me),
            leads=me == 0,
            stretch_s=mine.random(),
            expected=lambda: mine.random() < 0.3,
            shake=shared if seed % 2 else None,
        )

        def work(name: str) -> Callable[[], None]:
            def body() -> None:
                try:
                    run.give_way()
                    for step in range(4):
                        polls = mine.randrange(4)
                        due = [polls]

                        def there(due: list[int] = due) -> bool:
                            due[0] -= 1
                            return due[0] < 0

                        run.give_way(there)
                        if name == failing and step == 2 and me == 1:
                            run.fail("broke here")
                        clock.now_s += mine.random()
                        orders[me].append(f"{name}{step}")
                    run.give_way()
                    orders[me].append(f"{name} ends")
                except StoppedError:
                    orders[me].append(f"{name} stopped")

            return body

        try:
            for number, name in enumerate(names):
                run.start(name, (-urgent[number], number), work(name))
            while len(run):
                run.turn()
        except BaseException as error:
            problems.append(error)
            raise

    threads = [threading.Thread(target=run_rank, args=(me,)) for me in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    ends = [[o for o in order if " " in o or o.endswith("0")] for order in orders]
    assert sorted(ends[0]) == sorted(ends[1])
    alike = [o for o in orders[0] if not o.startswith(failing or "-")]
    assert alike == [o for o in orders[1] if not o.startswith(failing or "-")]
    for name in names:
        expected = f"{name} stopped" if name == failing else f"{name} ends"
        assert expected in orders[0]


def test_who_has_nothing_to_run_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour computes on the same cores; a message ends the wait."""
    clock, slept, messages = Clock(), list[float](), list[bool]()
    me, really_sleep = threading.get_ident(), time.sleep

    def sleep(seconds: float) -> None:
        if threading.get_ident() != me:  # what another test's thread does
            really_sleep(seconds)
            return
        slept.append(seconds)
        clock.now_s += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    run = Coroutines(
        surroundings=Globals(),
        ranks=Alone(),
        leads=True,
        stretch_s=1.0,
        clock=clock,
        interrupted=lambda: bool(messages),
    )

    def waits() -> None:
        run.give_way()
        run.give_way(lambda: False)

    run.start("waits", (0, 0), waits)
    assert run.turn()
    assert not run.turn()
    assert sum(slept) >= LONGEST_WAIT_S
    assert len(slept) < LONGEST_WAIT_S / SHORTEST_SLEEP_S, "it does not spin"
    slept.clear()
    messages.append(True)
    assert not run.turn()
    assert slept == []


def test_a_chunk_stands_still_while_what_passes_it_waits_for_a_partner() -> None:
    """Red when it uses the time: its pieces are long, and the partner's block comes soon."""
    clock, said, there = Clock(), list[str](), list[bool]()
    run = alone(clock, stretch_s=1.0)
    run.start("long", (0, 1), steps(run, said, "l", clock, 3))
    run.turn()

    def short() -> None:
        run.give_way()
        said.append("asks")
        run.give_way(lambda: bool(there))
        said.append("has")

    run.start("short", (-1, 2), short)
    run.turn()
    assert not run.turn()
    assert said == ["l0", "asks"]
    there.append(True)
    while run.turn():
        pass
    assert said == ["l0", "asks", "has", "l1", "l2"]


def test_a_long_chunk_stands_still_while_something_else_is_about_to_go_on() -> None:
    """Red when a long piece begins between a short prompt's order and the next one."""
    clock, said, coming = Clock(), list[str](), [False]
    run = alone(clock, stretch_s=1.0, expected=lambda: coming[0])
    run.start("long", (0, 1), steps(run, said, "l", clock, 3))
    assert run.turn()
    coming[0] = True
    assert not run.turn()
    run.start("short", (-1, 2), steps(run, said, "s", clock, 2))
    while run.turn():
        pass
    assert said == ["l0", "s0", "s1"]
    coming[0] = False
    while run.turn():
        pass
    assert said == ["l0", "s0", "s1", "l1", "l2"]


def test_a_chunk_of_short_pieces_goes_on_whatever_is_expected() -> None:
    """On a GPU nobody gains by its waiting."""
    clock, said = Clock(), list[str]()
    run = alone(clock, stretch_s=1.0, expected=lambda: True)
    run.start("long", (0, 1), steps(run, said, "l", clock, 3, step_s=0.01))
    while run.turn():
        pass
    assert said == ["l0", "l1", "l2"]
