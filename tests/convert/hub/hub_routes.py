"""The routes of the loopback Hub: the HTTP API of the Hugging Face Hub, as far as pushing and pulling go."""

import base64
import hashlib
import json
import re
import time
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "loopback"


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sibling(path, entry):
    """A file as the Hub tells it with a repository."""
    if isinstance(entry, bytes):
        return {"rfilename": path, "size": len(entry), "blobId": git_oid(entry)}
    lfs = {"sha256": entry[1], "size": entry[2], "pointerSize": 130}
    return {"rfilename": path, "size": entry[2], "lfs": lfs}


class Handler(BaseHTTPRequestHandler):
    """One request. Routes are methods named in ROUTES."""

    hub = None
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Silent."""

    def serve(self):
        parts = urlsplit(self.path)
        self.route, self.query = parts.path, parse_qs(parts.query)
        line = f"{self.command} {self.route}"
        self.hub.log.append(line)
        fault = next((one for one in self.hub.faults if one.times and re.search(one.pattern, line)), None)
        if fault:
            fault.times -= 1
            if fault.kind == "cut":
                self.rfile.read(min(int(self.headers.get("Content-Length", 0)), 1000))
                return self.hang_up()
            if fault.kind == "hang":
                fault.reached.set()
                fault.release.wait(60)
                return self.hang_up()
            if isinstance(fault.kind, int):
                self.body()
                return self.answer({"error": "ordered"}, status=fault.kind, headers=fault.headers)
            if callable(fault.kind):
                fault.kind(self.hub)
        self.lost = bool(fault and fault.kind == "lost")
        for pattern, name in ROUTES:
            match = re.fullmatch(pattern, line)
            if match:
                return getattr(self, name)(*map(unquote, match.groups()))
        self.body()
        return self.fail(404, None, f"no route {line}")

    do_GET = do_POST = do_PUT = do_HEAD = serve  # noqa: N815

    def hang_up(self):
        self.close_connection = True
        self.connection.close()

    def body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, data, status=200, headers=None):
        if self.__dict__.get("lost"):
            return self.hang_up()
        content = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        return None

    def fail(self, status, code, message):
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.answer({"error": message}, status, headers)

    @property
    def member(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repo(self, name):
        """The repository, if this caller may see it; else the error is sent."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.member):
            return self.fail(404 if self.member else 401, "RepoNotFound", "Repository not found")
        if repo.gated and not self.member:
            return self.fail(403, "GatedRepo", "Access to this model is restricted")
        return repo

    def at(self, name, revision):
        """The commit of a branch, PR or id; else the error is sent."""
        repo = self.repo(name)
        if repo is None:
            return None
        oid = repo.branches.get(revision, revision)
        if oid not in self.hub.commits:
            return self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.hub.commits[oid]

    def whoami(self):
        self.answer({"name": "me", "type": "user"}) if self.member else self.fail(401, None, "Invalid token")

    def create_repo(self):
        given = json.loads(self.body())
        name = f"{given.get('organization') or 'me'}/{given['name']}"
        if not self.member:
            return self.fail(401, None, "Invalid credentials in Authorization header")
        if not name.startswith("me/"):
            return self.fail(403, None, f"You don't have the rights to create {name}")
        if name in self.hub.repos:
            return self.answer({"url": f"{self.hub.url}/{name}", "error": "exists"}, 409)
        self.hub.create(name, private=given.get("visibility") == "private")
        return self.answer({"url": f"{self.hub.url}/{name}", "id": name})

    def validate_yaml(self):
        content = json.loads(self.body())["content"]
        if not content.startswith("---\n"):
            return self.answer({"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]})
        if "license:" not in content:
            return self.answer({"errors": [{"message": '"license" is required'}], "warnings": []}, 400)
        return self.answer({"errors": [], "warnings": []})

    def info(self, name, revision="main"):
        commit = self.at(name, revision)
        if commit is not None:
            repo = self.hub.repos[name]
            self.answer(
                {
                    "id": name,
                    "modelId": name,
                    "sha": commit.oid,
                    "private": repo.private,
                    "tags": [],
                    "siblings": [sibling(path, entry) for path, entry in commit.files.items()],
                }
            )

    def tree(self, name, revision):
        commit = self.at(name, revision)
        if commit is None:
            return
        rows = []
        for path, entry in commit.files.items():
            row = {"type": "file", "path": path}
            if isinstance(entry, bytes):
                row.update(size=len(entry), oid=git_oid(entry))
            else:
                pointer = f"lfs {entry[1]} {entry[2]}".encode()
                lfs = {"oid": entry[1], "size": entry[2], "pointerSize": len(pointer)}
                row.update(size=entry[2], oid=git_oid(pointer), lfs=lfs)
            rows.append(row)
        self.answer(rows)

    def refs(self, name):
        repo = self.repo(name)
        if repo is not None:
            found = [
                {"name": key, "ref": f"refs/heads/{key}", "targetCommit": oid}
                for key, oid in repo.branches.items()
            ]
            self.answer({"branches": found, "tags": [], "converts": []})

    def branch(self, name, branch):
        self.body()
        repo = self.repo(name)
        if repo is None:
            return None
        if branch in repo.branches:
            return self.answer({"error": "Reference already exists"}, 409)
        self.hub.move(name, branch, repo.branches["main"])
        return self.answer({})

    def preupload(self, name, revision):
        given = json.loads(self.body())
        commit = self.at(name, revision)
        if commit is None:
            return
        rows = []
        for file in given["files"]:
            binary = b"\0" in base64.b64decode(file["sample"]) or file["size"] > self.hub.lfs_above
            entry = commit.files.get(file["path"])
            oid = None if entry is None else git_oid(entry) if isinstance(entry, bytes) else entry[1]
            mode = "lfs" if binary or file["path"].endswith(".safetensors") else "regular"
            rows.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": rows})

    def lfs_batch(self, name):
        given = json.loads(self.body())
        if not self.member:
            return self.fail(401, None, "Unauthorized")
        rows = []
        for one in given["objects"]:
            oid, size = one["oid"], one["size"]
            row = {"oid": oid, "size": size}
            if oid not in self.hub.objects:
                secret = "?X-Amz-Signature=sesame"
                upload = {"href": f"{self.hub.url}/storage/{oid}{secret}"}
                if size > self.hub.part_bytes:
                    count = -(-size // self.hub.part_bytes)
                    numbers = {
                        str(i + 1): f"{self.hub.url}/storage/{oid}/{i + 1}{secret}" for i in range(count)
                    }
                    header = {"chunk_size": str(self.hub.part_bytes), **numbers}
                    upload = {"href": f"{self.hub.url}/complete/{oid}", "header": header}
                verify = {"href": f"{self.hub.url}/verify/{oid}"}
                row["actions"] = {"upload": upload, "verify": verify}
            rows.append(row)
        return self.answer({"transfer": "basic", "objects": rows})

    def store(self, oid, number=None):
        content = self.body()
        if number is not None:
            self.hub.parts[oid, int(number)] = content
        elif hashlib.sha256(content).hexdigest() == oid:
            self.hub.objects[oid] = content
            self.hub.uploaded.append(oid)
        else:
            return self.answer({"error": "BadDigest"}, 400)
        return self.answer(b"", headers={"ETag": hashlib.md5(content).hexdigest()})

    def complete(self, oid):
        parts = json.loads(self.body())["parts"]
        content = b"".join(self.hub.parts[oid, one["partNumber"]] for one in parts)
        if hashlib.sha256(content).hexdigest() != oid:
            return self.answer({"error": "BadDigest"}, 400)
        self.hub.objects[oid] = content
        self.hub.uploaded.append(oid)
        return self.answer({})

    def verify(self, oid):
        self.body()
        self.answer({}) if oid in self.hub.objects else self.fail(404, None, "no such object")

    def add_commit(self, name, revision):
        lines = [json.loads(line) for line in self.body().splitlines()]
        hub, repo = self.hub, self.repo(name)
        if repo is None:
            return None
        if not self.member:
            return self.fail(403, None, "You need write access")
        header, changes, deleted = lines[0]["value"], {}, []
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in hub.objects:
                    return self.fail(400, None, f"LFS object {value['oid']} was not uploaded")
                changes[value["path"]] = ("lfs", value["oid"], value["size"])
            else:
                deleted.append(value["path"])
        with hub.lock:
            head, parent = repo.branches.get(revision), header.get("parentCommit")
            if parent is not None and parent != head:
                return self.fail(412, None, "A commit has happened since. Please refresh and try again.")
            request = None
            branch = revision
            if "create_pr" in self.query:
                number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.branches)
                branch = f"refs/pr/{number}"
                request = f"{hub.url}/{name}/discussions/{number}"
            oid = hub.commit(name, branch, changes, header["summary"], deleted, create=request is not None)
        url = f"{hub.url}/{name}/commit/{oid}"
        return self.answer({"commitUrl": url, "commitOid": oid, "pullRequestUrl": request})

    def resolve(self, name, revision, path):
        commit = self.at(name, revision)
        if commit is None:
            return None
        entry = commit.files.get(path)
        if entry is None:
            return self.fail(404, "EntryNotFound", f"{path} does not exist")
        content = self.hub.content(entry)
        etag = git_oid(entry) if isinstance(entry, bytes) else entry[1]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        start = int((re.findall(r"bytes=(\d+)-", self.headers.get("Range", "")) or ["0"])[0])
        fault = next((one for one in self.hub.faults if one.times and one.kind == "short"), None)
        if fault and self.command == "GET" and re.search(fault.pattern, f"GET {self.route}"):
            fault.times -= 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            time.sleep(0.05)
            return self.hang_up()
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.answer(content[start:], 206 if start else 200, headers)


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/repos/create", "create_repo"),
    (r"POST /api/validate-yaml", "validate_yaml"),
    (rf"GET /api/models/{NAME}", "info"),
    (rf"GET /api/models/{NAME}/revision/([^/]+)", "info"),
    (rf"GET /api/models/{NAME}/tree/([^/]+)", "tree"),
    (rf"GET /api/models/{NAME}/refs", "refs"),
    (rf"POST /api/models/{NAME}/branch/([^/]+)", "branch"),
    (rf"POST /api/models/{NAME}/preupload/([^/]+)", "preupload"),
    (rf"POST /api/models/{NAME}/commit/([^/]+)", "add_commit"),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"PUT /storage/(\w+)", "store"),
    (r"PUT /storage/(\w+)/(\d+)", "store"),
    (r"POST /complete/(\w+)", "complete"),
    (r"POST /verify/(\w+)", "verify"),
    (rf"(?:GET|HEAD) /{NAME}/resolve/([^/]+)/(.+)", "resolve"),
]
