"""Servers on this machine that stores are read from: moto's S3, and a plain web server."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BUCKET = "bucket"


class S3:
    """moto's server with a bucket; it can go away and come back with what it held."""

    def __init__(self) -> None:
        from moto.s3.models import s3_backends

        self.port, self._server, self.requests = 0, None, []
        self.start()
        backend = s3_backends["123456789012"]["aws"]
        if BUCKET not in backend.buckets:
            backend.create_bucket(BUCKET, "us-east-1")

    def start(self) -> None:
        """Serve, unless it does."""
        if self._server is not None:
            return
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
        self._server = None

    @property
    def variables(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
        }

    def connect(self, name: str) -> Any:
        from obstore.store import from_url

        return from_url(f"s3://{BUCKET}/{name}", client_options={"allow_http": True})

    def upload(self, folder: Path, name: str) -> str:
        """Copy a folder; its address."""
        bucket = self.connect(name)
        for file in folder.rglob("*"):
            if file.is_file():
                bucket.put(file.relative_to(folder).as_posix(), file.read_bytes())
        return f"s3://{BUCKET}/{name}"

    def count_requests(self) -> list[str]:
        """A list that takes every request from now on, as "GET /bucket/..."."""
        requests: list[str] = []

        class Counter(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                requests.append(record.getMessage())

        logger = logging.getLogger("werkzeug")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.handlers = [Counter()]
        return requests


class Web:
    """A web server of a folder that lists nothing; `fault` may answer in its place.

    `fault` takes a path and returns None, a status to refuse it with, or other content.
    """

    def __init__(self, root: Path) -> None:
        self.requests: list[str] = []
        self.fault: Callable[[str], int | bytes | None] = lambda path: None
        web = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(root))

            def do_GET(self) -> None:
                web.requests.append(self.path)
                answer = web.fault(self.path)
                if isinstance(answer, int):
                    self.send_error(answer)
                elif answer is not None:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(answer)))
                    self.send_header("Last-Modified", self.date_time_string())
                    self.send_header("ETag", '"1"')
                    self.end_headers()
                    self.wfile.write(answer)
                else:
                    super().do_GET()

            def list_directory(self, path: Any) -> None:
                self.send_error(403)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
