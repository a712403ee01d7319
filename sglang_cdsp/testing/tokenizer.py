"""A byte-level BPE tokenizer, trained on the text of this Python installation."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sglang_cdsp.testing.text import manual_text, source_text

BOS, EOS, PAD, TURN, END_OF_TURN = "<|bos|>", "<|eos|>", "<|pad|>", "<|turn|>", "<|end|>"
SPECIAL_TOKENS = (BOS, EOS, PAD, TURN, END_OF_TURN)
BOS_ID, EOS_ID, PAD_ID = 0, 1, 2
"""Ids are places in ``SPECIAL_TOKENS``: the trainer numbers special tokens first."""

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)

_PIECE_CHARS = 2000


def train_tokenizer(vocab_size: int) -> Tokenizer:
    """Train the tokenizer; the same Python installation always gives the same one.

    Args:
        vocab_size: tokens including the special ones; the text holds enough for 32,768.

    Returns:
        A tokenizer that puts ``BOS`` before a text and round-trips every string.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = manual_text() + source_text()
    tokenizer.train_from_iterator(
        (text[start : start + _PIECE_CHARS] for start in range(0, len(text), _PIECE_CHARS)),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B:1", special_tokens=[(BOS, BOS_ID)]
    )
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"the text of this Python installation yields {tokenizer.get_vocab_size()} tokens, "
            f"not {vocab_size}; ask for fewer"
        )
    return tokenizer


def write_tokenizer(directory: Path, tokenizer: Tokenizer, context_length: int) -> None:
    """Write ``tokenizer`` and its chat template in Hugging Face's files."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
