"""What is asked of the servers of one family in one form, and what must come of it."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import requests

from bench.servers.families.greedy import generate
from bench.servers.families.stock import Stock
from sglang_cdsp.testing.answers import Answer, compare
from sglang_cdsp.testing.prompts import cut_ids

TOLERANCE = 1e-3
"""Of a log-probability, float32."""

PAGE = 8
"""KV page size: chunks begin at its multiples."""

AT_ONCE = 6
LONGEST = 3000
MOVED_LENGTHS = (60, 700, 1500)
MOVED_OUTPUT = 48
MOST_ROUNDS = 3

Plan = list[tuple[int, list[int]]]


class NothingThereError(Exception):
    """There is nothing to compare with."""


@dataclass
class Asked:
    """The servers of one cell, and what has been seen of them.

    Attributes:
        pool: URL.
        stock: what answers as the pool has to.
        checkpoint: the model's folder.
        instances: of the pool.
        capacity: KV slots of each.
        seed: of everything that is drawn.
        cases: prompts with plans.
        auto_class: of transformers, that loads the checkpoint; "" where it has no such model.
        info: URL of the pool's own server; in one server the same as ``pool``.
        worst: largest gap between log-probabilities so far.
        notes: what else has been seen, by name.
        planned: the pool's answers to the prompts with drawn plans, once they have been asked.
    """

    pool: str
    stock: Stock
    checkpoint: Path
    instances: int
    capacity: int
    seed: int
    cases: int
    auto_class: str
    info: str
    worst: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)
    planned: list[tuple[list[int], dict[str, Any]]] = field(default_factory=list)


def drawn(asked: Asked) -> list[tuple[list[int], Plan]]:
    """Prompts of real text, each with a plan of one to four chunks on groups that grow."""
    draw = random.Random(asked.seed)
    found = []
    for number in range(asked.cases):
        length = draw.randint(1, draw.choice((40, 400, LONGEST)))
        borders = range(PAGE, length, PAGE)
        chunks = min(len(borders) + 1, draw.randint(1, 4))
        cuts = sorted(draw.sample(borders, chunks - 1))
        sizes = sorted(draw.randint(1, asked.instances) for _ in range(chunks))
        order = draw.sample(range(asked.instances), asked.instances)
        plan = [
            (stop - start, order[:size])
            for (start, stop), size in zip(pairwise([0, *cuts, length]), sizes, strict=True)
        ]
        found.append((cut_ids(asked.checkpoint, length, number), plan))
    return found


def agree(asked: Asked, stock: Any, ours: Any) -> None:
    """Both answers are the same; remembers how far apart their log-probabilities are."""
    found = compare(Answer.of(stock), Answer.of(ours), TOLERANCE)
    asked.worst = max(asked.worst, found.worst)
    asked.notes["tokens"] = asked.notes.get("tokens", 0) + found.compared


def planned(asked: Asked) -> list[tuple[list[int], dict[str, Any]]]:
    """Drawn prompts, with the pool's answers by drawn plans; asked once, several at a time."""

    def ask(case: tuple[list[int], Plan]) -> tuple[list[int], dict[str, Any]]:
        tokens, plan = case
        params = {"custom_params": {"cdsp_plan": plan}}
        return tokens, generate(asked.pool, tokens, sampling_params=params)

    if not asked.planned:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            asked.planned = list(threads.map(ask, drawn(asked)))
    return asked.planned


def forced_plans(asked: Asked) -> None:
    """Drawn prompts with drawn plans: stock's answers."""
    for tokens, answer in planned(asked):
        agree(asked, asked.stock.generate(tokens), answer)
    asked.notes["plans"] = asked.cases


def own_plans(asked: Asked) -> None:
    """A burst that the pool plans itself: stock's answers."""
    prompts = [tokens for tokens, _ in drawn(asked)[:AT_ONCE]]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = list(threads.map(lambda tokens: generate(asked.pool, tokens), prompts))
    for tokens, answer in zip(prompts, answers, strict=True):
        agree(asked, asked.stock.generate(tokens), answer)


