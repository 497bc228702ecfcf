"""Shapes and types are checked in tests, and only there: jaxtyping's import hook with beartype."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Tensors here are tiny, and tests run side by side: more threads only wait for each other, in the
# processes that tests start too.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")

import jaxtyping
import pytest
import torch
from jaxtyping import install_import_hook

from tests.browser import PROGRAMS, Browser, find_chromium
from tests.servers import S3, Web

ROOT = Path(__file__).parents[1]
SAMPLE_STORE = ROOT / "data/samples/visual-cube-double-play-v0.zarr"

torch.set_num_threads(1)

WITH_SHAPES = [
    *ROOT.glob("deflow_vision/*.py"),
    *ROOT.glob("deflow_vision/networks/*.py"),
    ROOT / "deflow_vision/datasets/transitions.py",
]
install_import_hook(
    [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in WITH_SHAPES
        if "from jaxtyping import" in path.read_text()
    ],
    "beartype.beartype",
)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the checks of shapes, which a compiled graph cannot hold."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def onednn_kernels(
    capfd: pytest.CaptureFixture[str],
) -> Callable[[Callable[[], object]], list[str]]:
    """What a call runs of oneDNN: the names of its kernels, `ref` in that of a plain loop."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("needs oneDNN")

    def kernels(call: Callable[[], object]) -> list[str]:
        capfd.readouterr()
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
            call()
        lines = capfd.readouterr().out.splitlines()
        return [line.split(",")[6] for line in lines if ",exec," in line]

    return kernels


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    server = S3()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """A bucket that the usual environment variables lead to."""
    for name, value in s3_server.variables.items():
        monkeypatch.setenv(name, value)
    s3_server.start()  # where a test that stopped it has failed
    return s3_server


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """A web server of the test's folder."""
    server = Web(tmp_path)
    yield server
    server.close()


@pytest.fixture(scope="session")
def pixel_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeFlow on the committed sample: 4 updates of tiny networks, two checkpoints."""
    from deflow_vision.config import load
    from deflow_vision.training.loop import train

    run = tmp_path_factory.mktemp("pixel_run") / "run"
    flags = ["--task", "visual-cube-double-play", "--data.path", str(SAMPLE_STORE)]
    flags += ["--encoder.name", "impala_debug", "--agent.hidden-dims", "8", "12"]
    flags += ["--batch-size", "6", "--offline-steps", "4", "--checkpoint.every", "2"]
    flags += ["--eval.episodes", "0", "--eval.val-batches", "1", "--num-threads", "1"]
    train(load([*flags, "--run-dir", str(run)]))
    return run


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A Chromium without a network; tests that ask for it are skipped where none starts."""
    program = find_chromium()
    if program is None:
        pytest.skip(f"no Chromium here (none of {', '.join(PROGRAMS)}): `make browser` brings it")
    with Browser(program) as opened:
        try:
            opened.call("Browser.getVersion")
        except RuntimeError as error:  # such as a placeholder for a package of another kind
            pytest.skip(f"{program} does not start: {error}")
        yield opened
