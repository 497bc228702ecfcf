"""Tests of the progress bar and its plain lines."""

import io
import re

from rich.console import Console

from deflow_vision.training.progress import TrainingProgress

METRICS = {
    "train/critic/loss": 0.12345678,
    "train/actor/divergence": 0.001,
    "train/critic/q_mean": -97.3,
    "val/critic/loss": 0.5,
}


def shown(*, terminal, width=120, enabled=True, steps=(200, 300), **options):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=width, color_system=None)
    with TrainingProgress(1000, 100, enabled=enabled, console=console, **options) as progress:
        for step in steps:
            progress.update(step)
            progress.show(step, METRICS)
    return text.getvalue()


def bar_of(text):
    """What the terminal shows at the end: the last line that was drawn."""
    return re.sub("\x1b\\[[?0-9]*[A-Za-z]|\n", "", text.rpartition("\r")[2])


def test_a_file_gets_one_plain_line_a_log():
    lines = shown(terminal=False, description="offline").splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("offline 200/1000  ")
    for word in ("steps/s", "left", "critic 0.1235", "actor/divergence 0.001", "val/critic 0.5"):
        assert word in lines[1]
    assert "q_mean" not in lines[1]
    assert "\x1b" not in lines[1]


def test_an_evaluation_between_two_steps_does_not_count_in_the_rate():
    lines = shown(terminal=False, steps=(200, 200, 300)).splitlines()
    assert lines[1].split(" left")[0] == lines[0].split(" left")[0]


def test_a_run_that_begins_with_an_evaluation_has_no_rate_yet():
    (line,) = shown(terminal=False, steps=(100,)).splitlines()
    assert "? left" in line


def test_lines_in_a_file_are_not_wrapped():
    assert len(shown(terminal=False, width=40).splitlines()) == 2


def test_a_terminal_gets_a_bar():
    last = bar_of(shown(terminal=True))
    for word in ("300/1000", "steps/s", "critic 0.1235"):
        assert word in last


def test_a_narrow_terminal_keeps_one_line_with_the_count():
    last = bar_of(shown(terminal=True, width=70))
    assert "300/1000" in last
    assert "steps/s" in last
    assert len(last) <= 70


def test_other_processes_show_nothing():
    for terminal in (False, True):
        assert shown(terminal=terminal, enabled=False) == ""
