"""The online phase: collection, resuming, schedules, and environments that fail."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from deflow_vision.config import load
from deflow_vision.config.schema import OnlineConfig
from deflow_vision.datasets.store import StoreWriter
from deflow_vision.envs.own import examine
from deflow_vision.envs.pool import EnvPool
from deflow_vision.seeding import derive_seed
from deflow_vision.training import own
from deflow_vision.training.checkpoint import checkpoints
from deflow_vision.training.loop import train
from deflow_vision.training.restore import load_policy
from deflow_vision.types import UserError
from tests.training.conftest import few_steps, write_task_store
from tests.training.test_loop import assert_same_run, copy_of_run, rows, weights

ENVS = {"state": "make_walk", "pixels": "make_seen_walk", "faulty": "make_faulty"}
OFFLINE, ONLINE = 4, 14
LAST = OFFLINE + ONLINE


def write_walks(folder):
    """Stores that fit the environments."""
    rng, stores = np.random.default_rng(0), {}
    for kind in ("state", "pixels"):
        shape = (8, 10, 1) if kind == "pixels" else (3,)
        stores[kind] = folder / f"{kind}.zarr"
        with StoreWriter(
            stores[kind],
            source="test",
            env_id="walk",
            seeds=0,
            observation_shape=shape,
            observation_dtype="uint8" if kind == "pixels" else "float32",
            action_dim=2,
            goals=["default"],
        ) as writer:
            for length in (9, 6):
                observations = rng.integers(0, 256, (length, *shape), dtype=np.uint8)
                if kind == "state":
                    observations = observations.astype(np.float32) / 128 - 1
                goals = {"default": (-rng.random(length), np.ones(length))}
                actions = rng.uniform(-1, 1, (length - 1, 2))
                writer.append_episode("train", observations, actions, goals)
    return stores | {"faulty": stores["state"]}


@pytest.fixture(scope="session")
def walks(tmp_path_factory):
    return write_walks(tmp_path_factory.mktemp("walks"))


def arguments(kind, walks, run_dir, *flags):
    """The command line of a tiny run; later flags win."""
    encoder = ("--encoder.name", "impala_debug") if kind == "pixels" else ()
    return [
        *("--env", f"tests.envs.own_envs:{ENVS[kind]}", "--task", "walk", *encoder),
        *("--data.path", str(walks[kind]), "--run-dir", str(run_dir)),
        *("--agent.hidden-dims", "8", "12", "--batch-size", "6"),
        *("--offline-steps", str(OFFLINE), "--online-steps", str(ONLINE)),
        *("--checkpoint.every", "3", "--checkpoint.keep", "99", "--log.every", "1"),
        *("--eval.every", "5", "--eval.episodes", "0", "--eval.val-batches", "1"),
        *("--num-threads", "1", *few_steps(flags), *flags),
    ]


examine_once = functools.cache(examine)


@pytest.fixture(autouse=True)
def examined_once(monkeypatch):
    """An environment is looked at in a process of its own once, not for every run."""
    monkeypatch.setattr(own, "examine", examine_once)


@pytest.fixture
def run(walks, tmp_path):
    """A tiny run in its own folder."""
    return lambda kind, name, *flags: train(load(arguments(kind, walks, tmp_path / name, *flags)))


def replay_files(run_dir):
    folder = run_dir / "replay"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.bin")}


def online_rows(run_dir):
    table = rows(run_dir)
    return table[table["online/episodes"].notna()]


def cut(run_dir, copy, step):
    """The run as a kill after its checkpoint of `step` leaves it, with what it did since."""
    killed = copy_of_run(run_dir, copy)
    for later in checkpoints(killed):
        if later.step > step:
            shutil.rmtree(later.path)
    return killed


@pytest.mark.parametrize("residency", ["ram", "stream"])
def test_a_run_killed_at_any_moment_resumes_bit_for_bit(kind, residency, run, tmp_path):
    whole = run(kind, "whole", "--data.residency", residency)
    steps = [c.step for c in checkpoints(whole)]
    assert len([s for s in steps if OFFLINE < s < LAST]) >= 2
    for step in steps[:-1]:
        killed = cut(whole, tmp_path / f"killed_{step}", step)
        train(load(["--resume", str(killed)]))
        assert_same_run(whole, killed, LAST)
        assert replay_files(killed) == replay_files(whole)


def test_a_run_in_several_environments_that_is_killed_resumes_bit_for_bit(run, tmp_path):
    whole = run("state", "whole", "--online.num-envs", "3", "--online-steps", "40")
    assert sorted({Path(name).parts[0] for name in replay_files(whole)}) == ["0", "1", "2"]
    online = [c.step for c in checkpoints(whole) if c.step > OFFLINE]
    assert len(online) >= 3
    for step in online[:-1:2]:
        killed = cut(whole, tmp_path / f"killed_{step}", step)
        train(load(["--resume", str(killed)]))
        assert_same_run(whole, killed, OFFLINE + 40)
        assert replay_files(killed) == replay_files(whole)
    table = online_rows(whole)
    assert table["online/env_steps"].max() <= 40 + 2


def test_a_run_killed_before_its_first_checkpoint_begins_anew(kind, run, tmp_path):
    whole = run(kind, "whole", "--offline-steps", "0")
    killed = cut(whole, tmp_path / "killed", -1)
    train(load(["--resume", str(killed)]))
    assert_same_run(whole, killed, ONLINE)
    assert replay_files(killed) == replay_files(whole)


def test_online_checkpoints_are_taken_at_the_end_of_an_episode(run):
    whole = run("state", "whole")
    ended = set(online_rows(whole)["step"])
    online = [c.step for c in checkpoints(whole) if OFFLINE < c.step < LAST]
    assert online
    assert set(online) <= ended


def test_the_environment_takes_a_step_for_every_update(run):
    table = online_rows(run("state", "run"))
    assert list(table["online/length"].cumsum()) == list(table["online/env_steps"])
    assert list(table["step"]) == list(table["online/env_steps"] + OFFLINE)
    assert list(table["online/episodes"]) == list(range(1, len(table) + 1))
    assert list(table["online/buffer_size"]) == list(table["online/env_steps"])
    assert table["online/success"].isin([0, 1]).all()
    assert (table["online/return"] < 0).all()


def test_an_update_to_data_ratio_of_three_takes_a_third_of_the_steps(run):
    run_dir = run("state", "run", "--online.utd-ratio", "3", "--online-steps", "31")
    table = online_rows(run_dir)
    assert list(table["step"]) == list(3 * (table["online/env_steps"] - 1) + 1 + OFFLINE)
    assert len(replay_files(run_dir)["steps.bin"]) >= 10 * 4 * (2 + 3)


def test_the_buffer_holds_what_the_environment_showed(kind, run):
    run_dir, env_id = run(kind, "run"), f"tests.envs.own_envs:{ENVS[kind]}"
    steps = np.frombuffer(replay_files(run_dir)["steps.bin"], np.float32).reshape(-1, 5)
    dtype = np.uint8 if kind == "pixels" else np.float32
    frames = np.frombuffer(replay_files(run_dir)["frames.bin"], dtype)
    frames = frames.reshape(-1, *((8, 10, 1) if kind == "pixels" else (3,)))
    state = 0
    with EnvPool(env_id, num_envs=1) as pool:
        for episode in range(2):
            seed = derive_seed(derive_seed(0, "online"), "episode", episode)
            np.testing.assert_array_equal(pool.reset(0, seed), frames[state])
            while not steps[state, 4]:
                (result,) = pool.step([0], steps[state, None, :2])
                assert steps[state, 2] == np.float32(result.reward)
                assert steps[state, 3] == 1 - result.terminated  # a time limit bootstraps
                np.testing.assert_array_equal(result.observation, frames[state + 1])
                state += 1
            assert result.terminated or result.truncated
            state += 1


def test_evaluations_change_nothing_in_the_online_phase(kind, run):
    rarely = run(kind, "rarely")
    flags = ("--eval.episodes", "2", "--eval.num-envs", "1", "--eval.videos", "0")
    often = run(kind, "often", *flags, "--eval.every", "1")
    table = pd.read_csv(often / "episodes.csv")
    assert sorted(set(table["step"])) == list(range(LAST + 1))
    ours, theirs = weights(often, LAST), weights(rarely, LAST)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert replay_files(often) == replay_files(rarely)
    assert not set(table["seed"]) & {
        derive_seed(derive_seed(0, "online"), "episode", i) for i in range(20)
    }


def test_both_ends_of_the_phases_are_evaluated_and_saved(run):
    run_dir = run("state", "run", "--eval.episodes", "1", "--eval.num-envs", "1")
    table = pd.read_csv(run_dir / "train.csv")
    assert list(table["step"][table["eval/return"].notna()]) == [0, OFFLINE, 5, 10, 15, LAST]
    assert {OFFLINE, LAST} <= {c.step for c in checkpoints(run_dir)}


def test_an_offline_run_goes_on_online_as_if_it_had_been_one(kind, run):
    whole = run(kind, "whole")
    half = run(kind, "half", "--online-steps", "0")
    train(load(["--resume", str(half), "--online-steps", str(ONLINE)]))
    assert_same_run(whole, half, LAST)


@pytest.mark.parametrize(
    "flags", [(), ("--online.num-envs", "2"), ("--algo", "calql")], ids=["one", "two", "returns"]
)
def test_a_finished_run_goes_on_with_a_new_episode(run, flags):
    run_dir = run("state", "run", *flags)
    before = replay_files(run_dir)
    train(load(["--resume", str(run_dir), "--online-steps", str(ONLINE + 9)]))
    after = replay_files(run_dir)
    assert all(after[name].startswith(before[name]) for name in before)
    assert online_rows(run_dir)["step"].max() > LAST


@pytest.mark.parametrize("sampling", ["balanced", "ratio"])
def test_other_samplings_train_otherwise(run, sampling):
    flags = ("--online.ratio", "1.0", "--online.sampling")
    union, other = run("state", "union"), run("state", "other", *flags, sampling)
    ours, theirs = weights(union, LAST), weights(other, LAST)
    assert not all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_dataset_is_overwritten_where_that_is_asked_for(run, monkeypatch):
    monkeypatch.setattr("deflow_vision.training.batches.REFERENCE_SLOTS", 1)
    kept, lost = run("state", "kept"), run("state", "lost", "--online.overwrite-offline")
    ours, theirs = weights(kept, LAST), weights(lost, LAST)
    assert not all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"utd_ratio": 0}, r"online\.utd_ratio is 0, must be at least 1"),
        ({"capacity": 0}, r"online\.capacity is 0, must be at least 1"),
        ({"num_envs": 0}, r"online\.num_envs is 0, must be at least 1"),
        ({"num_envs": 3, "capacity": 2}, r"online\.capacity is 2, must be at least 3"),
        ({"overwrite_offline": True, "num_envs": 2}, r"Pass .* --online\.num-envs 1"),
        ({"ratio": 1.5}, r"online\.ratio is 1\.5, must lie in \[0, 1\]"),
        ({"overwrite_offline": True, "sampling": "balanced"}, r"Pass --online\.sampling union"),
    ],
)
def test_values_without_a_meaning_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        OnlineConfig(**values)


def test_a_buffer_that_is_overwritten_into_the_dataset_must_hold_the_whole_phase(run, capsys):
    with pytest.raises(SystemExit):
        run("state", "run", "--online.overwrite-offline", "--online.capacity", "5")
    assert "online.capacity is 5" in capsys.readouterr().err


def test_what_the_online_phase_uses_may_change_until_it_begins_and_not_after(run, tmp_path):
    whole = run("state", "whole")
    offline = cut(whole, tmp_path / "offline", OFFLINE)
    changed = ("--online.sampling", "balanced", "--agent.fix-bc-flow-online")
    train(load(["--resume", str(offline), *changed]))
    assert load(["--resume", str(offline)]).online.sampling == "balanced"
    later = cut(whole, tmp_path / "later", LAST - 1)
    with pytest.raises(UserError, match=r"online: .*'union'.* there, .*'balanced'.* here"):
        train(load(["--resume", str(later), *changed]))


def test_a_buffer_that_lost_its_end_is_refused_with_the_way_out(run, tmp_path):
    killed = cut(run("state", "whole"), tmp_path / "killed", LAST - 1)
    os.truncate(killed / "replay" / "frames.bin", 8)
    with pytest.raises(UserError, match=r"frames\.bin is not as the checkpoint left it.*remove"):
        train(load(["--resume", str(killed)]))


def test_several_processes_are_refused(run, monkeypatch):
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr("deflow_vision.training.setup.gather_object", lambda values: values)
    with pytest.raises(UserError, match=r"one process, and there are 2: .*--num_processes 1"):
        run("state", "run", "--data.num-streams", "2")


@pytest.fixture
def faults(monkeypatch, tmp_path):
    def faults(how, at, times):
        (tmp_path / "faults").mkdir()
        monkeypatch.setenv("FAULTS", f"{how} {at} {times}")
        monkeypatch.setenv("FAULTS_FOLDER", str(tmp_path / "faults"))

    return faults


TIMEOUT = {"hang": ("--online.timeout-seconds", "5")}


@pytest.mark.parametrize("how", ["die", "hang", "raise", "nan"])
def test_an_environment_that_fails_is_made_anew_and_the_run_goes_on(run, faults, how, caplog):
    faults(how, at=3, times=1)
    run_dir = run("faulty", "run", *TIMEOUT.get(how, ()))
    words = {"die": "SIGKILL", "hang": "no answer in 5 s", "raise": "fell over", "nan": "nan"}
    assert words[how] in caplog.text
    assert "made anew" in caplog.text
    steps = np.frombuffer(replay_files(run_dir)["steps.bin"], np.float32).reshape(-1, 5)
    assert np.isfinite(steps).all()
    ends = np.flatnonzero(steps[:, 4])
    assert ends[0] == 2  # what was seen before the failure stays, as an episode of its own
    assert weights(run_dir, LAST)


@pytest.mark.parametrize("how", ["die", "nan"])
def test_an_environment_that_fails_for_good_ends_the_run_with_a_checkpoint(
    run, faults, how, tmp_path, monkeypatch
):
    faults(how, at=3, times=99)
    with pytest.raises(UserError, match=r"(?s)failed 3 times .*--resume .*run .*step 4"):
        run("faulty", "run", "--online.max-restarts", "2")
    monkeypatch.setenv("FAULTS", "none 99 0")
    train(load(["--resume", str(tmp_path / "run")]))
    assert_same_run(tmp_path / "run", run("faulty", "sound"), LAST)


def test_a_policy_that_diverged_ends_the_run(run, monkeypatch):
    from deflow_vision.agents.deflow import DeFlow

    monkeypatch.setattr(DeFlow, "act", lambda *_, **__: torch.full((1, 2), float("nan")))
    with pytest.raises(UserError, match=r"nan.* after 4 updates: training has diverged.*step 4"):
        run("state", "run")


@pytest.mark.parametrize("frozen", [True, False])
def test_base_actions_stay_to_the_bit_online_where_the_flow_is_fixed(kind, run, frozen):
    flags = ("--agent.fix-bc-flow-online",) if frozen else ()
    run_dir = run(kind, "run", *flags, "--agent.initial-log-alpha", "3.0")
    observations = torch.randint(0, 256, (5, 8, 10, 3), dtype=torch.uint8)
    if kind == "state":
        observations = torch.randn(5, 3)
    noises = torch.randn(5, 2)
    before, after = (
        agent.base_actions(agent.features(observations, "flow"), noises)
        for agent, _, _ in (load_policy(run_dir, step) for step in (OFFLINE, LAST))
    )
    assert torch.equal(before, after) == frozen
    moved = {
        name
        for name, value in weights(run_dir, OFFLINE).items()
        if not torch.equal(value, weights(run_dir, LAST).get(name, value))
    }
    assert "agent:log_alpha" in moved
    assert any(name.startswith("agent:refinement.") for name in moved)
    # The flow alone trains the shared encoder.
    assert any(name.startswith("agent:encoder.encoders.shared") for name in moved) == (
        kind == "pixels" and not frozen
    )


@pytest.mark.parametrize(
    "encoder",
    [
        ("--encoder.sharing", "shared"),
        ("--encoder.sharing", "separate"),
        ("--encoder.gradients-from", "critic", "flow"),
    ],
    ids=lambda flags: flags[1],
)
def test_a_fixed_flow_leaves_the_optimizer_and_resumes_bit_for_bit(kind, run, tmp_path, encoder):
    whole = run(kind, "whole", "--agent.fix-bc-flow-online", *encoder)
    assert any("/bc_flow" in name for name in weights(whole, OFFLINE))
    assert not any("/bc_flow" in name for name in weights(whole, LAST))
    step = [c.step for c in checkpoints(whole)][-2]
    assert step > OFFLINE
    killed = cut(whole, tmp_path / "killed", step)
    train(load(["--resume", str(killed)]))
    assert_same_run(whole, killed, LAST)


@pytest.mark.parametrize(("algo", "sharing"), [("deflow", "shared"), ("calql", "separate")])
def test_an_encoder_that_is_frozen_online_stays_and_resumes_bit_for_bit(
    run, tmp_path, sharing, algo
):
    flags = ("--algo", algo, "--encoder.sharing", sharing, "--online.freeze-encoder")
    whole = run("pixels", "whole", *flags)
    before, after = weights(whole, OFFLINE), weights(whole, LAST)
    moved = {n for n, value in before.items() if not torch.equal(value, after.get(n, value))}
    assert any(name.startswith("agent:critic.") for name in moved)
    assert any(name.startswith("agent:encoder.encoders.") for name in before)
    assert not any(name.startswith("agent:encoder.encoders.") for name in moved)
    assert not any("/encoder." in name for name in after)  # nor are there moments of it
    killed = cut(whole, tmp_path / "killed", [c.step for c in checkpoints(whole)][-2])
    train(load(["--resume", str(killed)]))
    assert_same_run(whole, killed, LAST)


@pytest.mark.slow
def test_a_real_arm_is_played_and_resumes_bit_for_bit(kind, configure, tmp_path):
    store = write_task_store(tmp_path / "arm.zarr", kind, render_profile="draft")
    flags = ("--data.path", str(store), "--offline-steps", "2", "--online-steps", "206")
    flags += ("--checkpoint.every", "100", "--eval.every", "0")
    whole = train(configure(kind, tmp_path / "whole", *flags))
    (ended,) = online_rows(whole).to_dict("records")
    assert (ended["step"], ended["online/length"], ended["online/return"]) == (202, 200, -200)
    killed = cut(whole, tmp_path / "killed", 202)
    assert [c.step for c in checkpoints(killed)] == [2, 202]
    train(load(["--resume", str(killed)]))
    assert_same_run(whole, killed, 208)
    assert replay_files(killed) == replay_files(whole)


@pytest.mark.parametrize("algo", ["rlpd", "calql", "rebrac", "deflow_floq"])
def test_methods_with_stages_or_further_fields_resume_bit_for_bit(run, tmp_path, algo):
    whole = run("state", "whole", "--algo", algo, "--checkpoint.every", "5")
    step = [c.step for c in checkpoints(whole)][-2]
    assert step > OFFLINE
    killed = cut(whole, tmp_path / "killed", step)
    train(load(["--resume", str(killed)]))
    assert_same_run(whole, killed, LAST)


@pytest.mark.slow
def test_a_process_that_is_killed_in_the_online_phase_goes_on_bit_for_bit(run, walks, tmp_path):
    flags = ("--online-steps", "100", "--eval.every", "0", "--checkpoint.every", "10")
    whole = run("pixels", "whole", *flags)
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "scripts/train.py", *arguments("pixels", walks, killed, *flags)],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and sum(c.step > OFFLINE for c in checkpoints(killed)) < 2:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert OFFLINE < checkpoints(killed)[-1].step < OFFLINE + 100
    train(load(["--resume", str(killed)]))
    assert_same_run(whole, killed, OFFLINE + 100)
    assert replay_files(killed) == replay_files(whole)
