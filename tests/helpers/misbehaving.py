"""A real HTTP server that speaks OpenAI's chat completions, and misbehaves as it is told to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[str], str]


@dataclass
class Server:
    """What the server says, and what it does before: one fault per request, in order, then none.

    Faults: ``429`` (Retry-After 0), ``429:SECONDS``, ``500``, ``503``, ``quota``, ``401``, ``404``, ``400`` (this
    question is refused), ``no-json-mode`` (400 that names response_format), ``slow`` (answers late), ``cut`` (half a
    body), ``drop`` (no answer at all), ``html`` (a page with status 200), ``empty`` (no choices).
    """

    answer: Answer
    faults: list[str] = field(default_factory=list)
    always: str | None = None
    slowness: float = 2.0
    questions: list[str] = field(default_factory=list)
    bodies: list[dict] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(answer: Answer, *faults: str, always: str | None = None) -> Iterator[Server]:
    """A running server on a free port of this machine."""
    state = Server(answer, list(faults), always)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return None

        def _send(self, code: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
            self.send_response(code)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = body["messages"][-1]["content"]
            with lock:
                state.questions.append(question)
                state.bodies.append(body)
                state.keys.append(self.headers.get("Authorization", ""))
                state.times.append(time.monotonic())
                fault = state.faults.pop(0) if state.faults else state.always
            said = {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": state.answer(question)},
                    }
                ],
                "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
            }
            code, _, rest = (fault or "").partition(":")
            if code == "429":
                return self._send(429, b'{"error": {"message": "slow down"}}', Retry_After=rest or "0")
            if code in ("500", "503"):
                return self._send(int(code), b"oops", "text/plain", Retry_After="0")
            if code == "quota":
                return self._send(429, b'{"error": {"message": "no money", "code": "insufficient_quota"}}')
            if code in ("401", "404", "400"):
                return self._send(int(code), json.dumps({"error": {"message": f"fault {code}"}}).encode())
            if code == "no-json-mode" and "response_format" in body:
                return self._send(400, b'{"error": {"message": "response_format is not supported"}}')
            if code == "drop":
                self.close_connection = True
                self.connection.close()
                return None
            if code == "html":
                return self._send(200, b"<html>a proxy</html>", "text/html")
            if code == "empty":
                said["choices"] = []
            if code == "slow":
                time.sleep(state.slowness)
            text = json.dumps(said).encode()
            if code == "cut":
                return self._send(200, text[: len(text) // 2])
            return self._send(200, text)

        def handle(self) -> None:
            with suppress(OSError, ValueError):  # the other side, or we ourselves, hung up
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
