"""An S3 server on loopback, moto's, that counts its requests and can be made to fail."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import s3fs
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

logging.getLogger("werkzeug").setLevel(logging.CRITICAL)


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept, as S3 keeps them

    def log(self, *_: Any, **__: Any) -> None:
        pass


class S3Server:
    """A server with one bucket, `bucket`.

    requests: (method, path, range) of each request, in order. fail: called for each request; what it returns is done to
    it: None serves it, a number is the status of the answer, "cut" closes the connection before the request is served,
    "lost" after it.
    """

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self.requests: list[tuple[str, str, str]] = []
        self.fail: Callable[[dict[str, Any]], int | str | None] = lambda _: None
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=_Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def environment(self, secret: str) -> dict[str, str]:
        """What a client needs to find it. The client tries once, so that it is ours which tries again."""
        keys = {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": secret}
        return keys | {"AWS_ENDPOINT_URL": self.url, "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1"}

    def close(self) -> None:
        s3fs.S3FileSystem.clear_instance_cache()  # they know this server's address
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _serve(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        with self._lock:
            self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE", "")))
            how = self.fail(environ)
        if how == "cut":
            environ["werkzeug.socket"].shutdown(2)
            start("500 cut", [])
            return []
        if isinstance(how, int):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            code = {503: "SlowDown", 500: "InternalError", 403: "AccessDenied", 429: "Throttling"}[how]
            body = f"<Error><Code>{code}</Code><Message>not now</Message></Error>".encode()
            start(f"{how} {code}", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]
        answer = self._app(environ, start)
        if how == "lost":
            environ["werkzeug.socket"].shutdown(2)
        return answer

    def count(self, method: str, path: str) -> int:
        """Requests of a method whose path contains `path`."""
        return sum(m == method and path in p for m, p, _ in self.requests)

    @contextmanager
    def failing(self, how: Callable[[dict[str, Any]], int | str | None]) -> Iterator[None]:
        self.fail = how
        try:
            yield
        finally:
            self.fail = lambda _: None

    @contextmanager
    def failing_every(self, n: int, *how: int | str) -> Iterator[None]:
        """Each n-th request fails, in these ways by turns."""
        ways, number = itertools.cycle(how), itertools.count(1)
        with self.failing(lambda _: next(ways) if next(number) % n == 0 else None):
            yield
