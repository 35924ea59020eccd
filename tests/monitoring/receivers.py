"""Places that alerts are delivered to, on loopback: a webhook that records, fails or hangs, and a small mail server."""

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "s3cr3t-t0ken"


@dataclass
class Webhook:
    """What a webhook got, and how it answers: a status, "silent" (never), or "drip" (a header that never ends)."""

    port: int = 0
    answers: list[int | str] = field(default_factory=list)  # one for each request; then 200
    got: list[dict[str, Any]] = field(default_factory=list)
    leave: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """As Apprise writes a plain webhook."""
        return f"json://user:{SECRET}@127.0.0.1:{self.port}/{SECRET}"

    @property
    def titles(self) -> list[str]:
        return [one["title"] for one in self.got]


@contextmanager
def webhook() -> Iterator[Webhook]:
    """A webhook for the block."""
    state = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = state.answers.pop(0) if state.answers else 200
            if answer == "silent":
                state.leave.wait(60)
                return
            if answer == "drip":  # each byte comes well before a socket's timeout, and the answer never ends
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not state.leave.wait(0.1):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                return
            self.send_response(int(answer))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:  # a courier that was ended hangs up
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        state.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield state
        finally:
            state.leave.set()
            server.shutdown()
            thread.join()


@contextmanager
def mailbox() -> Iterator[tuple[int, list[str]]]:
    """A mail server that takes every mail: its port, and the mails as they came (RFC 5321, the least of it)."""
    mails: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 test\r\n")
            for line in self.rfile:
                word = line.strip().upper()
                if word == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    mail = []
                    while (part := self.rfile.readline()) not in (b".\r\n", b""):
                        mail.append(part.decode())
                    mails.append("".join(mail))
                self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")
                if word == b"QUIT":
                    return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1], mails
        finally:
            server.shutdown()
            thread.join()
