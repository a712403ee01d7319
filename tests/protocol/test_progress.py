"""Counters that processes share."""

from __future__ import annotations

import multiprocessing

from sglang_cdsp.protocol.progress import CHUNKS, ProgressBoard


def advance(board: ProgressBoard, rank: int, times: int) -> None:
    for _ in range(times):
        ProgressBoard(board.path, 3).advance(rank)


def count_in_another_process(path: str, rank: int) -> None:
    from pathlib import Path

    board = ProgressBoard(Path(path), 3)
    for _ in range(1000):
        board.advance(rank)


def test_each_rank_has_its_counter() -> None:
    board = ProgressBoard.create(3)
    assert board.read() == (0, 0, 0)
    advance(board, 1, 5)
    advance(board, 2, 1)
    assert board.read() == (0, 5, 1)
    assert board.beats() == (0, 0, 0)


def test_other_processes_are_seen() -> None:
    board = ProgressBoard.create(3)
    context = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=count_in_another_process, args=(str(board.path), rank))
        for rank in (0, 2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert board.read() == (1000, 0, 1000)


def test_beats_are_counted_apart_from_layers() -> None:
    board = ProgressBoard.create(2)
    other = ProgressBoard(board.path, 2)
    other.beat(1)
    other.beat(1)
    other.advance(0)
    assert board.beats() == (0, 2)
    assert board.read() == (1, 0)


def test_layers_of_chunks_at_once_are_told_apart() -> None:
    board = ProgressBoard.create(2)
    rank = ProgressBoard(board.path, 2)
    for serial in (7, 8, 7, 7):
        rank.begin_layer(1, serial)
    assert [board.layers(1, serial) for serial in (7, 8, 9)] == [3, 1, 0]
    assert board.layers(0, 7) == 0
    assert board.read() == board.beats() == (0, 0), "counted apart"


def test_a_chunk_that_gets_the_place_of_an_earlier_one_begins_at_nothing() -> None:
    board = ProgressBoard.create(1)
    for _ in range(5):
        board.begin_layer(0, 3)
    board.begin_layer(0, 3 + CHUNKS)
    assert (board.layers(0, 3), board.layers(0, 3 + CHUNKS)) == (0, 1)
