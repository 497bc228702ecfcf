"""The loop as a whole: resuming, determinism, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from deflow_vision.config import load
from deflow_vision.training import checkpoint
from deflow_vision.training.checkpoint import CheckpointError, checkpoints
from deflow_vision.training.dataset import open_configured
from deflow_vision.training.identity import identity
from deflow_vision.training.loop import train
from deflow_vision.types import UserError


def weights(run, step=6):
    folder = run / "checkpoints" / f"step_{step}"
    return {
        f"{name}:{key}": value
        for name in ("agent", "optimizer")
        for key, value in load_file(folder / f"{name}.safetensors").items()
    }


def rows(run):
    table = pd.read_csv(run / "train.csv")
    return table[[c for c in table.columns if not c.startswith("time/")]]


def episodes(run):
    table = run / "episodes.csv"
    return table.read_text() if table.exists() else None


def assert_same_run(ours, theirs, step=6):
    a, b = weights(ours, step), weights(theirs, step)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    pd.testing.assert_frame_equal(rows(ours), rows(theirs), check_exact=True)
    assert episodes(ours) == episodes(theirs)


def copy_of_run(run, copy):
    """A folder as the run would have it there, to be cut back to an earlier moment."""
    shutil.copytree(run, copy)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace(str(run), str(copy)))
    return copy


@pytest.mark.parametrize("kind", ["state", "pixels", "own"])
@pytest.mark.parametrize("residency", ["ram", "stream"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    kind, residency, configure, tmp_path
):
    flags = ("--data.residency", residency)
    whole = train(configure(kind, tmp_path / "whole", *flags))
    half = train(configure(kind, tmp_path / "half", "--offline-steps", "3", *flags))
    train(load(["--resume", str(half), "--offline-steps", "6"]))
    assert_same_run(whole, half)


def test_a_run_killed_after_its_checkpoint_goes_on_from_there(configure, tmp_path):
    whole = train(configure("state", tmp_path / "whole"))
    killed = copy_of_run(whole, tmp_path / "killed")
    shutil.rmtree(killed / "checkpoints" / "step_6")  # its rows up to step 6 are in the CSV still
    train(load(["--resume", str(killed)]))
    assert_same_run(whole, killed)


def test_a_run_killed_before_old_checkpoints_were_removed_goes_on_without_them(configure, tmp_path):
    run = train(configure("state", tmp_path / "run"))
    assert [found.step for found in checkpoints(run)] == [3, 6]
    (run / "checkpoints" / ".partial-step_3").mkdir()
    train(load(["--resume", str(run), "--checkpoint.keep", "1"]))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_6"]


def test_a_run_killed_before_its_first_checkpoint_begins_anew(configure, tmp_path):
    whole = train(configure("state", tmp_path / "whole"))
    killed = tmp_path / "killed"
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "checkpoints")
    train(load(["--resume", str(killed)]))
    assert_same_run(whole, killed)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(configure, tmp_path):
    runs = [train(configure("state", tmp_path / str(i), "--seed", s)) for i, s in enumerate("001")]
    assert_same_run(runs[0], runs[1])
    assert not rows(runs[0]).equals(rows(runs[2]))


def test_evaluating_logging_and_saving_change_nothing_in_training(configure, tmp_path):
    often = train(configure("own", tmp_path / "often"))
    assert list(pd.read_csv(often / "episodes.csv")["step"]) == [0, 0, 3, 3, 6, 6]
    flags = ("--eval.episodes", "0", "--log.every", "6", "--checkpoint.every", "0")
    rarely = train(configure("own", tmp_path / "rarely", *flags))
    ours, theirs = weights(often), weights(rarely)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_last_agent_is_validated_and_saved(configure, tmp_path):
    run = train(configure("state", tmp_path / "run"))
    assert [c.step for c in checkpoints(run)] == [3, 6]
    table = pd.read_csv(run / "train.csv")
    assert list(table["step"][table["val/critic/loss"].notna()]) == [0, 3, 6]
    assert list(table["step"][table["train/critic/loss"].notna()]) == [1, 2, 3, 4, 5, 6]


def test_a_run_folder_says_what_it_is(configure, tmp_path):
    run = train(configure("state", tmp_path / "run"))
    record = json.loads((run / "environment.json").read_text())
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["dataset"]["digests"]
    assert load(["--resume", str(run)]).batch_size == 6


def test_a_new_run_refuses_the_folder_of_another(configure, tmp_path):
    config = configure("state", tmp_path / "run", "--offline-steps", "1")
    train(config)
    with pytest.raises(UserError, match="--resume"):
        train(config)


def test_a_damaged_checkpoint_is_refused_by_name(configure, tmp_path):
    run = train(configure("state", tmp_path / "run"))
    file = run / "checkpoints" / "step_6" / "agent.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"agent\.safetensors.*damaged"):
        train(load(["--resume", str(run), "--offline-steps", "7"]))


def test_a_full_disk_ends_the_run_with_its_last_checkpoint_whole(configure, tmp_path, monkeypatch):
    real = checkpoint.write_arrays

    def full_from_step_6(path, arrays):
        real(path, arrays)
        if "step_6" in str(path) and path.name == "optimizer.safetensors":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_arrays", full_from_step_6)
    run = tmp_path / "run"
    with pytest.raises(CheckpointError, match=r"step 6.*No space left.*--resume"):
        train(configure("state", run))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_3"]
    monkeypatch.undo()
    train(load(["--resume", str(run)]))
    assert checkpoint.latest(run).step == 6


def test_a_checkpoint_of_another_configuration_is_refused_with_both_values(configure, tmp_path):
    run = train(configure("state", tmp_path / "run"))
    config = load(["--resume", str(run), "--offline-steps", "7"])
    other = dataclasses.replace(config, agent=dataclasses.replace(config.agent, discount=0.5))
    with pytest.raises(CheckpointError, match=r"agent: .*0\.99.* there, .*0\.5.* here"):
        train(other)


def test_a_checkpoint_of_frames_on_a_gpu_fits_a_run_with_them_in_memory(configure, tmp_path):
    config = configure("state", tmp_path / "run")
    store = open_configured(config.data)
    ram, device = (
        identity(
            dataclasses.replace(config, data=dataclasses.replace(config.data, residency=r)),
            store,
            step=3,
        )
        for r in ("ram", "device")
    )
    assert ram == device


def test_frames_on_a_gpu_are_refused_without_one(configure, tmp_path):
    with pytest.raises(UserError, match=r"keeps the observations on a GPU, and this run has none"):
        train(configure("state", tmp_path / "run", "--data.residency", "device"))
    assert not (tmp_path / "run").exists()


def test_validation_takes_small_windows_and_its_plan_says_so(configure, tmp_path, caplog):
    with caplog.at_level("INFO"):
        train(configure("state", tmp_path / "run", "--data.residency", "stream"))
    train_plan, val_plan = caplog.text.split("val split")
    assert "train split" in train_plan
    assert " frames, 32 in a window" in train_plan
    assert " frames, 8 in a window" in val_plan


def test_a_missing_dataset_names_the_path_and_the_ways_to_get_it(configure, tmp_path):
    missing = tmp_path / "nowhere.zarr"
    with pytest.raises(UserError) as refusal:
        train(configure("state", tmp_path / "run", "--data.path", str(missing)))
    text = str(refusal.value)
    assert str(missing) in text
    assert all(f"scripts/data.py {way}" in text for way in ("collect", "download", "convert"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "file"),
    [
        ("antmaze-large-navigate", "antmaze-large-navigate-v0.npz"),
        ("pen-human-v1", "FILE.hdf5 --dataset pen-human-v1"),
    ],
)
def test_locomotion_and_d4rl_are_told_to_download_or_convert(configure, tmp_path, task, file):
    flags = ("--task", task, "--data.path", str(tmp_path / "nowhere.zarr"))
    with pytest.raises(UserError, match=f"data.py download {task.removesuffix('-v0')}") as refusal:
        train(configure("state", tmp_path / "run", *flags))
    assert f"data.py convert {file}" in str(refusal.value)
    assert "collect" not in str(refusal.value)


def test_an_encoder_that_does_not_fit_leaves_no_run_folder(configure, tmp_path):
    with pytest.raises(UserError, match="state observations"):
        train(configure("state", tmp_path / "run", "--encoder.name", "impala"))
    assert not (tmp_path / "run").exists()


def test_a_batch_norm_model_without_weights_is_refused_before_training(configure, tmp_path):
    with pytest.raises(UserError, match="BatchNorm"):
        train(configure("pixels", tmp_path / "run", "--encoder.name", "timm:test_resnet"))


def test_a_resumed_run_writes_down_what_it_changes(configure, tmp_path):
    run = train(configure("state", tmp_path / "run", "--offline-steps", "3"))
    train(load(["--resume", str(run), "--offline-steps", "5"]))
    assert load(["--resume", str(run)]).offline_steps == 5
    (resumed,) = json.loads((run / "environment.json").read_text())["resumed"]
    assert resumed["versions"]["torch"] == torch.__version__.split("+")[0]
    with pytest.raises(UserError, match=r"5 updates already.*--offline-steps"):
        train(load(["--resume", str(run), "--offline-steps", "4"]))


def test_a_store_of_another_task_is_refused(configure, stores, tmp_path):
    path = str(stores["pixels"])
    with pytest.raises(UserError, match=r"visual-cube-single-play-v0.*needs cube-single-play-v0"):
        train(configure("state", tmp_path / "run", "--data.path", path))


def test_a_store_without_the_goal_is_refused(configure, tmp_path):
    with pytest.raises(UserError, match="no rewards for task2, only for task1"):
        train(configure("state", tmp_path / "run", "--task", "cube-single-play-task2"))


def test_a_run_without_updates_says_so(configure, tmp_path, caplog):
    train(configure("state", tmp_path / "run", "--offline-steps", "0"))
    assert "nothing is trained" in caplog.text


@pytest.mark.parametrize("algo", ["rlpd", "calql"])
def test_a_method_without_an_offline_phase_that_is_given_one_is_warned_of(
    algo, configure, tmp_path, caplog
):
    train(configure("state", tmp_path / "run", "--algo", algo, "--offline-steps", "1"))
    assert ("1 updates on the dataset alone: pass --offline-steps 0" in caplog.text) == (
        algo == "rlpd"
    )


def test_accumulation_of_gradients_is_refused(configure, tmp_path, monkeypatch):
    # Accelerate would divide the losses by 4, and each update would take one batch all the same.
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(UserError, match=r"ACCELERATE_GRADIENT_ACCUMULATION_STEPS is 4"):
        train(configure("state", tmp_path / "run"))
    assert not (tmp_path / "run").exists()
