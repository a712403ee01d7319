"""Which pages go where, cut into posts of bounded size; and which buffers hold a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_DESCRIPTORS = 4096
"""Most pieces of memory that one post names: an engine's thread is busy for that long."""
MAX_PAGES = 1 << 16
"""Most pages of one post, even where they lie side by side and are one piece."""


@dataclass(frozen=True)
class Pages:
    """Pages to write.

    Attributes:
        source: page numbers in this instance's pool, ``[pages]`` int32.
        place: for each, its page number in decode's pool, ``[pages]`` int32.
    """

    source: npt.NDArray[np.int32]
    place: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.source)


def runs(pages: Pages) -> npt.NDArray[np.int64]:
    """Where a run of pages begins that lie side by side here and at decode, ``[runs]`` int64."""
    if not len(pages):
        return np.empty(0, dtype=np.int64)
    steps = (np.diff(pages.source) != 1) | (np.diff(pages.place) != 1)
    return np.concatenate([[0], np.flatnonzero(steps) + 1])


def posts(pages: Pages, *, per_run: int, per_page: int) -> tuple[Pages, ...]:
    """Cut pages into posts of at most ``MAX_DESCRIPTORS`` pieces and ``MAX_PAGES`` pages each.

    A single page goes into one post however many pieces it has.

    Args:
        per_run: pieces of memory of a run of neighbours, 0 where neighbours are not merged.
        per_page: pieces of memory of a page where neighbours are not merged, else 0.
    """
    if not len(pages):
        return ()
    if per_run:
        cuts = runs(pages)[:: max(1, MAX_DESCRIPTORS // per_run)].tolist()
    else:
        cuts = list(range(0, len(pages), max(1, MAX_DESCRIPTORS // per_page)))
    found = []
    for start, stop in zip(cuts, [*cuts[1:], len(pages)], strict=True):
        for at in range(start, stop, MAX_PAGES):
            part = slice(at, min(stop, at + MAX_PAGES))
            found.append(Pages(pages.source[part], pages.place[part]))
    return tuple(found)


def buffers_by_layer(
    buffers: int, layer_ids: Sequence[int], *, first: int, paired: bool
) -> dict[int, tuple[int, ...]]:
    """Numbers of the KV buffers that hold each layer, in SGLang's order of buffers.

    Args:
        buffers: how many there are.
        layer_ids: the layer of each, where SGLang says so; else empty.
        first: the model's first layer here.
        paired: all K buffers come before all V buffers; else a layer has one buffer.

    Raises:
        ValueError: the buffers do not come in pairs.
    """
    found: dict[int, list[int]] = {}
    if not layer_ids and paired and buffers % 2:
        raise ValueError(
            f"{buffers} KV buffers are not one for K and one for V of each layer: this KV pool's "
            "layout cannot be sent to decode; choose another model or KV cache option"
        )
    layers = buffers // 2 if paired else buffers
    for number in range(buffers):
        layer = layer_ids[number] if layer_ids else first + number % layers
        found.setdefault(layer, []).append(number)
    return {layer: tuple(numbers) for layer, numbers in found.items()}
