"""A Hub on the loopback interface: its HTTP API in memory, plain LFS, with faults to order.

Commits are whole trees; `Hub.history` keeps every value that every branch ever had, so that a test can look
at all that was ever visible.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer

from hub_routes import Handler

ATTRIBUTES = b"*.safetensors filter=lfs\n*.onnx filter=lfs\n*.data filter=lfs\n"


@dataclass
class Fault:
    """What to do to the next `times` requests whose "METHOD path" matches.

    `kind` is a status, "cut" (close in the middle of the body), "lost" (do it, then close without an answer),
    "hang" (set `reached`, then wait for `release`), "short" (half of a download) or a function of the hub,
    called before the request is served.
    """

    pattern: str
    kind: object
    times: int = 1
    headers: dict = field(default_factory=dict)
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


@dataclass
class Commit:
    oid: str
    parent: str | None
    files: dict  # path -> bytes (git) or ("lfs", sha256, size)
    message: str = ""


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    branches: dict = field(default_factory=dict)


class Hub:
    """State and behaviour; `url` is what HF_ENDPOINT is set to."""

    def __init__(self, part_bytes=64 * 1024, lfs_above=16 * 1024):
        self.repos, self.commits, self.objects, self.parts = {}, {}, {}, {}
        self.history, self.log, self.faults, self.uploaded = [], [], [], []
        self.part_bytes, self.lfs_above = part_bytes, lfs_above
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self):
        for fault in self.faults:
            fault.release.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def fault(self, pattern, kind, **options):
        self.faults.append(Fault(pattern, kind, **options))
        return self.faults[-1]

    def create(self, name, *, private=False, gated=False):
        self.repos[name] = Repo(private=private, gated=gated)
        self.commit(name, "main", {".gitattributes": ATTRIBUTES}, "initial commit")

    def commit(self, name, branch, changes, message="", deleted=(), create=False):
        """A new commit on a branch, and its id."""
        with self.lock:
            repo = self.repos[name]
            parent = repo.branches.get(branch) or (repo.branches.get("main") if create else None)
            files = {**(self.commits[parent].files if parent else {}), **changes}
            for path in deleted:
                del files[path]
            seed = json.dumps([parent, message, sorted(map(str, files.items())), len(self.commits)])
            oid = hashlib.sha1(seed.encode()).hexdigest()
            self.commits[oid] = Commit(oid, parent, files, message)
            self.move(name, branch, oid)
            return oid

    def move(self, name, branch, oid):
        self.repos[name].branches[branch] = oid
        self.history.append((name, branch, oid))

    def visible(self, name, branch="main"):
        """Every tree that the branch ever showed: path -> content's SHA-256, or None for a missing object."""
        trees = [self.commits[oid].files for repo, ref, oid in self.history if (repo, ref) == (name, branch)]
        return [{path: self.digest(entry) for path, entry in tree.items()} for tree in trees]

    def digest(self, entry):
        content = self.content(entry)
        return None if content is None else hashlib.sha256(content).hexdigest()

    def content(self, entry):
        return entry if isinstance(entry, bytes) else self.objects.get(entry[1])

    def requests(self, pattern):
        return [line for line in self.log if re.search(pattern, line)]
