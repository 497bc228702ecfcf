"""Shapes and types are checked in tests, and only there: jaxtyping's import hook with beartype."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

from tests.browser import PROGRAMS, Browser, find_chromium
from tests.servers import S3, Web

torch.set_num_threads(1)  # tensors here are tiny: more threads only wait for each other

install_import_hook(
    [
        "deflow_vision.flow",
        "deflow_vision.losses",
        "deflow_vision.networks",
        "deflow_vision.datasets.transitions",
    ],
    "beartype.beartype",
)


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