def prompt_logprobs(asked: Asked) -> None:
    """Log-probabilities of the prompt, each from the member that has its row."""
    tokens = cut_ids(asked.checkpoint, 700, 5)
    plan = {"custom_params": {"cdsp_plan": [[304, [1]], [396, [1, 0]]]}}
    mine = generate(asked.pool, tokens, logprob_start_len=0, sampling_params=plan)["meta_info"]
    theirs = asked.stock.generate(tokens, logprob_start_len=0)["meta_info"]
    name = "input_token_logprobs"
    assert [entry[1] for entry in mine[name]] == [entry[1] for entry in theirs[name]]
    pairs = zip(mine[name], theirs[name], strict=True)
    gaps = [abs(a[0] - b[0]) for a, b in pairs if a[0] is not None]
    assert len(gaps) == len(tokens) - 1
    assert max(gaps) <= TOLERANCE, f"a log-probability is off by {max(gaps)}"
    asked.worst = max(asked.worst, *gaps)


def grammar(asked: Asked) -> None:
    """An answer under a grammar is one, and stock's."""
    tokens = cut_ids(asked.checkpoint, 500, 8)
    params: dict[str, Any] = {"regex": "[a-f]{12}", "max_new_tokens": 24, "ignore_eos": False}
    plan = {"custom_params": {"cdsp_plan": [[200, [0]], [300, [0, 1]]]}}
    ours = generate(asked.pool, tokens, sampling_params={**params, **plan})
    assert set(ours["text"]) <= set("abcdef"), ours["text"]
    assert ours["text"] == asked.stock.generate(tokens, sampling_params=params)["text"]


def aborts(asked: Asked) -> None:
    """Clients that leave while their prompts are computed or decoded."""
    tokens = cut_ids(asked.checkpoint, LONGEST, 9)
    for number in range(4):
        body: dict[str, Any] = {
            "input_ids": tokens,
            "sampling_params": {"max_new_tokens": 64, "ignore_eos": True},
            "stream": True,
        }
        try:
            timeout = (5.0, 0.05 + 0.3 * number)
            url = f"{asked.pool}/generate"
            with requests.post(url, json=body, stream=True, timeout=timeout) as response:
                next(response.iter_lines(chunk_size=1), None)
        except requests.RequestException:
            pass
    agree(asked, asked.stock.generate(tokens), generate(asked.pool, tokens))


def as_transformers(asked: Asked) -> None:
    """Every token of the answers by drawn plans is transformers' own model's, and how likely."""
    if not asked.auto_class:
        raise NothingThereError
    # Imported here: they take seconds.
    import sglang  # noqa: F401 - declares torchvision's operators first
    import torch
    import transformers

    model = (
        getattr(transformers, asked.auto_class)
        .from_pretrained(asked.checkpoint, dtype=torch.float32, attn_implementation="eager")
        .eval()
    )
    worst = 0.0
    for tokens, told in planned(asked):
        answer = Answer.of(told)
        with torch.inference_mode():
            # With the answer behind the prompt each of its tokens has the context that it had.
            logits = model(torch.tensor([[*tokens, *answer.tokens[:-1]]])).logits[0]
        for expected, token, top in zip(
            logits[len(tokens) - 1 :].log_softmax(dim=-1), answer.tokens, answer.top, strict=True
        ):
            assert float(expected.max() - expected[token]) <= TOLERANCE, f"not token {token}"
            worst = max(worst, *(abs(p - float(expected[other])) for other, p in top.items()))
    asked.notes["transformers"] = worst
    assert worst <= TOLERANCE, f"a log-probability is off by {worst}"


