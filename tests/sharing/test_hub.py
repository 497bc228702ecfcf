"""Policies of the hub; a folder on this machine stands for it."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from deflow_vision.sharing import Policy
from deflow_vision.types import UserError


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A repository "owner/reach" with more in it than a policy; what it was asked for."""
    repository, asked = tmp_path / "repository", []
    shutil.copytree(folder, repository)
    for name in ("pytorch_model.bin", "policy.onnx", "run.py"):
        (repository / name).touch()

    def snapshot_download(repo_id, *, revision, allow_patterns, library_name, library_version):
        asked.append((repo_id, revision, library_name))
        if repo_id != "owner/reach":
            raise LocalEntryNotFoundError("an error of the hub")
        snapshot = tmp_path / "snapshot"
        snapshot.mkdir()
        for path in repository.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                (snapshot / path.name).symlink_to(path)  # as the hub's cache has it
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_policy_of_the_hub_is_loaded_by_its_name(hub, policy, tmp_path):
    assert Policy.from_pretrained("owner/reach", revision="v1").record == policy.record
    assert hub == [("owner/reach", "v1", "deflow-vision")]
    snapshot = {path.name for path in (tmp_path / "snapshot").iterdir()}
    assert snapshot == {"model.safetensors", "config.yaml", "spec.json", "README.md"}


def test_an_error_of_the_hub_names_the_policy_and_the_revision(hub):
    with pytest.raises(UserError, match=r"'owner/nothing' is no folder.*'v2'.*an error of the hub"):
        Policy.from_pretrained("owner/nothing", revision="v2")


def test_a_folder_goes_before_the_hub_and_has_no_revision(hub, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    name = f"{tmp_path.name}/{folder.name}"
    assert Policy.from_pretrained(name).record.task == "reach"
    assert not hub
    with pytest.raises(UserError, match="has no revision 'v1'"):
        Policy.from_pretrained(name, revision="v1")


def test_what_is_neither_a_folder_nor_a_name_is_refused(hub, tmp_path):
    for source in (tmp_path / "nothing", "reach", "a/b/c", "../reach"):
        with pytest.raises(UserError, match="no folder, nor a name on the hub"):
            Policy.from_pretrained(source)
    (tmp_path / "policy.pt").touch()
    with pytest.raises(UserError, match="is a file; a policy is a folder"):
        Policy.from_pretrained(Path(tmp_path / "policy.pt"))
    assert not hub
