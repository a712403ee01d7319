"""Every patch is a mail that ``git am`` takes and applies to the SGLang that is pinned here."""

import email
import email.policy
import re
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.patches.tree import PACKAGES, PATCHES, copy_touched, git_apply, patch_files, touched

ALL = patch_files()
each_patch = pytest.mark.parametrize("patch", ALL, ids=lambda patch: patch.stem)


def read(patch: Path) -> EmailMessage:
    """Parse a patch as the mail that it is."""
    message = email.message_from_bytes(patch.read_bytes(), policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


def test_patches_are_numbered_without_a_gap() -> None:
    assert [patch.name[:5] for patch in ALL] == [f"{number:04}-" for number in range(1, 16)]


@each_patch
def test_applies_alone(patch: Path, tmp_path: Path) -> None:
    copy_touched(tmp_path, [patch])
    done = git_apply(tmp_path, patch, "--check", "--verbose")
    assert done.returncode == 0, done.stderr
    # Git skips, with status 0, what lies outside of the directory; so look at what it checked.
    assert done.stderr.count("Checking patch") == len(touched(patch)) > 0, done.stderr


@each_patch
def test_does_not_apply_twice(patch: Path, tmp_path: Path) -> None:
    copy_touched(tmp_path, [patch])
    assert git_apply(tmp_path, patch).returncode == 0
    assert git_apply(tmp_path, patch, "--check").returncode != 0
    assert git_apply(tmp_path, patch, "--check", "--reverse").returncode == 0


@each_patch
def test_touches_only_the_runtime(patch: Path) -> None:
    """The server's or the router's, and no patch is for both: they are released apart."""
    roots = ("python/sglang/srt", f"{PACKAGES['sglang_router']}/sglang_router")
    assert [all(name.is_relative_to(r) for name in touched(patch)) for r in roots].count(True) == 1


@each_patch
def test_says_what_upstream_needs_to_know(patch: Path) -> None:
    message = read(patch)
    body = message.get_content()
    assert re.fullmatch(r"\[PATCH\] .{10,70}", message["Subject"].replace("\n", ""))
    assert re.search(r"^(Symptom|Motivation): ", body, re.MULTILINE)
    assert re.search(r"^(Fix|Change): ", body, re.MULTILINE)
    assert re.search(r"^Tested: ", body, re.MULTILINE)


def test_patched_files_compile(patched_tree: Path) -> None:
    """All patches together; the fixture applies them in their order."""
    for name in set().union(*map(touched, ALL)):
        compile((patched_tree / name).read_text(), str(name), "exec")


def test_readme_lists_each_patch_once() -> None:
    table = re.findall(r"^\| \[(\d{4})\]\((\S+?)\)", (PATCHES / "README.md").read_text(), re.M)
    assert table == [(patch.name[:4], patch.name) for patch in ALL]
