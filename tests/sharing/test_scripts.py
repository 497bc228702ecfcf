"""scripts/export.py, and the ten lines of the README on what it writes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from deflow_vision.sharing import Policy
from scripts import export

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture
def call(run, tmp_path, monkeypatch):
    def call(*flags: str) -> Path:
        arguments = ["export.py", str(run), "--to", str(tmp_path / "out"), *flags]
        monkeypatch.setattr(sys, "argv", arguments)
        export.main()
        return tmp_path / "out"

    return call


def test_the_script_exports_the_checkpoint_that_is_named(call, capsys):
    folder = call("--checkpoint", "3", "--format", "safetensors", "torch-export")
    assert Policy.from_pretrained(folder).record.updates == 3
    assert (folder / "policy.pt2").is_file()
    assert "deflow on reach after 3 updates" in capsys.readouterr().out


def test_the_script_prints_an_error_without_a_traceback(call, capsys):
    with pytest.raises(SystemExit) as stop:
        call("--checkpoint", "5")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_ten_lines_of_the_readme_play_an_episode(call):
    (code,) = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    assert len(code.splitlines()) <= 10
    lines = code.replace('"exports/cube-single"', repr(str(call())))
    assert lines != code
    names: dict[str, object] = {}
    exec(lines, names)
    assert names["terminated"] or names["truncated"]
