"""The choice of an OpenGL backend. The backends that work here are tried for real, once."""

import numpy as np
import pytest

from deflow_vision.envs import rendering
from deflow_vision.envs.rendering import Backend, NoRendererError, check_frame, worker_variables
from deflow_vision.types import UserError


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MUJOCO_GL", "LP_NUM_THREADS", "DEFLOW_VISION_DREW_WITH"):
        monkeypatch.delenv(name, raising=False)
    backend = Backend("egl", "vendor", "renderer")
    monkeypatch.setattr(rendering, "probe", lambda: backend)


def test_this_machine_draws_and_says_with_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    backend = rendering.probe()
    assert backend.name in ("egl", "osmesa")
    assert backend.vendor
    assert backend.renderer


def test_no_backend_is_an_error_of_three_lines_that_names_the_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "_try", lambda name: f"no lib{name}")
    rendering._probe.cache_clear()
    with pytest.raises(NoRendererError) as caught:
        rendering.probe()
    rendering._probe.cache_clear()
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "egl: no libegl; osmesa: no libosmesa" in lines[0]
    assert "apt-get install libegl1" in lines[1]
    assert "libosmesa6" in lines[1]


def test_the_users_backend_is_the_only_one_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.setattr(rendering, "_try", lambda name: f"no {name}")
    with pytest.raises(NoRendererError) as caught:
        rendering.probe()
    assert "no glfw" in str(caught.value)
    assert "osmesa:" not in str(caught.value)
    assert "unset it" in str(caught.value)


def test_pixels_are_refused_where_drawing_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(NoRendererError, match="MUJOCO_GL=disable switches drawing off"):
        worker_variables(pixels=True)


def test_a_state_task_needs_no_renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Backend:
        raise NoRendererError("none")

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "probe", fail)
    assert worker_variables(pixels=False) == {"MUJOCO_GL": "disable"}


def test_a_backend_of_the_user_that_fails_is_refused_for_states_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.setattr(rendering, "_try", lambda name: "no display")
    with pytest.raises(NoRendererError, match="glfw: no display"):
        worker_variables(pixels=False)


@pytest.mark.parametrize(("value", "expected"), [("egl", True), ("disable", False)])
def test_variables_tell_whether_a_worker_draws(value: str, expected: bool) -> None:
    assert rendering.draws({"MUJOCO_GL": value}) == expected


@pytest.mark.usefixtures("a_gpu")
def test_variables_of_the_user_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {"DEFLOW_VISION_DREW_WITH": "egl"}
    expected = {"MUJOCO_GL": "egl", "LP_NUM_THREADS": "0", **drawn}
    assert worker_variables(pixels=True) == expected
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("LP_NUM_THREADS", "3")
    assert worker_variables(pixels=True) == drawn


@pytest.mark.usefixtures("a_gpu")
def test_a_worker_does_not_probe_what_its_parent_has_drawn_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> Backend:
        raise AssertionError("probed again")

    variables = worker_variables(pixels=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rendering, "probe", fail)
    assert worker_variables(pixels=True) == {}
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(AssertionError, match="probed again"):
        worker_variables(pixels=True)


def test_an_unknown_render_profile_is_refused_with_the_choices() -> None:
    choices = "unknown render profile 'best'; choose one of: official, fast, draft"
    with pytest.raises(UserError, match=choices):
        rendering.check_profile("best")


def test_a_frame_with_two_values_passes() -> None:
    frame = np.zeros((2, 2, 3), np.uint8)
    frame[0, 0, 0] = 1
    check_frame(frame, "env")
