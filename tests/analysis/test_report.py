"""The report of a run: what it shows, what it says is missing, and what it never tells."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deflow_vision.analysis.report import dataset as card_part
from deflow_vision.analysis.report import run as reporting
from deflow_vision.analysis.report.page import without_secrets
from deflow_vision.analysis.report.run import write_run_report
from deflow_vision.config import from_yaml, load, to_dict
from deflow_vision.datasets.card import digest_of, facts, goal_facts
from deflow_vision.datasets.store import open_store
from deflow_vision.types import UserError
from tests.pages import Page

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page(whole_run, tmp_path_factory):
    """The report of a whole run."""
    copy = shutil.copytree(whole_run, tmp_path_factory.mktemp("whole") / "run")
    return Page(write_run_report(copy))


def report(run):
    return Page(write_run_report(run))


def change_record(run, **values):
    path = run / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_everything_measured_has_a_chart(page):
    assert list(page.charts()) == [
        *("Success", "Return", "Episode length", "Success while training"),
        *("Mean squared refinement D", "Multiplier α", "Q of the data's actions"),  # noqa: RUF001
        *("critic", "flow", "Time of an update", "Share of the time waiting for data"),
        "odd/metric",
    ]


def test_points_say_their_step_and_value_with_the_interval(page):
    charts = page.charts()
    # Wilson's interval of 2 of 4.
    assert [point[2:] for point in charts["Success"]["success"]] == [
        [step, "50 [15, 85]"] for step in ("10", "20", "30")
    ]
    assert charts["Q of the data's actions"]["training"][0][2:] == ["10", "−90 [−150, −10]"]  # noqa: RUF001
    assert charts["Time of an update"]["time"][0][3] == "20"
    assert [*charts["critic"]] == ["training", "validation"]


def test_delta_is_drawn_beside_the_refinement(page):
    assert "δ = 0.005" in page.text


def test_the_turn_to_online_is_drawn_where_there_is_one(page, run):
    charts = len(page.charts())
    assert page.text.count("online") >= charts
    turns = write_run_report(run).read_text().count(">online</text>")
    assert turns == charts
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("online_steps: 10", "online_steps: 0"))
    assert ">online</text>" not in write_run_report(run).read_text()


def test_the_page_tells_settings_versions_machine_and_commit(page):
    for words in ("agent.target_divergence", "torch", "9.9.9", "an abacus", "0123456789abcdef"):
        assert words in page.text


def test_settings_that_are_not_the_published_ones_are_marked(page):
    assert "published: 0.001" in page.text
    assert "published: 1000000" in page.text  # offline_steps
    assert page.text.count("published: ") == 3, "those two and online_steps"


def test_the_commands_make_the_run_again(page, run):
    assert "git checkout 0123456789abcdef" in page.text
    (started,) = re.findall(r"python scripts/train\.py --task .*", page.text)
    (again,) = re.findall(r"python scripts/train\.py --config .*", page.text)
    for command in (started, again):
        config = load(shlex.split(command)[2:])
        wanted, found = to_dict(from_yaml(run / "config.yaml")), to_dict(config)
        assert {**found, "run_dir": None} == {**wanted, "run_dir": None}


def test_the_dataset_card_is_that_of_the_store(page, whole_run):
    store = open_store(whole_run.parent / "data.zarr")
    for fact in (*facts(store).values(), *goal_facts(store.train, "task1").values()):
        assert fact in page.text


@pytest.mark.parametrize("loss", ["gone", "another", "remote", "large"])
def test_a_dataset_that_cannot_be_shown_leaves_what_was_written_down(run, loss, monkeypatch):
    dataset = json.loads((run / "environment.json").read_text())["dataset"]
    if loss == "another":
        change_record(run, dataset=dataset | {"digests": {"train/actions": "abc123"}})
        says = "is another one"
    elif loss == "large":
        monkeypatch.setattr(card_part, "CARD_STATES", 1)
        says = f"python scripts/data.py info {dataset['path']}"
    else:
        path = "s3://bucket/data.zarr" if loss == "remote" else "/nowhere/data.zarr"
        change_record(run, dataset=dataset | {"path": path})
        says = "a report opens none" if loss == "remote" else "no longer where"
    text = report(run).text
    assert says in text
    assert "8.8.8" in text
    assert (
        digest_of(json.loads((run / "environment.json").read_text())["dataset"]["digests"]) in text
    )


def test_the_page_leads_nowhere_and_loads_nothing(page):
    addresses = page.addresses()
    assert len(addresses) > 5
    assert [a for a in addresses if not a.startswith(("#", "data:video/mp4;base64,"))] == []
    assert not [tag for tag, _ in page.elements if tag in ("link", "iframe", "object", "img")]


def test_videos_are_in_the_page_with_what_became_of_their_episode(page):
    (video,) = (attributes for tag, attributes in page.elements if tag == "video")
    assert video["src"].startswith("data:video/mp4;base64,AAAA")
    assert "30 updates, episode 0" in page.text
    assert "success, return 0, 9 steps" in page.text


def test_videos_beyond_the_limit_are_left_out_the_oldest_first(run, monkeypatch):
    film = run / "videos" / "step_30_episode_0.mp4"
    shutil.copy(film, run / "videos" / "step_10_episode_0.mp4")
    monkeypatch.setattr(reporting, "VIDEO_BYTES", int(1.5 * film.stat().st_size))
    text = report(run).text
    assert "30 updates, episode 0" in text
    assert "10 updates, episode 0" not in text
    assert "1 of 2 videos" in text


EVIL = "<script>window.caught=1</script><img src=x onerror='window.caught=1'>\"'"


@pytest.fixture
def evil_run(run, tmp_path):
    """A run whose every word is markup."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"task": EVIL, EVIL: EVIL}))
    dataset = {"path": EVIL, "versions": {EVIL: EVIL}}
    change_record(run, command=[EVIL], git_commit=EVIL, machine={EVIL: EVIL}, dataset=dataset)
    train = run / "train.csv"
    train.write_text(train.read_text().replace("odd/metric", f'"{EVIL}"'.replace('"\'"', "'\"")))
    folder = run / "evaluations" / "then"
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps({EVIL: EVIL}))
    return run.rename(tmp_path / EVIL.replace("/", ""))


