"""What a member does step by step for a chunk, worked out once and used at each layer.

Working it out takes Python a millisecond and more in a large group, at each of dozens of layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_cdsp.attention.circulation import choose_circulation
from sglang_cdsp.attention.ring_layout import RingLayout, Visible


@dataclass(frozen=True)
class KvStep:
    """One step of the KV ring.

    Attributes:
        receive_rows: rows of the block that comes from the predecessor, 0 for none.
        send: whether the block at hand goes on to the successor.
        parts: what the queries see of the block at hand; of its own a member sees all.
    """

    receive_rows: int
    send: bool
    parts: tuple[Visible, ...]


@dataclass(frozen=True)
class KvRing:
    """The KV ring as one member runs it.

    Attributes:
        successor, predecessor: its neighbours, by instance.
        packs: whether another member needs its block.
    """

    successor: int
    predecessor: int
    packs: bool
    steps: tuple[KvStep, ...]

    @classmethod
    def of(cls, layout: RingLayout) -> KvRing:
        """Work out the steps of ``layout.me``. A block is passed on as far as somebody sees it."""
        me, size = layout.me, layout.size
        hops = [layout.hops(holder) for holder in range(size)]
        steps = []
        for step in range(size):
            holder, following = (me - step) % size, (me - step - 1) % size
            comes = step + 1 < size and hops[following] > step
            steps.append(
                KvStep(
                    layout.block_rows(following) if comes else 0,
                    hops[holder] > step,
                    layout.visible(me, holder) if step else (),
                )
            )
        return cls(
            layout.group[(me + 1) % size], layout.group[me - 1], bool(hops[me]), tuple(steps)
        )


@dataclass(frozen=True)
class QStep:
    """The exchange with the members at one distance.

    Attributes:
        ahead, behind: who serves this member's queries, whose queries it serves; by instance.
        wanted: the own query rows that ``ahead`` can serve.
        guest_rows: query rows that come from ``behind``.
        parts: what these see of the own block, by row of what comes.
    """

    ahead: int
    behind: int
    wanted: slice
    guest_rows: int
    parts: tuple[Visible, ...]

    @property
    def wanted_rows(self) -> int:
        """Number of rows in ``wanted``."""
        return int(self.wanted.stop - self.wanted.start)


@dataclass(frozen=True)
class QRing:
    """The Q ring as one member runs it, by distance from 1 on."""

    steps: tuple[QStep, ...]

    @classmethod
    def of(cls, layout: RingLayout) -> QRing:
        """Work out the steps of ``layout.me``."""
        me, size = layout.me, layout.size
        steps = []
        for distance in range(1, size):
            ahead, behind = (me + distance) % size, (me - distance) % size
            wanted, guests = layout.visible_rows(me, ahead), layout.visible_rows(behind, me)
            parts = tuple(
                Visible(part.first - guests.start, part.last - guests.start, part.keys)
                for part in layout.visible(behind, me)
            )
            steps.append(
                QStep(
                    layout.group[ahead],
                    layout.group[behind],
                    slice(wanted.start, wanted.stop),
                    len(guests),
                    parts,
                )
            )
        return cls(tuple(steps))


@dataclass(frozen=True)
class LayerShape:
    """Of a layer what decides which way costs fewer bytes: heads of one rank, dimensions."""

    kv_heads: int
    q_heads: int
    head_dim: int
    value_dim: int
    element_size: int


def ring_of(layout: RingLayout, shape: LayerShape) -> KvRing | QRing:
    """Choose what circulates for layers of this shape, and work out the steps."""
    way = choose_circulation(
        layout,
        shape.kv_heads,
        shape.q_heads,
        shape.head_dim,
        value_dim=shape.value_dim,
        element_size=shape.element_size,
    )
    return KvRing.of(layout) if way == "kv" else QRing.of(layout)


def note_of(layer: int, step: int) -> int:
    """What both sides of an exchange say of it, so that a block of another step is noticed."""
    return layer << 16 | step
