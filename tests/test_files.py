"""Files appear whole or not at all."""

import pytest

from deflow_vision.files import write_whole


def test_a_file_appears_under_its_name_when_it_is_complete(tmp_path):
    path, seen = tmp_path / "made" / "page.html", []

    def write(part):
        part.write_text("half")
        seen.append((part.suffix, path.exists()))
        part.write_text("whole")

    assert write_whole(path, write) == path
    assert seen == [(".html", False)]
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")

    def write(part):
        part.write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_whole(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
