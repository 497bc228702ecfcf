"""The layers of docs/architecture.md, held by reading the imports of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "deflow_vision"
MODULES = sorted(PACKAGE.rglob("*.py"))

GROUND = {"types", "seeding", "tasks", "files"}
NUMERICS = {
    *("flow", "noisy_flow", "shortcut", "meanflow", "diffusion", "consistency", "losses"),
}
MAY_IMPORT = {
    "types": set(),
    "seeding": set(),
    "tasks": {"types"},
    "files": {"types"},
    **dict.fromkeys(NUMERICS, GROUND | NUMERICS),
    "networks": GROUND | NUMERICS,
    "envs": GROUND,
    "datasets": GROUND | {"envs"},
    "agents": GROUND | NUMERICS | {"networks"},
    "config": GROUND | {"agents", "networks", "datasets"},
    "analysis": GROUND | NUMERICS | {"agents", "networks", "config", "datasets", "envs"},
    "training": GROUND
    | NUMERICS
    | {"agents", "networks", "config", "datasets", "envs", "analysis"},
    "benchmark": GROUND | {"config", "analysis"},
    "sharing": GROUND | {"agents", "config", "datasets", "training", "analysis"},
    "timing": GROUND
    | NUMERICS
    | {"agents", "networks", "config", "datasets", "envs", "training", "sharing"},
    "doctor": GROUND | {"agents", "config", "datasets", "envs", "training"},
}
"""What each part of the package may import, besides itself."""

ONE_LAZY_HOME = (
    *("wandb", "ogbench", "timm", "kornia"),
    *("gymnasium_robotics", "h5py", "minari", "obstore"),
    *("huggingface_hub", "onnxruntime", "submitit", "umap"),
)

LAZY = (*ONE_LAZY_HOME, "torchvision")

TORCH_FREE = (
    *("types", "seeding", "tasks", "files", "envs"),
    *(f"datasets.{name}" for name in ("store", "transitions", "sampler", "relabel", "collect")),
    *("datasets.divergence", "datasets.likeness"),
    *("benchmark.job", "doctor.drawing", "timing.drawing"),
)


@dataclass(frozen=True)
class Import:
    """One imported name: `lazy` inside a function, `typing` only for the type checker."""

    module: str
    lazy: bool
    typing: bool


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def imports_of(path: Path) -> list[Import]:
    def walk(node: ast.AST, lazy: bool, typing: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, lazy, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write deflow_vision. in full"
            yield Import(str(node.module), lazy, typing)
            yield from (Import(f"{node.module}.{alias.name}", lazy, typing) for alias in node.names)
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.If):
            guarded = "TYPE_CHECKING" in ast.unparse(node.test)
            for child in node.body:
                yield from walk(child, lazy, typing or guarded)
            for child in node.orelse:
                yield from walk(child, lazy, typing)
        else:
            for child in ast.iter_child_nodes(node):
                yield from walk(child, lazy, typing)

    return list(walk(ast.parse(path.read_text()), lazy=False, typing=False))


def own_part(module: str) -> str | None:
    """`networks` for `deflow_vision.networks.mlp`; None for other people's packages."""
    head, *rest = module.split(".")
    return rest[0] if head == "deflow_vision" and rest else None


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_from_its_own_layer_and_below(path: Path) -> None:
    part = name_of(path).split(".")[0]
    if not part:
        assert not any(own_part(found.module) for found in imports_of(path))
        return
    allowed = MAY_IMPORT[part] | {part, "__version__"}
    above = {found.module for found in imports_of(path) if own_part(found.module)}
    above = {module for module in above if own_part(module) not in allowed}
    assert not above, f"{name_of(path)} may not import {sorted(above)}; allowed: {sorted(allowed)}"


def test_an_agent_imports_no_other_agent_but_the_one_that_it_extends() -> None:
    for path in sorted((PACKAGE / "agents").glob("*.py")):
        if path.stem in ("__init__", "base"):
            continue
        allowed = {"base", "deflow"} if path.stem == "deflow_floq" else {"base"}
        for found in imports_of(path):
            if found.module.startswith("deflow_vision.agents"):
                assert found.module.split(".")[2] in allowed, f"{path.name}: {found.module}"


@pytest.mark.parametrize("library", LAZY)
def test_a_heavy_library_is_imported_only_inside_functions(library: str) -> None:
    for home, found in homes_of(library):
        assert found.lazy, f"{home} imports {library} at the top"


@pytest.mark.parametrize("library", ONE_LAZY_HOME)
def test_a_library_with_a_home_is_imported_in_one_module(library: str) -> None:
    homes = {home for home, _ in homes_of(library)}
    assert len(homes) <= 1, f"{library} is imported in {sorted(homes)}"


def homes_of(library: str) -> Iterator[tuple[str, Import]]:
    """Where it is imported, but for the type checker."""
    for path in [*MODULES, *sorted((ROOT / "scripts").glob("*.py"))]:
        for found in imports_of(path):
            if found.module.split(".")[0] == library and not found.typing:
                yield str(path.relative_to(ROOT)), found


@pytest.mark.parametrize("module", TORCH_FREE)
def test_a_module_of_the_environment_workers_never_reaches_torch(module: str) -> None:
    known = {name_of(path): path for path in MODULES}
    reached: set[str] = set()
    waiting = [name for name in known if name == module or name.startswith(f"{module}.")]
    assert waiting, f"there is no module {module}"
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        for found in imports_of(known[name]):
            library = found.module.split(".")[0]
            assert found.typing or library not in ("torch", "torchvision", "triton", "kornia"), (
                f"{module} reaches {found.module} through {name}"
            )
            inner = found.module.removeprefix("deflow_vision.")
            if library == "deflow_vision" and not found.typing:
                waiting += [part for part in (inner, inner.rpartition(".")[0]) if part in known]


def test_importing_the_environments_and_the_store_loads_no_torch() -> None:
    modules = ", ".join(f"deflow_vision.{name}" for name in TORCH_FREE)
    assert run_python(f"import sys, {modules}; print('torch' in sys.modules)").strip() == "False"


def test_importing_the_package_has_no_side_effect() -> None:
    code = """
import os, random, sys
before, state = dict(os.environ), random.getstate()
import deflow_vision
assert dict(os.environ) == before and random.getstate() == state
print(sorted(name for name in sys.modules if name in ("torch", "numpy", "gymnasium")))
"""
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_stays_within_three_hundred_lines(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= 300, f"{lines} lines"
