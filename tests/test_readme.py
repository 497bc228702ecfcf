"""What the README and the pages of docs/ tell people to type works; what they point to exists."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tyro
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from deflow_vision.config import compose, load, to_yaml

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MANUALS = "".join(page.read_text() for page in PAGES)
INLINE = re.compile(r"`((?:python scripts/\w+\.py |accelerate launch |pytest |make )[^`\n]+)`")
FOREIGN = {"source", "echo", "hf", "pipx", "nvidia-cuda-mps-control"}
"""Programs of others, whose arguments are not looked at."""


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```bash\n(.*?)^```", MANUALS, flags=re.DOTALL | re.MULTILINE)
    whole = "".join(blocks).replace("\\\n", " ")  # a line may go on after a backslash
    lines = dict.fromkeys([*whole.splitlines(), *INLINE.findall(MANUALS)])
    found = (shlex.split(line, comments=True) for line in lines if "..." not in line)
    # [--flag] is one that may be left out.
    return [[word.strip("[]") for word in words] for words in found if words]


def check_make(arguments: list[str], tmp_path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in (word for word in arguments if "=" not in word):
        assert re.search(rf"^{re.escape(target)}:", makefile, flags=re.MULTILINE)


def check_train(arguments: list[str], tmp_path: Path) -> None:
    if "--resume" in arguments:
        (tmp_path / "config.yaml").write_text(to_yaml(compose("cube-double-play")))
        arguments = [str(tmp_path) if word.startswith("runs/") else word for word in arguments]
    # NAME stands for any algorithm.
    arguments = ["deflow" if word == "NAME" else word for word in arguments]
    with pytest.raises(SystemExit) as stop:
        load(arguments if "--help" in arguments else [*arguments, "--dry-run"])
    assert stop.value.code == 0


def check_data(arguments: list[str], tmp_path: Path) -> None:
    script, called = importlib.import_module("scripts.data"), []

    def recorded(function: Callable[..., None]) -> Callable[..., None]:
        return functools.wraps(function)(lambda *args, **kwargs: called.append(function.__name__))

    with pytest.MonkeyPatch.context() as patch:
        for name, function in inspect.getmembers(script, inspect.isfunction):
            if name != "main" and function.__module__ == script.__name__:
                patch.setattr(script, name, recorded(function))
        patch.setattr("sys.argv", ["data.py", *arguments])
        script.main()
    assert called == [arguments[0].replace("-", "_")]


def check_benchmark(arguments: list[str], tmp_path: Path) -> None:
    script, called = importlib.import_module("scripts.benchmark"), []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("list_tables", "print_commands", "run", "table", "report"):
            function = functools.wraps(getattr(script, name))
            patch.setattr(script, name, function(lambda *words, **flags: called.append(words)))
        patch.setattr("sys.argv", ["benchmark.py", *arguments])
        script.main()
    assert len(called) == 1


def check_arguments(script: str, arguments: list[str], tmp_path: Path) -> None:
    tyro.cli(importlib.import_module(f"scripts.{script}").Arguments, args=arguments)


def check_main(script: str, arguments: list[str], tmp_path: Path) -> None:
    main = importlib.import_module(f"scripts.{script}").main
    tyro.cli(functools.wraps(main)(lambda **settings: None), args=arguments)


def check_time_reference(arguments: list[str], tmp_path: Path) -> None:
    assert len(arguments) == 1  # a folder; it runs nothing without one


def check_pytest(arguments: list[str], tmp_path: Path) -> None:
    paths = [word for word in arguments if word.startswith("tests")]
    # A page may tell how to write it: tests/test_docs.py does so.
    assert all((ROOT / path).exists() or f"`{path}`:\n\n```python" in MANUALS for path in paths)


def check_toy(arguments: list[str], tmp_path: Path) -> None:
    script, toy = (
        importlib.import_module(f"{p}.toy") for p in ("scripts", "deflow_vision.analysis")
    )

    def made(methods: Sequence[str], **settings: object) -> list[object]:
        assert [toy.make_agent(method, seed=0) for method in methods]
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "compare", made)
        tyro.cli(script.main, args=arguments)


def check_launch(arguments: list[str], tmp_path: Path) -> None:
    launch = launch_command_parser().parse_args(arguments)
    assert launch.config_file is None or (ROOT / launch.config_file).is_file()
    _validate_launch_command(launch)  # so that a number of processes that is missing shows here
    CHECKS[launch.training_script](launch.training_script_args, tmp_path)


CHECKS: dict[str, Callable[[list[str], Path], None]] = {
    "make": check_make,
    "accelerate launch": check_launch,
    "scripts/train.py": check_train,
    "scripts/data.py": check_data,
    "scripts/benchmark.py": check_benchmark,
    **{
        f"scripts/{script}.py": functools.partial(check_arguments, script)
        for script in ("bench", "doctor", "embeddings", "evaluate", "export", "report")
    },
    "scripts/compare.py": functools.partial(check_main, "compare"),
    "scripts/time_reference.py": check_time_reference,
    "pytest": check_pytest,
    "scripts/toy.py": check_toy,
}


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_of_a_manual_is_understood(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = command[1:] if command[0] == "srun" else command
    if program in FOREIGN:
        return
    if program in ("python", "accelerate"):
        second, *arguments = arguments
        program = second if program == "python" else f"{program} {second}"
    CHECKS[program](arguments, tmp_path)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings: small letters, no punctuation, hyphens for spaces."""
    found: dict[str, int] = {}
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)  # a link's text
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {f"{slug}-{i}" if i else slug for slug, count in found.items() for i in range(count + 1)}


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link and not (
            target.exists() and (not anchor or anchor in anchors(target))
        ):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_to_a_file_of_the_repository_and_to_a_heading_of_it(page: Path) -> None:
    assert not broken_links(page)


def test_a_link_to_a_heading_that_is_not_there_is_found(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(
        "# The `data` layer, twice\n## Same\n## Same\n[a](#the-data-layer-twice) [b](a.md#same-1) "
        "[c](#nothing) [d](b.md#same) [e](a.md#same-2) [f](https://x.org/#y)\n"
    )
    assert broken_links(page) == ["#nothing", "b.md#same", "a.md#same-2"]


def test_the_tree_of_the_readme_exists() -> None:
    (tree,) = re.findall(r"^```text\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    parent = ""
    for line in tree.splitlines():
        name = line.split()[0]
        path = parent + name if line.startswith(" ") else name
        parent = parent if line.startswith(" ") else name
        assert (ROOT / path).exists(), path
