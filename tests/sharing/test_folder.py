"""Policies that go into a folder and come back, and those that must not."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save

from deflow_vision.analysis.plots import learning_curves
from deflow_vision.config import load
from deflow_vision.files import sealed_text
from deflow_vision.sharing import Policy
from deflow_vision.sharing.folder import NEEDED
from deflow_vision.training.loop import train
from deflow_vision.types import UserError


def edit_spec(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "spec.json").read_text())
    (folder / "spec.json").write_text(sealed_text(values | changes))


def test_a_policy_comes_back_as_it_was(policy, folder, draws):
    again = Policy.from_pretrained(folder)
    assert again.record == policy.record
    assert again.config == policy.config
    rows = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    np.testing.assert_array_equal(again(rows, generator=draws()), policy(rows, generator=draws()))
    assert {path.name for path in folder.iterdir()} == set(NEEDED)


def test_a_policy_that_came_back_is_shared_as_the_same_files(folder, tmp_path):
    Policy.from_pretrained(folder).save_pretrained(tmp_path / "again")
    for name in NEEDED:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


def test_spec_json_says_what_one_must_know_to_act(run, folder):
    spec = json.loads((folder / "spec.json").read_text())
    expected = {
        **{"schema": 1, "task": "reach", "algo": "deflow", "updates": 6},
        **{"env_id": "scripts.example_own_data:make", "frame_stack": 3, "action_dim": 2},
        **{"observation_shape": [6], "observation_dtype": "float32", "noise_dim": 2},
    }
    assert {key: spec[key] for key in expected} == expected
    (evaluation,) = spec["evaluations"]
    assert (evaluation["seed"], evaluation["episodes"]) == (4, 2)
    assert len(set(evaluation["episode_seeds"])) == 2
    assert spec["data"]["dataset"] == "reach"
    assert spec["data"]["source"] == "a noisy controller"


def test_nothing_in_the_folder_names_a_place_on_this_machine(run, folder):
    places = [str(run.parent), str(Path.home()), str(Path(__file__).parents[2])]
    for path in folder.iterdir():
        assert not [place for place in places if place.encode() in path.read_bytes()], path.name
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["run_dir"] is config["data"]["path"] is config["data"]["cache"] is None


def test_the_card_has_what_the_hub_reads(folder):
    data = ModelCard.load(folder / "README.md").data
    assert data.library_name == "deflow-vision"
    assert {"deflow", "reach", "reinforcement-learning"} <= set(data.tags)
    spec = json.loads((folder / "spec.json").read_text())
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    (evaluation,) = spec["evaluations"]
    assert found == {key: evaluation[key] for key in ("success", "return", "length")}


def test_the_card_names_evaluations_that_came_later(run, tmp_path):
    later = run / "evaluations" / "20260101-000000"
    later.mkdir(parents=True)
    arguments = {"env": "scripts.example_own_data:make", "seed": 9, "acting": {"flow_steps": 2}}
    (later / "evaluation.json").write_text(json.dumps({"arguments": arguments}))
    rows = "step,episode,seed,success,return,length,terminated,capped\n"
    (later / "episodes.csv").write_text(rows + "6,0,11,1,-4,5,1,0\n6,1,12,0,-30,30,0,0\n")
    try:
        policy, early = Policy.from_run(run), Policy.from_run(run, 3)
        policy.save_pretrained(tmp_path / "out")
    finally:
        shutil.rmtree(run / "evaluations")
    assert len(early.record.evaluations) == 1
    found = policy.record.evaluations[1]
    assert (found["success"], found["return"], found["episode_seeds"]) == (0.5, -17, [11, 12])
    card = (tmp_path / "out" / "README.md").read_text()
    row = r"afterwards \| `scripts.example_own_data:make` \| 9 \| 2 \| 0.5 \| -17 .* flow_steps=2"
    assert re.search(row, card)


def test_a_policy_of_the_same_run_is_replaced(run, folder):
    Policy.from_run(run, 3).save_pretrained(folder)
    assert Policy.from_pretrained(folder).record.updates == 3
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_policy_of_another_run_is_replaced_only_where_that_is_asked_for(policy, folder):
    other = Policy(policy.agent, policy.config, replace(policy.record, run="another", updates=5))
    with pytest.raises(UserError, match=r"policy of another run.*--overwrite"):
        other.save_pretrained(folder)
    assert Policy.from_pretrained(folder).record.updates == 6
    other.save_pretrained(folder, overwrite=True)
    assert Policy.from_pretrained(folder).record.updates == 5


def test_a_folder_with_something_else_is_never_replaced(policy, folder):
    (folder / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds thesis\.tex, which no export has"):
        policy.save_pretrained(folder, overwrite=True)
    assert (folder / "thesis.tex").exists()


def test_an_export_that_fails_leaves_the_policy_that_was_there(policy, folder, monkeypatch):
    def fail(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("deflow_vision.sharing.policy.model_card", fail)
    with pytest.raises(OSError, match="no space left"):
        policy.save_pretrained(folder)
    assert Policy.from_pretrained(folder).record.updates == 6
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_an_export_that_cannot_be_renamed_puts_back_what_was_there(policy, folder, monkeypatch):
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name.startswith(".partial"):
            raise OSError("read-only file system")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="read-only"):
        policy.save_pretrained(folder)
    assert Policy.from_pretrained(folder).record.updates == 6
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_an_unknown_format_is_refused_with_the_known_ones(policy, tmp_path):
    with pytest.raises(UserError, match="no format 'tflite'; choose torch-export, onnx"):
        policy.save_pretrained(tmp_path / "out", formats=["tflite"])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "a.pth", "a.pkl"])
def test_a_folder_with_a_pickle_is_refused(folder, name):
    (folder / name).touch()
    with pytest.raises(UserError, match=rf"holds {re.escape(name)}: a pickle runs code"):
        Policy.from_pretrained(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml"])
def test_a_file_that_was_changed_is_refused(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{re.escape(name)} does not match its digest"):
        Policy.from_pretrained(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "spec.json"])
def test_a_folder_without_a_file_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"holds no policy: {re.escape(name)} missing"):
        Policy.from_pretrained(folder)


def test_a_card_may_be_edited_and_left_out(folder):
    (folder / "README.md").unlink()
    assert Policy.from_pretrained(folder).record.updates == 6


def test_a_newer_schema_is_refused(folder):
    edit_spec(folder, schema=2)
    with pytest.raises(UserError, match=r"schema 2, this version .* knows those up to 1"):
        Policy.from_pretrained(folder)


def test_a_spec_that_says_too_little_is_refused(folder):
    values = json.loads((folder / "spec.json").read_text())
    del values["frame_stack"]
    (folder / "spec.json").write_text(sealed_text(values))
    with pytest.raises(UserError, match="says nothing of frame_stack"):
        Policy.from_pretrained(folder)


def test_weights_that_do_not_fit_the_configuration_are_refused(folder):
    edit_spec(folder, observation_shape=[8])
    with pytest.raises(UserError, match="arrays do not fit this agent"):
        Policy.from_pretrained(folder)


def test_a_run_folder_is_refused_with_the_way_to_share_it(run):
    with pytest.raises(UserError, match=r"is a run.*scripts/export\.py"):
        Policy.from_pretrained(run)


def test_a_spec_that_was_changed_or_has_no_digest_is_refused(folder):
    values = json.loads((folder / "spec.json").read_text())
    facts = {key: value for key, value in values.items() if key != "digest"}
    for changed in (values | {"updates": 7}, facts):
        (folder / "spec.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"spec\.json does not match its own digest"):
            Policy.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_dim": "2"}, "action_dim is '2', must be a count"),
        ({"action_dim": -1}, "action_dim is -1"),
        ({"observation_shape": [6, 6]}, r"observation_shape is \[6, 6\]"),
        ({"observation_dtype": "int8"}, "observation_dtype is 'int8', must be uint8 or float32"),
        ({"reward_range": [0, float("nan")]}, r"reward_range is \[0, nan\]"),
        ({"frame_stack": 0}, "frame_stack is 0, must be a whole number of at least 1"),
        ({"noise_dim": None}, "noise_dim is None"),
        ({"task": 5}, "task is 5, must be text"),
        ({"versions": []}, r"versions is \[\], must be a mapping"),
        ({"evaluations": [1]}, r"evaluations is \[1\]"),
    ],
)
def test_a_fact_that_makes_no_sense_is_refused_by_name(folder, changes, message):
    edit_spec(folder, **changes)
    with pytest.raises(UserError, match=rf"spec\.json: {message}"):
        Policy.from_pretrained(folder)


def test_sizes_that_no_memory_holds_are_refused_before_any_is_taken(folder):
    edit_spec(folder, action_dim=2_000_000_000)
    with pytest.raises(UserError, match="arrays do not fit this agent"):
        Policy.from_pretrained(folder)


def test_weights_that_are_not_finite_or_no_weights_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    weights["critic.mlp.weights.0"][0] = float("nan")
    for content, message in ((save(weights), "not finite"), (b"\xff" * 40, "cannot be read")):
        (folder / "model.safetensors").write_bytes(content)
        files = json.loads((folder / "spec.json").read_text())["files"]
        found = {"model.safetensors": hashlib.sha256(content).hexdigest()}
        edit_spec(folder, files=files | found)
        with pytest.raises(UserError, match=message):
            Policy.from_pretrained(folder)


def test_an_evaluation_that_is_damaged_is_named(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "evaluations" / "x").mkdir(parents=True)
    (copy / "evaluations" / "x" / "evaluation.json").write_text('{"arguments": {}}')
    with pytest.raises(UserError, match=r"evaluation\.json is damaged .*remove"):
        Policy.from_run(copy)


def test_no_secret_of_the_environment_is_in_a_run_or_an_export(folder, run, monkeypatch, tmp_path):
    secrets = {"WANDB_API_KEY": "wandb-5ecret", "HF_TOKEN": "hf_5ecret"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    text = (run / "config.yaml").read_text()
    flags = ["--config", str(tmp_path / "config.yaml"), "--run-dir", str(tmp_path / "run")]
    (tmp_path / "config.yaml").write_text(text)
    train(load([*flags, "--offline-steps", "2", "--log.wandb", "offline", "--log.tensorboard"]))
    Policy.from_run(tmp_path / "run").save_pretrained(tmp_path / "policy")
    learning_curves(tmp_path / "run")
    files = [
        path
        for place in ("run", "policy")
        for path in (tmp_path / place).rglob("*")
        if path.is_file()
    ]
    assert {"environment.json", "spec.json", "learning_curves.png"} <= {p.name for p in files}
    leaks = [p for p in files for value in secrets.values() if value.encode() in p.read_bytes()]
    assert leaks == []
