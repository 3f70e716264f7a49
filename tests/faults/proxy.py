"""A proxy in front of a real MLflow server that refuses, hangs, is slow or answers 500, when it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["refuses", "hangs", "is slow", "answers 500"]


class Proxy:
    """Forwards to `port`; after `first` requests, `fault` happens to the next `count` requests (None: to all)."""

    def __init__(self, port: int, fault: Fault, first: int, count: int | None) -> None:
        self.target, self.fault, self.first, self.count = port, fault, first, count
        self.asked = 0
        self.end = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with contextlib.suppress(OSError):
                    super().handle_one_request()

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if proxy.due() and not self.fail():
                    return
                connection = HTTPConnection("127.0.0.1", proxy.target, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                for key, value in answer.getheaders():
                    if key.lower() not in ("transfer-encoding", "content-length", "connection", "server", "date"):
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def fail(self) -> bool:
                """Do the fault; whether the request is to be forwarded after it."""
                if proxy.fault == "is slow":
                    proxy.end.wait(3.0)
                    return True
                if proxy.fault == "hangs":
                    proxy.end.wait(60.0)
                elif proxy.fault == "answers 500":
                    self.send_response(500)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                self.close_connection = True
                if proxy.fault == "refuses":
                    with contextlib.suppress(OSError):
                        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                        self.connection.shutdown(socket.SHUT_RDWR)
                return False

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward

            def log_message(self, *arguments: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def due(self) -> bool:
        """Whether the fault happens to this request."""
        self.asked += 1
        return self.asked > self.first and (self.count is None or self.asked <= self.first + self.count)

    def mend(self) -> None:
        """Work from now on."""
        self.first = 10**9

    def close(self) -> None:
        self.end.set()
        self.server.shutdown()
        self.server.server_close()
        time.sleep(0)
