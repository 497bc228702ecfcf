"""The official code: timed where there is a checkout of it, scaled where there is none."""

from __future__ import annotations

import json
import sys

import pytest

from deflow_vision.timing import reference as module
from deflow_vision.timing.machine import Machine
from deflow_vision.timing.reference import RECORDED, Reference
from deflow_vision.types import UserError

FOUND = {"state": 50.0, "pixels": 500.0, "action, state": 0.5, "action, pixels": 2.0}


def machine(**products):
    return Machine("", products, 1.0, False, 0.0)


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents/deflow.py").touch()
    return tmp_path


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Stands for the script that needs jax; says what it is told to."""
    path = tmp_path / "timer.py"
    monkeypatch.setattr(module, "SCRIPT", path)

    def write(text):
        path.write_text(text)

    write(f"import sys; print('words', sys.argv[1:]); print({json.dumps(json.dumps(FOUND))})")
    return write


def test_without_a_checkout_recorded_times_are_scaled_by_the_products():
    reference = Reference()
    reference.run()
    half = machine(**{"torch in float32": 100.0, "oneDNN in float32": 230.0})
    sample, basis = reference.time("state", half)
    assert sample.values == (2 * RECORDED["state"],)
    assert "scaled" in basis


def test_where_nothing_was_recorded_nothing_is_scaled():
    assert Reference().time("state", machine(**{"torch in float32": 9000.0})) is None


def test_a_checkout_is_timed_each_time_it_is_run(checkout, script):
    reference = Reference(checkout, sys.executable)
    reference.run()
    reference.run()
    sample, basis = reference.time("action, pixels", machine())
    assert sample.values == (2.0, 2.0)
    assert "timed beside it" in basis


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no agents/deflow.py"):
        Reference(tmp_path).run()


@pytest.mark.parametrize(
    ("text", "python", "match"),
    [
        ("import jax_of_nowhere", sys.executable, "jax_of_nowhere.*--reference-python"),
        ("", sys.executable, "failed"),
        ("", "/none/python", "cannot be run"),
    ],
)
def test_code_that_does_not_run_is_an_error_with_its_reason(checkout, script, text, python, match):
    script(text)
    with pytest.raises(UserError, match=match):
        Reference(checkout, python).run()
