"""Ask several questions about one long document, with SGLang's frontend language.

The requests go out together. Each is long, so each is prefilled in chunks on growing groups of
instances, side by side with the others.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
from pathlib import Path
from typing import Any

import sglang as sgl

QUESTIONS = ("What is this text about?", "Which term is explained first?", "Name one exception.")


@sgl.function
def ask(s: Any, document: str, question: str, tokens: int) -> None:
    """One request: the document, a question, and an answer of at most ``tokens`` tokens."""
    # Arguments are added as they are: SGLang traces the program for what all its runs begin with.
    s += document
    s += "\n\nQuestion: "
    s += question
    s += "\nAnswer:"
    s += sgl.gen("answer", max_tokens=tokens, temperature=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="the router")
    parser.add_argument("--document", type=Path, help="a text file (default: Python's manual)")
    parser.add_argument("--characters", type=int, default=16_000, help="of it to send (16000)")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer (32)")
    options = parser.parse_args()
    if options.document:
        document = options.document.read_text(encoding="utf-8")
    else:
        document = "\n\n".join(pydoc_data.topics.topics.values())
    sgl.set_default_backend(sgl.RuntimeEndpoint(options.url))
    asked = [
        {"document": document[: options.characters], "question": q, "tokens": options.tokens}
        for q in QUESTIONS
    ]
    for question, state in zip(QUESTIONS, ask.run_batch(asked), strict=True):
        print(f"{question}\n  {state['answer'].strip()!r}")


if __name__ == "__main__":
    main()
