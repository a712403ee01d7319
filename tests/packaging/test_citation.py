"""CITATION.cff has the form of the Citation File Format 1.2.0, and says what the package says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from sglang_cdsp import __version__

ROOT = Path(__file__).parents[2]

TEXT = {"type": "string", "minLength": 1}
URL = {"type": "string", "pattern": "^(https|http|ftp|sftp)://.+"}
PERSON = {"type": "object", "additionalProperties": False, "minProperties": 1} | {
    "properties": {"family-names": TEXT, "given-names": TEXT, "orcid": URL, "affiliation": TEXT}
}
ENTITY = {"type": "object", "additionalProperties": False, "required": ["name"]} | {
    "properties": {"name": TEXT, "website": URL}
}
AUTHORS = {"type": "array", "minItems": 1, "items": {"anyOf": [PERSON, ENTITY]}}
REFERENCE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["authors", "title", "type"],
    "properties": {
        "type": {"enum": ["article", "conference-paper", "software"]},
        "title": TEXT,
        "authors": AUTHORS,
        "collection-title": TEXT,
        "year": {"type": "integer"},
        "url": URL,
        "notes": TEXT,
        "scope": TEXT,
    },
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["authors", "cff-version", "message", "title"],
    "properties": {
        "cff-version": {"const": "1.2.0"},
        "type": {"enum": ["software", "dataset"]},
        "title": TEXT,
        "message": TEXT,
        "abstract": TEXT,
        "authors": AUTHORS,
        "version": TEXT,
        "license": {"const": "Apache-2.0"},
        "repository-code": URL,
        "keywords": {"type": "array", "minItems": 1, "uniqueItems": True, "items": TEXT},
        "references": {"type": "array", "minItems": 1, "items": REFERENCE},
    },
}
"""The part of the format's schema that the file uses."""


@pytest.fixture(scope="module")
def citation() -> dict[str, Any]:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_it_has_the_form(citation: dict[str, Any]) -> None:
    jsonschema.validate(citation, SCHEMA)


@pytest.mark.parametrize("gone", SCHEMA["required"])
def test_the_form_has_required_keys(citation: dict[str, Any], gone: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({k: v for k, v in citation.items() if k != gone}, SCHEMA)


def test_it_says_what_the_package_says(citation: dict[str, Any]) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert citation["version"] == __version__
    assert f'Homepage = "{citation["repository-code"]}"' in project
    assert f'license = "{citation["license"]}"' in project


def test_the_paper_comes_first(citation: dict[str, Any]) -> None:
    assert citation["references"][0]["title"].startswith("Tetris: ")
