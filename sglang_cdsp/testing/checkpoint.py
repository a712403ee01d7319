"""A small Llama checkpoint whose answers depend on every part of a long prompt.

Its weights are drawn from a seed. Ordinary initialisation would leave attention nearly uniform: a
prompt of thousands of tokens would average out, and a server that lost some of them would still
give the right answer. Here the query and key projections are scaled so that attention is peaked,
and its output so that it rivals the residual stream; so a change in one early token moves the last
position's logits by far more than float32 rounds them.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from sglang_cdsp.testing.tokenizer import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    SPECIAL_TOKENS,
    train_tokenizer,
    write_tokenizer,
)

Array = npt.NDArray[np.float32]
WEIGHTS = "model.safetensors"
COMPLETE = "checkpoint.json"
"""Written last: what the directory was made from, and that it is whole."""


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of the checkpoint's model."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 32
    max_position_embeddings: int = 65_536
    rope_theta: float = 500_000.0


@dataclass(frozen=True)
class WeightScale:
    """Gains of the projections over unit-variance ones, chosen by measurement.

    With these, replacing one of the first ten tokens of a 4,000-token prompt moves the last
    position's logits by about 1, float32 against float64 moves them by 2e-5, and the best two
    logits are typically 0.8 apart.
    """

    query_key: float = 1.5
    attention_output: float = 2.0
    mlp_output: float = 1.0
    logits: float = 5.0


def llama_config(shape: LlamaShape, dtype: str = "float32") -> dict[str, object]:
    """Return the ``config.json`` of a checkpoint whose weights are kept in ``dtype``."""
    sizes = asdict(shape)
    theta = sizes.pop("rope_theta")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **sizes,
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
    }


def draw_weights(
    shape: LlamaShape, seed: int, scale: WeightScale | None = None
) -> Iterator[tuple[str, Array]]:
    """Draw the weights, name by name, float32 in Hugging Face's layout [out, in].

    Special tokens get no output weights: their logits are 0 while the best is near 20, so greedy
    decoding never ends a text early.
    """
    scale = scale or WeightScale()
    generator = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, gain: float) -> Array:
        values = generator.standard_normal((rows, columns), dtype=np.float32)
        return values * np.float32(gain / columns**0.5)

    hidden, mlp = shape.hidden_size, shape.intermediate_size
    query = shape.num_attention_heads * shape.head_dim
    key = shape.num_key_value_heads * shape.head_dim
    ones = np.ones(hidden, dtype=np.float32)
    yield "model.embed_tokens.weight", matrix(shape.vocab_size, hidden, hidden**0.5)
    for layer in range(shape.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.self_attn.q_proj.weight", matrix(query, hidden, scale.query_key)
        yield f"{prefix}.self_attn.k_proj.weight", matrix(key, hidden, scale.query_key)
        yield f"{prefix}.self_attn.v_proj.weight", matrix(key, hidden, 1.0)
        yield f"{prefix}.self_attn.o_proj.weight", matrix(hidden, query, scale.attention_output)
        yield f"{prefix}.mlp.gate_proj.weight", matrix(mlp, hidden, 1.0)
        yield f"{prefix}.mlp.up_proj.weight", matrix(mlp, hidden, 1.0)
        yield f"{prefix}.mlp.down_proj.weight", matrix(hidden, mlp, scale.mlp_output)
        yield f"{prefix}.input_layernorm.weight", ones
        yield f"{prefix}.post_attention_layernorm.weight", ones
    yield "model.norm.weight", ones
    head = matrix(shape.vocab_size, hidden, scale.logits)
    head[: len(SPECIAL_TOKENS)] = 0.0
    yield "lm_head.weight", head


def write_checkpoint(
    directory: Path,
    seed: int = 0,
    shape: LlamaShape | None = None,
    *,
    scale: WeightScale | None = None,
    dtype: str = "float32",
    force: bool = False,
) -> Path:
    """Write a complete checkpoint into ``directory``, or leave one that is there already.

    Args:
        directory: made if it does not exist.
        seed: of the weights; the same seed, shape and Python installation give the same files.
        shape: sizes of the model.
        scale: gains of its weights.
        dtype: that they are kept in, float32 or bfloat16.
        force: write even when the directory holds this very checkpoint.

    Returns:
        ``directory``.
    """
    shape, scale = shape or LlamaShape(), scale or WeightScale()
    recipe = {"seed": seed, "shape": asdict(shape), "scale": asdict(scale), "dtype": dtype}
    marker = directory / COMPLETE
    if not force and marker.exists() and json.loads(marker.read_text()) == recipe:
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    tokenizer = train_tokenizer(shape.vocab_size)
    write_tokenizer(directory, tokenizer, shape.max_position_embeddings)
    generation = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    _write_json(directory / "config.json", llama_config(shape, dtype))
    _write_json(directory / "generation_config.json", {**generation, "do_sample": False})
    _save(draw_weights(shape, seed, scale), directory / WEIGHTS, dtype)
    (directory / WEIGHTS).chmod(0o644)  # the library writes it for its owner alone
    _write_json(marker, recipe)
    return directory


def _save(weights: Iterator[tuple[str, Array]], path: Path, dtype: str) -> None:
    if dtype == "float32":
        save_file(dict(weights), path, metadata={"format": "pt"})
        return
    # numpy has no bfloat16.
    import torch
    from safetensors.torch import save_file as save_tensors

    kept = getattr(torch, dtype)
    tensors = {name: torch.from_numpy(array).to(kept) for name, array in weights}
    save_tensors(tensors, path, metadata={"format": "pt"})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write a checkpoint from the command line."""
    parser = argparse.ArgumentParser(description="Write the small demonstration checkpoint.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    parser.add_argument("--force", action="store_true", help="write it even if it is there")
    arguments = parser.parse_args()
    try:
        print(write_checkpoint(arguments.directory, arguments.seed, force=arguments.force))
    except OSError as error:
        reason = error.strerror or error
        parser.exit(2, f"{arguments.directory}: {reason}; name a folder that can be written\n")


if __name__ == "__main__":
    main()
