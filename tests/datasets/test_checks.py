"""Stores that are not as they were written: refused when they are opened, or reported."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import zarr

from deflow_vision.datasets.schema import SEAL, read_rows
from deflow_vision.datasets.store import StoreError, add_goals, open_store, verify
from deflow_vision.files import seal

ZSTD = {"name": "zstd", "configuration": {"level": 3, "checksum": True}}


def edit_attributes(path: Path, reseal: bool = True, **changes) -> None:
    file = path / "zarr.json"
    content = json.loads(file.read_text())
    facts = content["attributes"] | changes
    facts = {k: value for k, value in facts.items() if k not in changes or value is not None}
    content["attributes"] = seal(facts, SEAL) if reseal else facts
    file.write_text(json.dumps(content))


def flip_byte(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def test_goal_whose_writing_was_cut_off_is_absent(make_store):
    path = make_store()
    digests = open_store(path).attributes["digests"]
    kept = {name: digest for name, digest in digests.items() if "task1" not in name}
    edit_attributes(path, digests=kept)
    with pytest.raises(StoreError, match=r"no rewards for the goal 'task1'.*it has none"):
        open_store(path).train.rewards("task1")
    add_goals(path, {"train": {"task1": (np.zeros(17), np.ones(17))}})
    assert open_store(path).train.goals() == ["task1"]


def test_zarr_group_of_another_format_is_refused(make_store):
    path = make_store()
    edit_attributes(path, format="lerobot")
    with pytest.raises(StoreError, match="format is 'lerobot'"):
        open_store(path)


def test_other_schema_version_is_refused(make_store):
    path = make_store()
    edit_attributes(path, version=2)
    with pytest.raises(StoreError, match="schema version 2; this program reads version 1"):
        open_store(path)


def test_incomplete_store_is_refused(make_store):
    path = make_store()
    edit_attributes(path, complete=False)
    with pytest.raises(StoreError, match="incomplete"):
        open_store(path)


def test_missing_array_is_named(make_store):
    path = make_store()
    (path / "train/actions/zarr.json").unlink()
    with pytest.raises(StoreError, match="array train/actions is missing"):
        open_store(path)


def test_array_cut_short_is_named(make_store):
    path = make_store()
    file = path / "train/actions/zarr.json"
    file.write_text(re.sub(r'"shape": \[\s*17', '"shape": [16', file.read_text()))
    with pytest.raises(StoreError, match="train/actions has 16 rows, not 17"):
        open_store(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": None}, "its attributes have no counts"),
        ({"digests": None}, "its attributes have no digests"),
        ({"env_id": None}, "its attributes have no env_id"),
        ({"counts": {"val": {"states": 4, "episodes": 1}}}, "counts have no train"),
        ({"counts": {"train": {"states": 17}}}, "counts of train are {'states': 17}"),
        ({"counts": {"train": {"states": "17", "episodes": 3}}}, "counts of train are"),
        ({"counts": {"train": 17}}, "counts of train are 17"),
        ({"counts": [17]}, r"counts are \[17\]"),
        ({"digests": ["train/actions"]}, "digests are"),
    ],
)
@pytest.mark.parametrize("check", [open_store, lambda path: add_goals(path, {})])
def test_attributes_that_make_no_sense_are_refused(make_store, check, changes, message):
    path = make_store()
    edit_attributes(path, **changes)
    with pytest.raises(StoreError, match=f"damaged: .*{message}"):
        check(path)


@pytest.mark.parametrize("part", ["rewards", "masks"])
def test_half_a_goal_is_refused_and_reported(make_store, part):
    path = make_store()
    digests = open_store(path).attributes["digests"]
    del digests[f"train/tasks/task1/{part}"]
    edit_attributes(path, digests=digests)
    with pytest.raises(StoreError, match=f"array train/tasks/task1/{part} is missing"):
        open_store(path)
    assert len(verify(path)) == 1


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "train/../../x", "/etc", "train/tasks/../rewards", "train/tasks/a/b/rewards"),
        *("train", "test/actions", "train/tactile", "train/tasks/a/reward", "train/actions\n"),
    ],
)
def test_digest_of_what_is_no_array_of_a_store_is_refused(make_store, name):
    path = make_store()
    digests = open_store(path).attributes["digests"]
    edit_attributes(path, digests=digests | {name: "0" * 64})
    with pytest.raises(StoreError, match=f"names {re.escape(repr(name))}"):
        open_store(path)


def edit_description(path: Path, name: str, **changes) -> None:
    file = path / name / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def chunks_of(*shape: int) -> dict:
    return {"name": "regular", "configuration": {"chunk_shape": shape}}


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("observations", "int8", "int8 4-D, not uint8 4-D or float32 2-D"),
        ("actions", "int32", "int32 2-D, not float32 2-D"),
        ("episode_ends", "float64", "float64 1-D, not int64 1-D"),
        ("qpos", "int32", "int32 2-D, not float32 2-D"),
        ("tasks/task1/rewards", "int32", "int32 1-D, not float32 1-D"),
        ("tasks/task1/masks", "uint32", "uint32 1-D, not float32 1-D"),
    ],
)
def test_array_of_another_dtype_is_refused(make_store, name, dtype, message):
    path = make_store()
    edit_description(path, f"train/{name}", data_type=dtype, fill_value=0)
    with pytest.raises(StoreError, match=f"array train/{name} is {message}"):
        open_store(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [17], "chunk_grid": chunks_of(4096)}, "float32 1-D, not float32 2-D"),
        ({"shape": [17, 0], "chunk_grid": chunks_of(4096, 1)}, r"shape \(17, 0\)"),
        ({"chunk_grid": chunks_of(4096, 1)}, r"chunks of \(4096, 1\)"),
        ({"chunk_grid": chunks_of(1 << 40, 2)}, r"chunks of \(1099511627776, 2\)"),
        ({"shape": [17, 1 << 50], "chunk_grid": chunks_of(4096, 1 << 50)}, "chunks of"),
        ({"chunk_grid": chunks_of(0, 2)}, ""),
        ({"chunk_grid": chunks_of(-4, 2)}, ""),
        ({"chunk_grid": chunks_of(4096)}, ""),
        ({"chunk_grid": {"name": "rectangular"}}, "cannot be opened"),
        ({"chunk_grid": None}, "cannot be opened"),
        ({"data_type": "complex1"}, "cannot be opened"),
        ({"shape": "many"}, "cannot be opened"),
        ({"node_type": "group"}, ""),
        ({"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]}, "codecs"),
        ({"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}, ZSTD]}, "codecs"),
        ({"codecs": []}, ""),
        ({"codecs": 5}, "cannot be opened"),
    ],
)
def test_array_with_another_description_is_refused(make_store, changes, message):
    path = make_store()
    edit_description(path, "train/actions", **changes)
    with pytest.raises(StoreError, match=f"damaged: array train/actions .*{message}"):
        open_store(path)


@pytest.mark.parametrize("content", ["", "[]", "5", '{"zarr_format": 3, "node_type": "group"'])
def test_array_whose_description_is_no_description_is_refused(make_store, content):
    path = make_store()
    (path / "train/actions/zarr.json").write_text(content)
    with pytest.raises(StoreError, match="damaged: array train/actions"):
        open_store(path)


@pytest.mark.parametrize("changes", [{"attributes": [1]}, {"node_type": "array"}, {"x": 1}])
def test_root_that_is_no_group_is_refused(make_store, changes):
    path = make_store()
    edit_description(path, "", **changes)
    with pytest.raises(StoreError, match="not a deflow-vision store"):
        open_store(path)


@pytest.mark.parametrize("emptied", [True, False])
def test_missing_block_is_named(make_store, emptied):
    path = make_store((200,), chunk=4)
    block = path / "train/observations/c/2/0/0/0"
    block.unlink()
    if emptied:
        block.touch()
    with pytest.raises(StoreError, match="lacks the block train/observations/c/2/0/0/0"):
        open_store(path)


def test_altered_block_is_named_when_it_is_read(make_store):
    path = make_store((200,), chunk=4)
    flip_byte(path / "train/observations/c/32/0/0/0", 60)
    observations = open_store(path).train.observations
    read_rows(observations, 0, 100)
    with pytest.raises(StoreError) as error:
        read_rows(observations, 100, 200)
    assert "array train/observations, block 32 (rows 128 to 131)" in str(error.value)
    assert f"python scripts/data.py verify {path}" in str(error.value)


def test_verify_names_the_altered_block(make_store):
    path = make_store((200,), chunk=4)
    flip_byte(path / "train/observations/c/16/0/0/0", 60)
    (problem,) = verify(path)
    assert "train/observations, block 16" in problem


def block(path: Path, number: int) -> Path:
    return path / f"train/observations/c/{number}/0/0/0"


def swap_blocks(path: Path) -> None:
    first, second = block(path, 1).read_bytes(), block(path, 3).read_bytes()
    block(path, 1).write_bytes(second)
    block(path, 3).write_bytes(first)


def test_verify_names_sound_blocks_in_each_others_place(make_store):
    path = make_store()
    swap_blocks(path)
    assert verify(path) == [
        "train/observations, block 1 (rows 4 to 7): it is not the block that was written there",
        "train/observations, block 3 (rows 12 to 15): it is not the block that was written there",
    ]


def test_verify_names_a_block_of_another_store_and_one_that_is_altered(make_store):
    path = make_store((200,), chunk=4)
    other = make_store((200,), chunk=8, name="other.zarr")
    block(path, 2).write_bytes(block(other, 2).read_bytes())
    content = block(path, 0).read_bytes()
    block(path, 40).write_bytes(content)
    flip_byte(block(path, 7), 60)
    problems = verify(path)
    assert [re.search(r"train/observations, block (\d+)", text)[1] for text in problems] == [
        *("2", "7", "40")
    ]


def test_verify_tells_which_other_file_of_an_array_is_altered(make_store):
    path = make_store()
    edit_description(path, "train/actions", attributes={"a": 1})
    flip_byte(path / "train/qpos/block_digests", 3)
    (path / "train/tasks/task1/masks/block_digests").unlink()
    (path / "val/qpos/block_digests").write_bytes(b"")
    said = [text.split(":")[0:2] for text in verify(path)]
    assert said == [
        ["train/actions", " its zarr.json is not what was written"],
        ["train/qpos", " its block_digests is not what was written"],
        ["train/tasks/task1/masks", " its digests cannot be checked"],
        ["val/qpos", " its block_digests is not what was written"],
    ]


def test_goal_that_is_added_has_digests_of_blocks_and_attributes(make_store):
    path = make_store()
    add_goals(path, {"train": {"task1": (np.zeros(17), np.ones(17))}})
    rewards = path / "train/tasks/task1/rewards/c/0"
    rewards.write_bytes((path / "train/tasks/task1/masks/c/0").read_bytes())
    (problem,) = verify(path)
    assert "train/tasks/task1/rewards, block 0 (rows 0 to 16)" in problem


@pytest.mark.parametrize(
    "changes",
    [
        {"env_id": "cube-single-play-v0"},
        {"render_profile": "draft"},
        {"notes": ["new"]},
        {"notes": None},
        {"extra": 1},
        {"attributes_digest": None},
    ],
)
@pytest.mark.parametrize("check", [open_store, lambda path: add_goals(path, {})])
def test_attributes_that_were_changed_are_refused(make_store, check, changes):
    path = make_store()
    edit_attributes(path, reseal=False, **changes)
    with pytest.raises(StoreError, match="its attributes are not those that were written"):
        check(path)


def test_attributes_of_any_json_keep_their_digest(make_store):
    seeds = {2: [1.5e-7, None, True], 10: "\u00e9\u2028", "b": (1, 2), "a": {}}
    assert open_store(make_store(seeds=seeds)).attributes["seeds"]["10"] == "\u00e9\u2028"


def test_verify_reports_actions_beyond_1(make_store):
    path = make_store()
    replace_actions(path, np.full((17, 2), 1 + 1e-7))
    assert not any("beyond" in text for text in verify(path))
    replace_actions(path, np.array([[0, -1.01]] * 17))
    assert "train/actions, block 0 (rows 0 to 16): actions beyond [-1, 1]" in verify(path)


def replace_actions(path: Path, actions: np.ndarray) -> None:
    zarr.open_group(path, mode="r+")["train/actions"][:] = actions


def test_verify_reports_a_store_that_does_not_open(tmp_path):
    (problem,) = verify(tmp_path / "a.zarr")
    assert "there is no dataset" in problem


@pytest.mark.parametrize("place", ["", "train/actions"])
def test_a_description_without_an_end_is_refused(make_store, place):
    path = make_store()
    file = path / place / "zarr.json"
    text = file.read_text()
    file.write_text(text[:-1] + f',"x":{"[" * 100_000}{"]" * 100_000}}}')
    with pytest.raises(StoreError, match="recursion"):
        open_store(path)
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(StoreError, match=r"zarr\.json"):
        open_store(path)


@pytest.mark.parametrize("name", ["block_digests", "c/1/0/0/0"])
def test_a_device_in_place_of_a_file_is_reported_and_not_read(make_store, name):
    path = make_store()
    file = path / "train/observations" / name
    file.unlink()
    file.symlink_to("/dev/zero")
    (problem,) = verify(path)
    assert name in problem
