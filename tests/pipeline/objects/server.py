"""A real S3 protocol server on loopback, behind a proxy that lets answers go wrong."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}

RANGE = re.compile(r"bytes=(\d+)-(\d+)")

ERRORS = {"500": ("InternalError", 500), "503": ("SlowDown", 503), "denied": ("AccessDenied", 403)}


@dataclass
class Proxy:
    """What passes through, and what goes wrong on the way."""

    url: str = ""
    target: tuple[str, int] = ("", 0)
    fault: Callable[[str, int], str | None] = lambda _, __: None
    """Is called with "METHOD /path" and the request's number; returns 500, 503 or denied (the server never sees the
    request), reset (nor then), lost (it does, and its answer is), half (half of the answer arrives), or None."""

    seen: list[str] = field(default_factory=list)
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    """Path, first byte and end of each part of an object that was asked for."""

    lock: threading.Lock = field(default_factory=threading.Lock)

    def number(self, request: str) -> int:
        with self.lock:
            self.seen.append(request)
            return len(self.seen) - 1


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # it waits 40 ms between headers and body

        def log_message(self, *_: object) -> None:
            pass

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = f"{self.command} {self.path}"
            if part := RANGE.fullmatch(self.headers.get("Range") or ""):
                proxy.asked.append((self.path.partition("?")[0], int(part[1]), int(part[2]) + 1))
            fault = proxy.fault(request, proxy.number(request))
            if fault in ERRORS:
                code, status = ERRORS[fault]
                self._answer(status, {}, f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode())
                return
            if fault == "reset":
                self._reset()
                return
            connection = http.client.HTTPConnection(*proxy.target, timeout=30)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            if fault == "lost":
                self._reset()
                return
            skipped = ("transfer-encoding", "connection", "content-length", "date", "server")
            shown = {name: value for name, value in answer.getheaders() if name.lower() not in skipped}
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self._answer(answer.status, {**shown, "Content-Length": length or "0"}, content, half=fault == "half")

        def _answer(self, status: int, headers: dict[str, str], content: bytes, *, half: bool = False) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if half else content)
            if half:
                self.wfile.flush()
                self._reset()

        def _reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815 - the library's names

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Whoever hung up, or was hung up on, was meant to be."""


@contextmanager
def serving() -> Iterator[Proxy]:
    """The server behind its proxy."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    proxy = Proxy(target=server.get_host_and_port())
    front = _Server(("127.0.0.1", 0), _handler(proxy))
    threading.Thread(target=front.serve_forever, daemon=True).start()
    proxy.url = f"http://127.0.0.1:{front.server_address[1]}"
    try:
        yield proxy
    finally:
        front.shutdown()
        front.server_close()
        server.stop()
