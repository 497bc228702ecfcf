"""Drawing stored states, with the real environments in workers and, for the rest, without any."""

from __future__ import annotations

import contextlib
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deflow_vision.datasets import likeness
from deflow_vision.datasets import render as rendering
from deflow_vision.datasets.card import checksum
from deflow_vision.datasets.drawable import advise_drawing
from deflow_vision.datasets.likeness import Likeness, compare, likeness_of, resolution_of
from deflow_vision.datasets.render import Renderer, render
from deflow_vision.datasets.store import StoreError, StoreWriter, open_store, verify
from deflow_vision.envs.make import make_collection_env
from deflow_vision.envs.rendering import worker_variables
from deflow_vision.envs.states import draw_state, state_shapes
from deflow_vision.envs.worker import Worker
from deflow_vision.types import UserError

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {"qpos": (3,), "qvel": (2,)}
RED, BLUE = 0, 2


class Arms:
    """Pixel environments of several names in one process."""

    def __init__(self) -> None:
        self._envs: dict[str, Any] = {}

    def steps(self, name: str, count: int) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
        """Frames of an episode as they are observed, and the simulator's states behind them."""
        env = self._env(name)
        observation, info = env.reset(seed=0)
        frames, infos = [observation], [info]
        for action in np.random.default_rng(0).uniform(-1, 1, (count, 5)):
            observation, _, _, _, info = env.step(action)
            frames.append(observation)
            infos.append(info)
        return frames, [{key: info[key] for key in state_shapes(env)} for info in infos]

    def draw(self, name: str, state: Mapping[str, np.ndarray]) -> np.ndarray:
        return draw_state(self._env(name), state)

    def draw_small(self, name: str, profile: str, state: Mapping[str, np.ndarray]) -> np.ndarray:
        env = make_collection_env(name, render_profile=profile, resolution=32)
        frame = draw_state(env, state)
        env.close()
        return frame

    def _env(self, name: str) -> Any:
        if name not in self._envs:
            self._envs[name] = make_collection_env(name)
        return self._envs[name]


@pytest.fixture(scope="module")
def arms() -> Iterator[Worker]:
    with Worker(Arms, variables=worker_variables(pixels=True)) as worker:
        yield worker


@pytest.mark.parametrize("name", ["visual-cube-single", "visual-puzzle-3x3"])
def test_a_state_is_drawn_as_it_was_observed_bit_for_bit(arms: Worker, name: str) -> None:
    frames, states = arms.call("steps", name, 1)
    assert not np.array_equal(frames[0], frames[1])
    for frame, state in zip(frames, states, strict=True):
        assert np.array_equal(arms.call("draw", name, state), frame)
    stored = {key: np.float32(value) for key, value in states[1].items() if key != "button_states"}
    moved = arms.call("draw", name, {**states[1], **stored}).astype(int) - frames[1]
    assert np.abs(moved).max() <= 8


def test_buttons_have_the_colours_of_their_states(arms: Worker) -> None:
    state = arms.call("steps", "visual-puzzle-3x3", 0)[1][0]
    red, blue = (
        arms.call("draw", "visual-puzzle-3x3", {**state, "button_states": np.full(9, value)})
        for value in (0, 1)
    )
    changed = np.abs(red.astype(int) - blue).max(axis=2) > 60
    assert changed.sum() > 30
    assert red[changed][:, RED].mean() > red[changed][:, BLUE].mean() + 50
    assert blue[changed][:, BLUE].mean() > blue[changed][:, RED].mean() + 50