def test_markup_in_names_and_values_stays_text(evil_run):
    page = report(evil_run)
    assert page.text.count("<script>") > 5
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert "img" not in [tag for tag, _ in page.elements]


def test_no_secret_comes_into_the_page(run, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "0123secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "0123secret3210")
    command = ["scripts/train.py", "--x", "0123secret", "https://me:pass@host/a?sign=abc"]
    dataset = {"path": "s3://me:pass@host/0123secret3210.zarr", "versions": {"x": "0123secret"}}
    change_record(run, command=command, machine={"key": "0123secret3210"}, dataset=dataset)
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("deflow-vision", "0123secret3210"))
    folder = run / "evaluations" / "0123secret"
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text('{"arguments": ["0123secret3210"]}')
    html = write_run_report(run.rename(tmp_path / "run-0123secret")).read_text()
    for secret in ("0123secret", "3210", "me:pass", "sign=abc"):
        assert secret not in html
    assert "https://***@host/a?***" in html
    assert "s3://***@host/***.zarr" in html


def test_the_complaint_about_a_broken_file_has_no_secret(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "0123secret3210")
    (run / "config.yaml").write_text("log: [0123secret3210\n")
    html = write_run_report(run).read_text()
    assert "config.yaml cannot be read" in html
    assert "0123secret" not in html


def test_addresses_without_secrets_stay_as_they_are():
    value = {"path": "s3://bucket/{dataset}.zarr", "list": ["a@b", "what?", 3, None]}
    assert without_secrets(value) == value


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "train.csv", "episodes.csv"])
@pytest.mark.parametrize("content", [None, "", "[1, 2", "\x00"])
def test_a_file_that_is_missing_or_broken_is_named_and_the_rest_is_shown(run, name, content):
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    page = report(run)
    if not (name.endswith(".csv") and content is not None):  # torn lines are no rows
        assert name in page.text[page.text.index("Missing") :]
    wanted = "Return" if name == "train.csv" else "Time of an update"
    assert wanted in page.charts()


def test_a_run_that_goes_on_is_said_not_to_be_finished(run):
    assert "not finished" not in report(run).text
    path = run / "train.csv"
    rows = path.read_text().splitlines()
    path.write_text("\n".join(row for row in rows if not row.startswith("30,")) + "\n30,1.")
    assert "the run is not finished: 20 of 30 updates" in report(run).text


def test_a_run_that_has_only_begun_has_a_page(run):
    for name in ("train.csv", "episodes.csv"):
        (run / name).unlink()
    shutil.rmtree(run / "videos")
    text = report(run).text
    assert "not finished: 0 of 30 updates" in text
    assert "Nothing was logged yet" in text
    assert "No episode was filmed" in text


def test_evaluations_afterwards_are_shown(run):
    folder = run / "evaluations" / "20260101-000000"
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text('{"eval/success": 0.625, "arguments": {"env": null}}')
    text = report(run).text
    assert "20260101-000000" in text
    assert "0.625" in text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no run folder.*config\.yaml"):
        write_run_report(tmp_path)


def test_the_page_is_written_whole(run, monkeypatch):
    first = write_run_report(run).read_text()
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_run_report(run)
    assert (run / "report.html").read_text() == first
    assert not list(run.glob("*partial*"))


def test_the_script_writes_a_page_for_each_run_and_refuses_other_folders(run, tmp_path):
    command = [sys.executable, "scripts/report.py", str(run), str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == f"{run / 'report.html'}\n"
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "no run folder" in done.stderr
