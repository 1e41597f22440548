"""A chat endpoint on 127.0.0.1 that plays a script, then answers well."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub:
    """What was asked, and what is still to be played."""

    def __init__(self, script: list[dict], reply: Callable[[list[dict]], str]) -> None:
        self.script, self.reply = list(script), reply
        self.requests: list[dict] = []  # path, headers and body of each
        self.released = threading.Event()  # ends the waits of the server's threads
        self.lock = threading.Lock()
        self.url = ""


def completion(text: str) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@contextlib.contextmanager
def serve(script: list[dict] = (), reply: Callable = lambda messages: "good") -> Iterator[Stub]:
    """Plays `script`, a step a request, then `reply`.

    A step: `status`, `headers`, `body`; `silent` accepts the request and never answers, `cut`
    breaks off in the middle of the body.
    """
    stub = Stub(script, reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with stub.lock:
                asked = {"path": self.path, "headers": dict(self.headers), "body": body}
                stub.requests.append(asked)
                step = stub.script.pop(0) if stub.script else {}
            if step.get("silent"):
                stub.released.wait(20)
                return
            text = step.get("body", "" if "status" in step else None)
            data = (completion(stub.reply(body["messages"])) if text is None else text).encode()
            self.send_response(step.get("status", 200))
            for name, value in step.get("headers", {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:-5] if step.get("cut") else data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield stub
    finally:
        stub.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
