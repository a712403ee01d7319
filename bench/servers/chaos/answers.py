"""What a stock server answers, and whether an answer is that one, token by token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests

from bench.servers.chaos.load import Question

TIE = 1e-3
"""Where stock's two best tokens are this close, rounding may choose either; what follows has
another context. The serving tests allow log-probabilities the same."""

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class StockAnswer:
    """What stock answered.

    Attributes:
        tokens: ids in order.
        margins: per token, by how much its log-probability lies ahead of the second best's.
    """

    tokens: tuple[int, ...]
    margins: tuple[float, ...]


def is_right(stock: StockAnswer, tokens: Sequence[int]) -> bool:
    """Whether an answer is stock's, up to a tie of stock's own two best tokens."""
    if len(tokens) != len(stock.tokens):
        return False
    for index, token in enumerate(tokens):
        if token != stock.tokens[index]:
            return stock.margins[index] < TIE
    return True


def kept(path: Path) -> dict[str, StockAnswer]:
    """Answers that ``keep`` wrote, by ``key_of``; none where there is no file.

    They hold for one checkpoint and one release of SGLang.
    """
    if not path.exists():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {
        key: StockAnswer(tuple(entry["tokens"]), tuple(entry["margins"]))
        for key, entry in entries.items()
    }


def keep(path: Path, answers: Mapping[Question, StockAnswer]) -> None:
    """Write answers, beside those that are in the file already."""
    new = {key_of(question): answer for question, answer in answers.items()}
    entries = {key: asdict(answer) for key, answer in {**kept(path), **new}.items()}
    path.write_text(json.dumps(entries) + "\n", encoding="utf-8")


def key_of(question: Question) -> str:
    """A name of a question in a file."""
    return hashlib.sha256(json.dumps([question.prompt, question.asks]).encode()).hexdigest()


def ask_stock(url: str, questions: Iterable[Question]) -> dict[Question, StockAnswer]:
    """Ask a stock server that prefills and decodes, one question after the other.

    Raises:
        RuntimeError: it did not answer one.
    """
    return {question: _ask(url, question) for question in dict.fromkeys(questions)}


def _ask(url: str, question: Question) -> StockAnswer:
    sampling = {"temperature": 0, "ignore_eos": True, **dict(question.asks)}
    body: dict[str, Any] = {
        "input_ids": list(question.prompt),
        "sampling_params": sampling,
        "return_logprob": True,
        "top_logprobs_num": 2,
    }
    response = requests.post(f"{url}/generate", json=body, timeout=TIMEOUT_S)
    if response.status_code != 200:
        raise RuntimeError(
            f"the stock server answers {len(question.prompt)} tokens with "
            f"{response.status_code}: {response.text[:300]}"
        )
    return stock_answer(response.json())


def stock_answer(data: Mapping[str, object]) -> StockAnswer:
    """Read ``/generate``'s JSON with two best tokens each."""
    meta = data["meta_info"]
    assert isinstance(meta, dict)
    output = data["output_ids"]
    assert isinstance(output, list)
    margins = []
    for tops in meta["output_top_logprobs"]:
        best, *second = sorted((float(entry[0]) for entry in tops), reverse=True)
        margins.append(best - second[0] if second else float("inf"))
    return StockAnswer(tuple(int(token) for token in output), tuple(margins))
