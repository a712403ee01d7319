"""Programs in SGLang's frontend language, and what they come to on a server."""

from __future__ import annotations

import pydoc_data.topics
from typing import Any

import sglang as sgl

DOCUMENT = "\n\n".join(pydoc_data.topics.topics.values())[:6_000]
CHOICES = ["names", "numbers", "a loop", "exceptions and how they are raised"]


@sgl.function
def choose(s: Any) -> None:
    """A document and a choice about it."""
    s += DOCUMENT
    s += "\n\nThis text is about"
    s += sgl.select("answer", choices=CHOICES)


@sgl.function
def branch(s: Any) -> None:
    """A document, two branches, and what both said in the end."""
    s += DOCUMENT
    forks = s.fork(2)
    for number, fork in enumerate(forks):
        fork += f"\n\n{number}. Is it about Python? "
        fork += sgl.gen("answer", regex="(yes|no)[0-9]{2}", temperature=0)
    s += "\n\n".join(fork["answer"] for fork in forks)
    s += sgl.gen("summary", max_tokens=8, temperature=0, ignore_eos=True)


def chosen(url: str) -> tuple[str, list[float]]:
    """The choice and the normalised log-probability of each."""
    state = choose.run(backend=sgl.RuntimeEndpoint(url))
    scores = state.get_meta_info("answer")["normalized_prompt_logprobs"]
    return state["answer"], [float(score) for score in scores]


def branched(url: str) -> str:
    """All of the text in the end."""
    return str(branch.run(backend=sgl.RuntimeEndpoint(url)).text())
