"""Whether outputs can be written is found out first, and what is there stays as it is."""

from pathlib import Path

import pytest

from sglang_cdsp.cli.outputs import OutputError, check_file, check_folder, check_input


def test_a_file_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    fresh, old = tmp_path / "new" / "deep" / "fresh", tmp_path / "old"
    old.write_text("kept")
    check_file(fresh, "--out")
    check_file(old, "--out")
    check_file(None, "--out")
    assert not fresh.exists()
    fresh.write_text("now it is easy")
    assert old.read_text() == "kept"


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b", "--out")
    check_folder(None, "--out")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_what_cannot_be_written_or_read_is_one_line_with_the_flag(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for check, path in (
        (check_file, tmp_path),
        (check_file, tmp_path / "file" / "under"),
        (check_file, Path("/proc/nobody/writes/here")),
        (check_folder, tmp_path / "file"),
        (check_folder, tmp_path / "file" / "under"),
        (check_input, tmp_path / "absent"),
        (check_input, tmp_path),
    ):
        with pytest.raises(OutputError) as error:
            check(path, "--flag")
        assert str(error.value).startswith(f"--flag {path}: ")
        assert len(str(error.value).splitlines()) == 1
