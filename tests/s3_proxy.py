"""A proxy between a process and its S3 server, where requests of any client fail, get lost, come twice, or kill it.

Libraries that speak to S3 in Rust or C++ (deltalake, Arrow) cannot be patched; what they send comes by here all the
same.
"""

from __future__ import annotations

import http.client
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Kind = Literal["exits before", "exits after", "refused", "lost", "twice"]
"""`refused`: not carried out, and answered by 403. `lost`: carried out, and the connection cut instead of an answer."""
_REFUSED = b"<Error><Code>AccessDenied</Code><Message>this request is refused</Message></Error>"
_OF_A_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


class Proxy(ThreadingHTTPServer):
    """One request after another has a number, from 1; the `number`th befalls what `kind` says.

    Attributes:
        upstream: (host, port) of the server.
        victim: the process that a request may end.
        names: method and path of the requests so far.
    """

    daemon_threads = True

    def __init__(self, upstream: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self._lock = threading.Lock()
        self.begin(0, 0, None)

    def begin(self, victim: int, number: int, kind: Kind | None) -> None:
        """Count anew."""
        self.victim, self.number, self.kind = victim, number, kind
        self.names: list[str] = []

    def next_kind(self, name: str) -> Kind | None:
        """What befalls the request that has just come."""
        with self._lock:
            self.names.append(name)
            return self.kind if len(self.names) == self.number else None

    def kill(self) -> None:
        """End the victim, as a kill does."""
        os.kill(self.victim, signal.SIGKILL)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The clients of processes that died are gone, which is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *_: Any) -> None:
        pass

    def pass_on(self) -> None:
        body = self._body()
        kind = self.server.next_kind(f"{self.command} {self.path}")
        if kind == "exits before":
            self.server.kill()
        if kind == "refused":
            self._answer(403, [("Content-Type", "application/xml")], _REFUSED)
        if kind in ("exits before", "refused"):
            self.close_connection = True
            return
        status, headers, data = self._ask(body)
        if kind == "twice":
            status, headers, data = self._ask(body)
        if kind == "exits after":
            self.server.kill()
        if kind in ("exits after", "lost"):
            self.close_connection = True
            return
        self._answer(status, headers, data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on  # the names that the base class calls

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """The server's answer; all headers go on as they are, since the signature covers them."""
        connection = http.client.HTTPConnection(*self.server.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _OF_A_CONNECTION:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OF_A_CONNECTION]
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            return answer.status, [*kept, ("Content-Length", length or "0")], data
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name == "Content-Length" for name, _ in headers):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def proxy_of(endpoint: str) -> Iterator[Proxy]:
    """A proxy of the S3 server at the endpoint, which runs in a thread of this process."""
    parts = urlsplit(endpoint)
    with Proxy((str(parts.hostname), int(parts.port or 80))) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
