"""What `suggest-delta` says of a dataset."""

import runpy
from io import StringIO
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from rich.console import Console

from deflow_vision.analysis.variance import Suggestion
from deflow_vision.datasets.divergence import ActionVariance
from tests.training.conftest import write_task_store

ROOT = Path(__file__).resolve().parents[2]


def suggestion(**changes):
    rng = np.random.default_rng(0)
    found = [
        ActionVariance(rng.lognormal(np.log(mean), 1, 500) * np.exp(-0.5), 0.0012, words, "raw")
        for mean, words in ((0.02, "itself"), (0.03, "others"), (0.04, "far ones"))
    ]
    facts = {"domains": ("manipulation",), "published": 0.001} | changes
    return Suggestion("cube-single-play-v0", found, **facts)


def printed(table):
    console = Console(width=100, record=True, file=StringIO())
    console.print(table)
    return console.export_text()


def test_a_published_dataset_has_one_domain_and_its_published_value(tmp_path):
    path = write_task_store(tmp_path / "store.zarr", "state")
    found = Suggestion.of(path, k=5, samples=100, seed=0, metric="standardised")
    assert (found.dataset, found.domains) == ("cube-single-play-v0", ("manipulation",))
    assert found.published == 0.001
    assert found.suggested == {"manipulation": float(f"{0.1 * found.found[0].iav:.2g}")}
    assert [each.neighbours for each in found.found] == [
        "5 nearest, itself included",
        "5 nearest others",
        "5 nearest others, none within 10 steps",
    ]


def test_somebodys_own_dataset_gets_both_domains_and_nothing_published(tmp_path):
    path = write_task_store(tmp_path / "store.zarr", "state", env_id="my-robot")
    found = Suggestion.of(path, k=5, samples=100, seed=0, metric="raw")
    assert found.domains == ("manipulation", "navigation")
    assert found.suggested["navigation"] > 5 * found.suggested["manipulation"]
    assert found.published is None


def test_the_table_and_the_words_give_definition_error_and_value():
    found = suggestion()
    table = printed(found.table())
    assert "raw distance" in table
    assert f"{found.found[2].iav:.3g} ± 0.001" in table
    delta = found.suggested["manipulation"]
    assert found.lines()[1:] == [
        f"--agent.target-divergence {delta:g}   0.1 x IAV, manipulation",
        "published: 0.001",
    ]


@pytest.mark.parametrize(
    "changes", [{}, {"domains": ("manipulation", "navigation"), "published": None}]
)
def test_the_distribution_is_drawn(changes, tmp_path):
    path = suggestion(**changes).plot(tmp_path / "delta.png")
    picture = iio.imread(path)
    assert picture.shape[1] > 900
    assert picture.std() > 5


def test_actions_without_any_variance_are_drawn_too(tmp_path):
    still = [ActionVariance(np.zeros(9), None, words, "raw") for words in "abc"]
    found = Suggestion("mine", still, ("navigation",), None)
    assert "?" in printed(found.table())
    assert found.plot(tmp_path / "delta.png").exists()


@pytest.fixture
def data_script(monkeypatch):
    """Run `scripts/data.py` with arguments, in this process, which has the libraries loaded."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["data.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "scripts" / "data.py"), run_name="__main__")

    return run


def test_the_command_line_suggests_and_draws(data_script, tmp_path, capsys):
    path = write_task_store(tmp_path / "store.zarr", "state")
    data_script("suggest-delta", path, "--plot", tmp_path / "new" / "delta.png")
    said = capsys.readouterr().out
    assert "0.1 x IAV, manipulation" in said
    assert "published: 0.001" in said
    assert (tmp_path / "new" / "delta.png").exists()


def test_a_picture_of_another_kind_is_refused_before_the_search(data_script, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        data_script("suggest-delta", tmp_path / "no.zarr", "--plot", tmp_path / "delta.pdf")
    assert refused.value.code == 2
    assert "name a .png file" in capsys.readouterr().err