def write_states(
    path: Path,
    states: Mapping[str, np.ndarray],
    lengths: Mapping[str, tuple[int, ...]],
    env_id: str,
    observations: np.ndarray | None = None,
) -> Path:
    """A store of so many states, taken from `states` one after another; two goals."""
    observations = states["qpos"] if observations is None else observations
    with StoreWriter(
        path,
        source="test",
        env_id=env_id,
        seeds={"collect": 5},
        observation_shape=observations.shape[1:],
        observation_dtype="uint8" if observations.dtype == np.uint8 else "float32",
        action_dim=5,
        side={name: rows.shape[1:] for name, rows in states.items()},
        goals=["task1", "task2"],
        versions={"mujoco": "1"},
        chunk=2,
    ) as writer:
        start = 0
        for split, split_lengths in lengths.items():
            for length in split_lengths:
                rows = slice(start, start + length)
                number = np.arange(start, start + length)
                writer.append_episode(
                    split,
                    observations[rows],
                    np.outer(number[:-1], np.arange(5)) / 100,
                    {"task1": (-number, number % 2), "task2": (-2 * number, number % 3 != 0)},
                    **{name: values[rows] for name, values in states.items()},
                )
                start += length
    return path


@pytest.fixture(scope="module")
def drawn(arms: Worker, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A puzzle's states, and a store rendered of them."""
    folder = tmp_path_factory.mktemp("drawn")
    states = arms.call("steps", "visual-puzzle-3x3", 5)[1]
    arrays = {name: np.stack([state[name] for state in states]) for name in states[0]}
    arrays["button_states"][:] = np.arange(6)[:, None] > np.arange(9) / 2
    lengths = {"train": (2, 2), "val": (2,)}
    source = write_states(folder / "states.zarr", arrays, lengths, "puzzle-3x3-play-v0")
    render(source, folder / "a.zarr", resolution=32, render_profile="draft", num_processes=1)
    return source, folder / "a.zarr"


def test_a_rendered_store_is_a_pixel_dataset_of_the_same_episodes(
    drawn: tuple[Path, Path],
) -> None:
    source, store = map(open_store, drawn)
    assert verify(drawn[1]) == []
    assert store.attributes["env_id"] == "visual-puzzle-3x3-play-v0"
    assert store.attributes["render_profile"] == "draft"
    assert store.attributes["counts"] == source.attributes["counts"]
    assert checksum(source) in store.attributes["source"]
    assert store.attributes["versions"]["source's mujoco"] == "1"
    assert "renderer" in store.attributes["versions"]
    assert store.train.observations.shape == (4, 32, 32, 3)
    assert len(np.unique(store.train.observations[:], axis=0)) == 4


def test_frames_are_drawn_with_the_render_profile_that_the_store_records(
    arms: Worker, drawn: tuple[Path, Path]
) -> None:
    train = open_store(drawn[1]).train
    state = {name: rows[0] for name, rows in train.side.items()}
    official, draft = (
        arms.call("draw_small", "visual-puzzle-3x3", profile, state)
        for profile in ("official", "draft")
    )
    assert np.array_equal(train.observations[0], draft)
    assert not np.array_equal(official, draft)


def test_a_store_is_drawn_again_as_it_was(drawn: tuple[Path, Path]) -> None:
    found = likeness_of(drawn[1], 3)
    assert found.rows.tolist() == [0, 2, 3]
    assert found.psnr == found.worst_psnr == np.inf
    assert found.worst.shape == (3, 32, 32, 3)


class Painter(Renderer):
    """Draws without an environment: a state's frame has the value of its first number."""

    drawn = 0
    interrupt_at: int | None = None

    def __init__(self, source: Path, render_profile: str, resolution: int) -> None:
        self._store = open_store(source)
        self._resolution = resolution

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(SHAPES)

    def draw(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        if Painter.drawn == Painter.interrupt_at:
            raise KeyboardInterrupt
        Painter.drawn += 1
        return np.full((self._resolution, self._resolution, 3), state["qpos"][0], np.uint8)


class Here:
    """A worker in this process."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def send(self, method: str, *args: Any) -> None:
        self._call = (method, args)

    def receive(self) -> Any:
        method, args = self._call
        return getattr(self._target, method)(*args)

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self._target, method)(*args)


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def start(_: Any, *args: Any, **__: Any) -> Iterator[list[Here]]:
        yield [Here(Painter(*args)), Here(Painter(*args))]

    monkeypatch.setattr(rendering, "start_workers", start)
    monkeypatch.setattr(rendering, "worker_variables", lambda pixels: {})
    monkeypatch.setattr(rendering, "versions", lambda pixels: {"mujoco": "2"})
    Painter.drawn, Painter.interrupt_at = 0, None


LENGTHS = {"train": (3, 2, 4), "val": (2,)}


def states_of(count: int) -> dict[str, np.ndarray]:
    return {
        name: np.arange(count)[:, None] + np.zeros(shape, np.float32)
        for name, shape in SHAPES.items()
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "cube-single-play-v0.zarr"
    return write_states(path, states_of(11), LENGTHS, "cube-single-play-v0")


@pytest.mark.usefixtures("no_environment")
def test_everything_but_the_observations_is_copied(source: Path, tmp_path: Path) -> None:
    render(source, tmp_path / "a.zarr", resolution=16)
    states, pixels = open_store(source), open_store(tmp_path / "a.zarr")
    assert pixels.attributes["seeds"] == {"collect": 5}
    assert resolution_of(pixels) == 16
    for name in ("train", "val"):
        before, after = states.splits[name], pixels.splits[name]
        assert before is not None
        assert after is not None
        assert np.array_equal(after.observations[:, 3, 5, 1], before.side["qpos"][:, 0])
        assert np.array_equal(after.episode_ends, before.episode_ends)
        assert np.array_equal(after.actions[:], before.actions[:])
        assert np.array_equal(after.side["qvel"][:], before.side["qvel"][:])
        for goal in ("task1", "task2"):
            assert np.array_equal(after.rewards(goal), before.rewards(goal))
            assert np.array_equal(after.masks(goal), before.masks(goal))


@pytest.mark.usefixtures("no_environment")
def test_a_pixel_store_is_drawn_anew(source: Path, tmp_path: Path) -> None:
    render(source, tmp_path / "a.zarr", resolution=4)
    render(tmp_path / "a.zarr", tmp_path / "b.zarr", resolution=6, render_profile="fast")
    store = open_store(tmp_path / "b.zarr")
    assert store.train.observations.shape == (9, 6, 6, 3)
    assert store.attributes["render_profile"] == "fast"
    assert store.attributes["env_id"] == "visual-cube-single-play-v0"


@pytest.mark.usefixtures("no_environment")
def test_rendering_goes_on_where_it_was_stopped(source: Path, tmp_path: Path) -> None:
    render(source, tmp_path / "whole.zarr", resolution=4)
    Painter.drawn, Painter.interrupt_at = 0, 6  # in the third episode
    with pytest.raises(KeyboardInterrupt):
        render(source, tmp_path / "a.zarr", resolution=4)
    Painter.drawn, Painter.interrupt_at = 0, None
    render(source, tmp_path / "a.zarr", resolution=4)
    assert Painter.drawn == 6
    whole, parts = (open_store(tmp_path / f"{name}.zarr") for name in ("whole", "a"))
    assert whole.attributes == parts.attributes


@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize(
    ("env_id", "without", "arguments", "message"),
    [
        ("antmaze-large-navigate-v0", "", {}, "no pixel task"),
        ("my-robot", "", {}, "no pixel task"),
        ("cube-single-play-v0", "qvel", {}, "has no train/qvel"),
        ("cube-single-play-v0", "", {"resolution": 0}, "resolution of 0"),
        ("cube-single-play-v0", "", {"render_profile": "nice"}, "official"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_written(
    tmp_path: Path, env_id: str, without: str, arguments: dict[str, Any], message: str
) -> None:
    states = {name: rows for name, rows in states_of(11).items() if name != without}
    path = write_states(tmp_path / "source.zarr", states, LENGTHS, env_id)
    with pytest.raises(UserError, match=message):
        render(path, tmp_path / "a.zarr", **arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["source.zarr"]


@pytest.mark.parametrize(
    ("env_id", "without", "advice"),
    [
        ("cube-single-play-v0", "", "`python scripts/data.py render {path}` draws them"),
        ("cube-single-play-v0", "qvel", "without qvel they cannot be drawn"),
        ("scene-play-v0", "", "without button_states they cannot be drawn"),
        ("antmaze-large-navigate-v0", "", "OGBench has no pixel task of them"),
        ("pen-human-v1", "", "OGBench has no pixel task of them"),
    ],
)
def test_drawing_is_advised_only_where_it_is_possible(
    tmp_path: Path, env_id: str, without: str, advice: str
) -> None:
    states = {name: rows for name, rows in states_of(11).items() if name != without}
    path = write_states(tmp_path / "source.zarr", states, LENGTHS, env_id)
    assert advise_drawing(open_store(path)) == advice.format(path=path)


@pytest.mark.usefixtures("no_environment")
def test_states_of_another_environment_are_refused(tmp_path: Path) -> None:
    states = {**states_of(11), "qpos": np.zeros((11, 4), np.float32)}
    path = write_states(tmp_path / "source.zarr", states, LENGTHS, "cube-single-play-v0")
    with pytest.raises(StoreError, match=r"qpos have the shape \(4,\).*have \(3,\)"):
        render(path, tmp_path / "a.zarr")


def test_an_existing_store_is_not_overwritten(source: Path) -> None:
    with pytest.raises(StoreError, match="exists"):
        render(source, source)


def paint(state: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.full((4, 4, 3), state["qpos"][0], np.uint8)


def write_frames(path: Path, frames: np.ndarray) -> Path:
    return write_states(path, states_of(11), {"train": (11,)}, "visual-cube-single-play-v0", frames)


def test_the_frame_that_is_drawn_otherwise_is_found(tmp_path: Path) -> None:
    frames = np.arange(11, dtype=np.uint8)[:, None, None, None] + np.zeros((4, 4, 3), np.uint8)
    frames[5, 1, 2, 0] += 30
    frames[8] += 1
    store = open_store(write_frames(tmp_path / "a.zarr", frames))
    found = compare(store, SHAPES, paint, num_frames=11)
    assert found.rows[found.errors.argmax()] == 5
    assert found.worst_psnr == pytest.approx(10 * np.log10(255**2 / (30**2 / 48)))
    assert found.psnr == pytest.approx(10 * np.log10(255**2 * 11 / (30**2 / 48 + 1)))
    assert found.worst[2, 1, 2].tolist() == [240, 0, 0]
    assert not found.alike
    assert "train, row 5" in str(found)


def test_a_frame_counts_as_drawn_alike_from_fifty_decibels() -> None:
    one = Likeness(np.arange(2), np.array([0.0, 0.6]), np.zeros((3, 4, 4, 3), np.uint8))
    two = Likeness(np.arange(2), np.array([0.0, 0.7]), np.zeros((3, 4, 4, 3), np.uint8))
    assert (one.alike, two.alike) == (True, False)  # 50.3 and 49.7 dB


def test_a_store_of_states_has_no_frames_to_compare(source: Path) -> None:
    with pytest.raises(StoreError, match=r"holds states.*data.py render"):
        likeness_of(source, 4)


def test_frames_that_are_not_square_are_refused(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "a.zarr", np.zeros((11, 4, 6, 3), np.uint8))
    with pytest.raises(StoreError, match="4 x 6 pixels"):
        resolution_of(open_store(path))


@pytest.mark.parametrize(("error", "code"), [(0.0, None), (9.0, 1)])
def test_the_command_line_shows_the_worst_frame_and_fails_where_it_is_unlike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float, code: int | None
) -> None:
    path = write_frames(tmp_path / "a.zarr", np.zeros((11, 4, 4, 3), np.uint8))
    found = Likeness(np.arange(1), np.array([error]), np.zeros((3, 4, 4, 3), np.uint8))
    monkeypatch.setattr(likeness, "likeness_of", lambda path, frames: found)
    command = runpy.run_path(str(ROOT / "scripts" / "data.py"))["verify"]
    expected = contextlib.nullcontext() if code is None else pytest.raises(SystemExit, match="1")
    with expected:
        command(path, render=True, picture=tmp_path / "worst.png")
    assert (tmp_path / "worst.png").stat().st_size > 0
