"""The worked examples of docs/ work where the pages say; the site is built without a warning."""

from __future__ import annotations

import csv
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SAMPLE = ROOT / "data/samples/visual-cube-double-play-v0.zarr"
FILES = re.compile(
    r"`([\w/]+\.\w+)`[^`]*?\n\n```(?:python|yaml)\n(.*?)^```", re.DOTALL | re.MULTILINE
)
LINES = re.compile(
    r"`(\w+)`, in `([\w/]+\.py)`:\n\n```python\n(from .*?)\n```\n\n```python\n( {4}.*?)\n```"
)


def follow(page: str, root: Path) -> None:
    """Do in a copy of the repository what a page says: new files, and two lines in an old one."""
    text = (DOCS / page).read_text()
    written = [(path, code) for path, code in FILES.findall(text) if not (root / path).exists()]
    for path, code in written:
        (root / path).write_text(code)
    ((table, path, import_line, entry),) = LINES.findall(text)
    old = (root / path).read_text()
    start = re.search(rf"^{table}: .*\{{\n", old, flags=re.MULTILINE)
    assert start is not None, f"{path} has no table {table}"
    new = f"{old[: start.end()]}{entry}\n{old[start.end() :]}"
    (root / path).write_text(
        new.replace("\nfrom deflow_vision.", f"\n{import_line}\nfrom deflow_vision.", 1)
    )
    assert written, f"{page} has no file"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with both examples in it."""
    root = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("deflow_vision", "configs", "scripts", "tests/agents"):
        shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
    tests = [f"tests/{name}.py" for name in ("__init__", "conftest", "browser", "servers")]
    for file in ("pyproject.toml", *tests):
        shutil.copy(ROOT / file, root / file)
    follow("adding-an-algorithm.md", root)
    follow("adding-an-encoder.md", root)
    return root


def run(root: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_examples_train_together_from_pixels(checkout: Path) -> None:
    settings = ["--preset", "debug", "--eval.episodes", "0", "--num-threads", "1"]
    arguments = ["--task", "visual-cube-double-play", "--algo", "td3_bc", "--encoder.name", "drq"]
    paths = ["--data.path", str(SAMPLE), "--run-dir", "run"]
    run(checkout, "scripts/train.py", *arguments, *settings, *paths)
    with (checkout / "run/train.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/critic/loss"]]
    assert len(rows) == 6
    for loss in ("critic/loss", "actor/q_loss", "actor/bc_loss"):
        assert math.isfinite(float(rows[-1][f"train/{loss}"]))


def test_the_example_of_an_algorithm_passes_the_contract(checkout: Path) -> None:
    (command,) = re.findall(r"^pytest .*", (DOCS / "adding-an-algorithm.md").read_text(), re.M)
    *words, selected = shlex.split(command)
    chosen = f"{selected} and not compiles and not separate"  # those two take long
    out = run(checkout, "-m", *words, chosen, "-q", "-p", "no:cacheprovider")
    assert int(re.findall(r"(\d+) passed", out)[0]) > 20


def test_the_examples_are_clean(checkout: Path) -> None:
    files = ["deflow_vision/agents/td3_bc.py", "deflow_vision/networks/drq.py"]
    run(checkout, "-m", "ruff", "check", "--no-cache", *files, "tests/agents/test_td3_bc.py")
    run(checkout, "-m", "ruff", "format", "--check", "--no-cache", *files)


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = ["-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", "-b", "html", "."]
    return subprocess.run(
        [sys.executable, *command, str(out)], cwd=source, capture_output=True, text=True
    )


def test_the_site_is_built_and_found_in(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    for page in DOCS.glob("*.md"):
        assert (tmp_path / "docs" / f"{page.stem}.html").is_file()
    (first,) = re.findall(r"url=(\S+)\"", (tmp_path / "index.html").read_text())
    assert (tmp_path / first).is_file()
    assert "puzzl" in (tmp_path / "searchindex.js").read_text()  # the stem of a word of the pages
    html = (tmp_path / "docs/algorithms.html").read_text()
    assert 'class="mermaid"' in (tmp_path / "docs/architecture.html").read_text()
    (code,) = set(re.findall(r'href="\.\./(_downloads/\w+/rebrac\.py)"', html))
    assert (tmp_path / code).read_text() == (ROOT / "deflow_vision/agents/rebrac.py").read_text()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[a](algorithms.md#no-such-method)", "no-such-method"),
        ("[a](no-such-page.md)", "no-such-page"),
        ("nothing", "isn't included in any toctree"),
    ],
)
def test_a_broken_link_or_a_page_that_is_nowhere_fails_the_build(tmp_path, text, complaint) -> None:
    source = tmp_path / "source"
    for folder in ("docs", "data"):
        (source / folder).mkdir(parents=True)
    for file in ("conf.py", "site.css"):
        shutil.copy(DOCS / file, source / "docs" / file)
    shutil.copytree(DOCS / "root", source / "docs/root")
    listed = "algorithms" if text == "nothing" else "algorithms\nnew"
    (source / "docs/index.md").write_text(f"# Home\n\n```{{toctree}}\n{listed}\n```\n")
    (source / "docs/algorithms.md").write_text("# Algorithms\n\nText.\n")
    (source / "docs/new.md").write_text(f"# New\n\n{text}\n")
    done = build(source, tmp_path / "out")
    assert done.returncode != 0
    assert complaint in done.stderr
    assert done.stderr.count("WARNING") == 1
