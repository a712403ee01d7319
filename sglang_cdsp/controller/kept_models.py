"""Latency models that were measured at a start, kept for the next one.

A file holds one model and what it was measured on. It lies under a name that is made from the
latter, in the user's cache directory (XDG Base Directory Specification, by ``platformdirs``), and
counts only where it says the same inside: a file of something else is named and ignored, as is one
that cannot be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import platformdirs

from sglang_cdsp.args import CACHE_VAR
from sglang_cdsp.planner.errors import LatencyModelError
from sglang_cdsp.planner.latency import LatencyModel

logger = logging.getLogger(__name__)

APP = "sglang-cdsp"
KIND = "sglang-cdsp latency model"
FORMAT = 1


@dataclass(frozen=True)
class MeasuredOn:
    """What the times of a latency model depend on; another of any of these is measured anew.

    Attributes:
        model: its folder, or its name on a hub.
        config: digest of its configuration; "" where that is not known.
        device: what a rank computes on, by the name that the device gives itself.
        dtype: of weights and activations.
        tp_size: ranks of an instance.
        sglang, torch: releases.
        sp_sizes: that are measured, ascending; the last is the number of instances.
        longest_chunk: longest chunk that the measurement may try, in tokens.
        settings: further options of SGLang's that change how long a forward takes.
    """

    model: str
    config: str
    device: str
    dtype: str
    tp_size: int
    sglang: str
    torch: str
    sp_sizes: tuple[int, ...]
    longest_chunk: int
    settings: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The object that stands in the file."""
        return {**asdict(self), "sp_sizes": list(self.sp_sizes), "settings": dict(self.settings)}

    @property
    def file_name(self) -> str:
        """Where its model lies in the folder of kept models."""
        text = json.dumps(self.to_json(), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", Path(self.model).name).strip("-.")[:60]
        return f"{name or 'model'}-{digest}.json"


@dataclass(frozen=True)
class Kept:
    """A model from a file.

    Attributes:
        measured_at: local time of the start that measured it, as text.
    """

    model: LatencyModel
    path: Path
    measured_at: str


class KeptModelError(ValueError):
    """A file is none of ours, or damaged; the message says what is wrong with it."""


def place(stated: str | None) -> Path:
    """The folder of kept models: as stated, else ``SGLANG_CDSP_CACHE``, else the user's cache."""
    named = stated or os.environ.get(CACHE_VAR)
    folder = Path(named).expanduser() if named else platformdirs.user_cache_path(APP, False)
    return folder / "latency"


def read(folder: Path, measured_on: MeasuredOn) -> Kept | None:
    """The model that was kept for this; None where there is none.

    A file that cannot be used is named in the log, and there is none.
    """
    path = folder / measured_on.file_name
    try:
        return _parse(path, path.read_bytes(), measured_on)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = error.strerror or str(error)
    except KeptModelError as error:
        reason = str(error)
    logger.warning(
        "sglang-cdsp: the kept latency model %s is ignored: %s; the pool is measured anew",
        path,
        reason,
    )
    return None


def _parse(path: Path, content: bytes, measured_on: MeasuredOn) -> Kept:
    """What a file says.

    Raises:
        KeptModelError: it cannot be used here.
    """
    try:
        data = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise KeptModelError(f"it is damaged ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise KeptModelError("it is no latency model that a server has kept")
    if data.get("format") != FORMAT:
        raise KeptModelError(f"its format is {data.get('format')!r:.40}, not {FORMAT}")
    if data.get("measured_on") != measured_on.to_json():
        raise KeptModelError("it was measured on something else than its name says")
    try:
        model = LatencyModel.from_json(data.get("latency_model"))
    except LatencyModelError as error:
        raise KeptModelError(f"it is damaged ({error})") from None
    if model.sp_sizes != measured_on.sp_sizes:
        raise KeptModelError(f"it has the SP sizes {list(model.sp_sizes)}")
    return Kept(model, path, str(data.get("measured_at", "earlier"))[:40])


def write(folder: Path, measured_on: MeasuredOn, model: LatencyModel, at: datetime) -> Path | None:
    """Keep a model: whoever reads meanwhile sees the old file or the new one, never a part.

    Returns:
        Its path; None where it cannot be kept, which the log says and which costs nothing now.
    """
    path = folder / measured_on.file_name
    data = {
        "kind": KIND,
        "format": FORMAT,
        "measured_at": at.isoformat(" ", "minutes"),
        "measured_on": measured_on.to_json(),
        "latency_model": model.to_json(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(path, json.dumps(data, indent=2) + "\n")
    except OSError as error:
        logger.warning(
            "sglang-cdsp: the latency model cannot be kept as %s (%s); the next start measures "
            "again. --cdsp-cache or %s names another folder",
            path,
            error.strerror or error,
            CACHE_VAR,
        )
        return None
    return path


def _replace(path: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def kept_or_measured(
    folder: Path,
    measured_on: MeasuredOn,
    measure: Callable[[], LatencyModel],
    *,
    anew: bool = False,
    clock: Callable[[], datetime] = datetime.now,
) -> tuple[LatencyModel, str]:
    """The model of an earlier start if it was kept, else a measured one, which is kept.

    Args:
        anew: measure even so.

    Returns:
        The model, and where it comes from as it follows the words "latency model".
    """
    kept = None if anew else read(folder, measured_on)
    if kept is not None:
        return kept.model, f"measured {kept.measured_at}, kept in {kept.path}"
    model = measure()
    path = write(folder, measured_on, model, clock())
    return model, "measured at this start" + ("" if path is None else f", kept in {path}")