def turns(asked: Asked) -> None:
    """A prompt that goes on where another one and its answer ended.

    By plans of its own, which compute all of it, and by the policy's, which in one server may start
    from what is cached.
    """
    home, other = asked.instances - 1, 0
    prompt = cut_ids(asked.checkpoint, 700, 30)
    for group in ([home, other], [home], [other, home], None):
        plan = {} if group is None else {"cdsp_plan": [[len(prompt), group]]}
        sampling = {"custom_params": plan} if plan else {}
        ours = generate(asked.pool, prompt, sampling_params=sampling)
        agree(asked, asked.stock.generate(prompt), ours)
        prompt = [*prompt, *Answer.of(ours).tokens, *cut_ids(asked.checkpoint, 500, 31)]


def images(asked: Asked) -> None:
    """An image is refused where the model sees, and changes nothing where it is one of text."""
    dot = (
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
        "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    config = json.loads((asked.checkpoint / "config.json").read_text(encoding="utf-8"))
    if "vision_config" not in config:
        prompt = cut_ids(asked.checkpoint, 300, 40)
        stock = asked.stock.generate(prompt, image_data=dot)
        agree(asked, stock, generate(asked.pool, prompt, image_data=dot))
        return
    body: dict[str, Any] = {
        "text": "What is this?",
        "image_data": dot,
        "sampling_params": {"max_new_tokens": 1},
    }
    response = requests.post(f"{asked.info}/generate", json=body, timeout=60)
    assert response.status_code == requests.codes.bad, response.text[:300]
    assert "images, audio or video" in response.text


def slots(asked: Asked) -> None:
    """Every slot is free, or cached for whoever comes, a while after the last answer."""
    deadline = time.monotonic() + 30
    while True:
        info = requests.get(f"{asked.info}/server_info", timeout=30).json()
        states = [state["cdsp"] for state in info["internal_states"]]
        free = [int(s["free_tokens"]) + int(s.get("cached_tokens") or 0) for s in states]
        if free == [asked.capacity] * asked.instances:
            return
        assert time.monotonic() < deadline, f"slots are held: {free} of {asked.capacity} are free"
        time.sleep(0.2)


def moves(asked: Asked) -> None:
    """Answers that move from seat to seat while they are decoded: stock's, and some have moved."""
    if asked.info != asked.pool:
        raise NothingThereError  # decode servers decode
    prompts = [cut_ids(asked.checkpoint, n, 50 + n) for n in MOVED_LENGTHS]
    sampling = {"max_new_tokens": MOVED_OUTPUT}
    before = _moved(asked)
    for _ in range(MOST_ROUNDS):
        with ThreadPoolExecutor(len(prompts)) as threads:
            running = [
                threads.submit(generate, asked.pool, prompt, sampling_params=sampling)
                for prompt in prompts
            ]
            away = 0
            while wait(running, timeout=0.2).not_done:
                seats = range(asked.instances)
                _turn(asked, {str(s): "prefill" if s == away else "both" for s in seats})
                away = (away + 1) % asked.instances
        _turn(asked, f"{asked.instances}b")
        for prompt, answer in zip(prompts, running, strict=True):
            stock = asked.stock.generate(prompt, sampling_params=sampling)
            agree(asked, stock, answer.result())
        asked.notes["moves"] = _moved(asked) - before
        if asked.notes["moves"]:
            return
    raise AssertionError("no request moved")


def _turn(asked: Asked, roles: str | dict[str, str]) -> None:
    response = requests.post(f"{asked.pool}/cdsp/update", json={"roles": roles}, timeout=60)
    assert response.status_code == requests.codes.ok, response.text[:300]


def _moved(asked: Asked) -> int:
    status = requests.get(f"{asked.pool}/cdsp/status", timeout=60).json()
    return int(status["counters"]["requests_moved"])


FEATURES: Mapping[str, Callable[[Asked], None]] = {
    "forced plans": forced_plans,
    "own plans": own_plans,
    "prompt log-probabilities": prompt_logprobs,
    "grammar": grammar,
    "aborts": aborts,
    "as transformers": as_transformers,
    "turns": turns,
    "moves": moves,
    "images": images,
    "slots": slots,
}
"""In the order in which they are tried; the last one looks at what the others left."""
