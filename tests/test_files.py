"""Files appear whole or not at all."""

import pytest

from deflow_vision.files import is_sound, read_json, seal, write_whole


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


def test_text_that_is_none_is_refused_without_repeating_it(tmp_path):
    path = tmp_path / "state.json"
    path.write_bytes(b'{"step": 3}' + b"\xff" * 10_000)
    with pytest.raises(ValueError, match=r"^byte 11 is not UTF-8 \(invalid start byte\)$"):
        read_json(path)


def test_values_are_sound_with_the_seal_that_was_made_for_them_alone():
    sealed = seal({"step": 3, "sizes": (1, 2)})
    assert is_sound(sealed)
    assert not is_sound(sealed | {"step": 4})
    assert not is_sound({key: value for key, value in sealed.items() if key != "digest"})
