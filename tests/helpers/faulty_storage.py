"""A bucket for tests: an emulator of Google Cloud Storage, and what makes it fail.

server = Emulator(folder)
with Faults(server) as faults:  # programs that start inside reach the server through it
    faults.answer("checkpoints/10", 503, times=2)

The emulator overwrites what Google would refuse to make twice; through `Faults` it is refused.
"""

import contextlib
import dataclasses
import http.client
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.parse

from tests.helpers import tiny_run

SERVER = (
    "import sys; from gcp_storage_emulator.server import create_server\n"
    "create_server('127.0.0.1', int(sys.argv[1]), in_memory=False,"
    " data_dir=sys.argv[2], default_bucket=sys.argv[3] or None).run()"
)
ADDRESSES = (
    "STORAGE_EMULATOR_HOST",
    "TENSORSTORE_GCS_HTTP_URL",
    "CLOUD_STORAGE_EMULATOR_ENDPOINT",
)
# what Google says of an account that may not
DENIED = "made@test does not have {} access to the Google Cloud Storage object."


class Emulator:
    """A server in a process of its own."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self, bucket="made"):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(self.port), str(self.folder), bucket],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        tiny_run.wait_for(self.process, self._answers)

    def _answers(self):
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0


@contextlib.contextmanager
def serve(folder):
    """A server that this process, and those that it starts, take for Google's."""
    server = Emulator(folder)
    before = dict(os.environ)
    os.environ |= dict.fromkeys(ADDRESSES, server.address) | {
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "made",
        "NO_GCE_CHECK": "true",
        "GCE_METADATA_ROOT": "127.0.0.1:1",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    yield server
    server.process.kill()
    os.environ.clear()
    os.environ.update(before)


@dataclasses.dataclass
class Rule:
    """What happens to requests that fit a pattern.

    Attributes:
      status: what is answered; None: nothing, and the connection stays open.
      times: to how many requests.
      hits: to how many it happened so far.
    """

    pattern: re.Pattern
    status: int | None
    times: float
    message: str
    hits: int = 0


class Faults:
    """A proxy before the server that fails where it is told to."""

    def __init__(self, server):
        self._rules: list[Rule] = []
        self._lock, self._over = threading.Lock(), threading.Event()
        self._creating = threading.Lock()
        faults = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                rule = faults._rule(f"{self.command} {urllib.parse.unquote(self.path)}", body)
                if rule is None and "ifGenerationMatch=0" in self.path:
                    with faults._creating:
                        if self._is_there(body):
                            self._say(412, {}, b"{}")
                        else:
                            self._pass_on(body)
                elif rule is None:
                    self._pass_on(body)
                elif rule.status is None:
                    self.close_connection = True
                    faults._over.wait()
                else:
                    error = {"code": rule.status, "message": rule.message}
                    self._say(rule.status, {}, json.dumps({"error": error}).encode())

            # the names that http.server looks for
            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer  # noqa: N815

            def _is_there(self, body):
                bucket = re.search("/b/([^/]+)/o", self.path)[1]
                query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                names = query.get("name") or re.findall(
                    r'"name": "([^"]+)"', body.decode(errors="replace")
                )
                inner = http.client.HTTPConnection("127.0.0.1", server.port)
                place = f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(names[0], safe='')}"
                inner.request("GET", place)
                return inner.getresponse().status == 200

            def _pass_on(self, body):
                try:
                    inner = http.client.HTTPConnection("127.0.0.1", server.port)
                    inner.request(self.command, self.path, body, dict(self.headers))
                    response = inner.getresponse()
                    content = response.read()
                except OSError:  # the server is away: so is this one
                    self.close_connection = True
                    return
                self._say(response.status, dict(response.getheaders()), content)
                inner.close()

            def _say(self, status, headers, content):
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def handle(self):
                with contextlib.suppress(ConnectionError):  # who asked was killed
                    super().handle()

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    def answer(self, pattern, status, times=float("inf"), message="made to fail"):
        """Answers requests with an error where method, path or body (which holds the name of a
        small upload) fit."""
        rule = Rule(re.compile(pattern), status, times, message)
        with self._lock:
            self._rules.append(rule)
        return rule

    def hold(self, pattern):
        """Never answers them, so that whoever asks can be killed in the middle."""
        return self.answer(pattern, None)

    def clear(self):
        with self._lock:
            self._rules.clear()

    def _rule(self, line, body):
        text = f"{line} {body[:2000].decode(errors='replace')}"
        with self._lock:
            for rule in self._rules:
                if rule.hits < rule.times and rule.pattern.search(text):
                    rule.hits += 1
                    return rule
        return None

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._before = {name: os.environ[name] for name in ADDRESSES}
        here = f"http://127.0.0.1:{self._server.server_port}"
        os.environ.update(dict.fromkeys(ADDRESSES, here))
        return self

    def __exit__(self, *_):
        os.environ.update(self._before)
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
