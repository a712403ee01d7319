"""Prompts of given lengths, cut from real text."""

import random
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from sglang_cdsp.testing.text import manual_text

_STRIDE = 977  # tokens between the starts of two prompts, so that none begins like another


def cut_prompts(checkpoint: Path, lengths: Sequence[int]) -> list[str]:
    """Return one text a length, each of about that many tokens of the checkpoint's tokenizer.

    Args:
        checkpoint: directory with ``tokenizer.json``.
        lengths: tokens, BOS included; cutting may move a text's length by a token or two.
    """
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    text = tokenizer.encode(manual_text(), add_special_tokens=False)
    offsets = text.offsets
    prompts = []
    for index, length in enumerate(lengths):
        first = (index * _STRIDE) % (len(offsets) - length)
        start, end = offsets[first][0], offsets[first + length - 2][1]
        prompts.append(manual_text()[start:end])
    return prompts


def cut_ids(checkpoint: Path, length: int, seed: int) -> list[int]:
    """Return the ids of ``length`` tokens of real text, from a place that the seed chooses.

    Args:
        checkpoint: directory with ``tokenizer.json``.
        length: tokens, BOS included; at most 40,000.
        seed: of the place.
    """
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    text = manual_text()
    start = random.Random(seed).randrange(len(text) // 2)
    ids = tokenizer.encode(text[start : start + 8 * length + 64]).ids
    if len(ids) < length:
        raise ValueError(f"the text holds {len(ids)} tokens there, not {length}; ask for fewer")
    return list(ids[:length])
