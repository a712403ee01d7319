"""What `profile` can know to be wrong before a server starts."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sglang_cdsp import architectures
from sglang_cdsp.cli.grid import Point, chains
from sglang_cdsp.cli.needs import SERVER, lacking
from sglang_cdsp.cli.outputs import OutputError, check_file, check_folder
from sglang_cdsp.planner.errors import LatencyModelError
from sglang_cdsp.planner.fit import Sample, fit_model
from sglang_cdsp.planner.latency import Coefficients

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
STAND_IN = Coefficients(0.01, 1e-5, 1e-9, 1e-9)
"""Times for a trial of the fit: any that grow as Equation 1 does."""


class ProfileError(RuntimeError):
    """The pool cannot be measured, or could not; says why and what to change."""


def check_all(options: argparse.Namespace, sizes: Sequence[int]) -> Path | str:
    """Everything that the command line decides; returns the model for the server's command.

    Raises:
        ProfileError: the measurement could not start, not be fitted, or not be written.
    """
    gone = lacking(SERVER)
    if gone:
        raise ProfileError(gone)
    cores = os.cpu_count() or 1
    if sizes[-1] > cores:
        raise ProfileError(
            f"--sp-sizes {sizes[-1]} needs as many instances, and each a core of its own; this "
            f"machine has {cores}"
        )
    check_fit(sizes, options.max_tokens, options.steps)
    try:
        check_file(options.out, "--out")
        check_file(options.samples, "--samples")
        check_folder(options.log_directory, "--log-directory")
    except OutputError as error:
        raise ProfileError(str(error)) from None
    if options.samples is not None and options.samples.resolve() == options.out.resolve():
        raise ProfileError("--samples and --out are the same file; give two")
    model, config = find_model(options.model_path)
    if architectures.expands(config):
        check_fit(sizes, options.max_tokens, options.steps, expands=True)
    longest = context_length(config)
    own = any(flag.partition("=")[0] == "--context-length" for flag in options.flags)
    if longest is not None and options.max_tokens >= longest and not own:
        raise ProfileError(
            f"--max-tokens {options.max_tokens}: prompts of this model must be shorter than its "
            f"context of {longest} tokens; give less, or the server's --context-length after --"
        )
    return model


def check_fit(sizes: Sequence[int], longest: int, steps: int, *, expands: bool = False) -> None:
    """Fits made-up times of the whole grid: whether it has the points that the fit needs.

    Args:
        sizes, longest, steps: of the grid.
        expands: see `fit_coefficients`.

    Raises:
        ProfileError: it has not.
    """
    points: set[Point] = {p for c in chains(sizes, longest, steps) for p in c.points().values()}
    samples = [
        Sample(p.size, p.history, p.tokens, STAND_IN.predict(p.history, p.tokens))
        for p in sorted(points, key=lambda p: (p.size, p.history, p.tokens))
    ]
    try:
        fit_model(samples, model="trial", device="none", expands=expands)
    except LatencyModelError as error:
        raise ProfileError(
            f"--steps {steps} --max-tokens {longest} give too small a grid, half of which is "
            f"fitted: {error}"
        ) from None


def find_model(text: str) -> tuple[Path | str, Mapping[str, Any]]:
    """A folder here, or else a model's name on the hub; and its `config.json`, {} if unknown.

    Raises:
        ProfileError: it is neither.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        return path, _read(path / "config.json", text)
    if path.exists() or "://" in text:
        return (path if path.exists() else text), {}
    if not HUB_NAME.fullmatch(text):
        raise ProfileError(
            f"--model-path {text}: no such folder; give one, or a name like org/model"
        )
    from huggingface_hub import hf_hub_download, logging

    if os.environ.get("SGLANG_USE_MODELSCOPE", "").lower() in ("1", "true"):
        return text, {}
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        config = hf_hub_download(text, "config.json")
    except (OSError, ValueError) as error:
        kind = type(error).__name__
        raise ProfileError(
            f"--model-path {text}: no folder of that name here, and the hub does not give the "
            f"model ({kind}); give a folder, check the name, or log in to the hub"
        ) from None
    return text, _read(Path(config), text)


def model_expands(text: str) -> bool:
    """Whether history costs a model something of its own (`Coefficients.e`).

    Raises:
        ProfileError: as `find_model`.
    """
    return architectures.expands(find_model(text)[1])


def context_length(config: Mapping[str, Any]) -> int | None:
    """The model's context in tokens where its config says so plainly, else None."""
    if config.get("rope_scaling"):
        return None
    longest = config.get("max_position_embeddings")
    return longest if isinstance(longest, int) else None


def _read(path: Path, model: str) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(
            f"--model-path {model}: {path.name}: {error.strerror or error}; give the folder of a "
            "model in Hugging Face's layout"
        ) from None
    except ValueError as error:
        raise ProfileError(f"--model-path {model}: {path.name} is not JSON: {error}") from None
    return config if isinstance(config, dict) else {}
