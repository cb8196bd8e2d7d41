"""A tiny Hugging Face hub on localhost, for the client of ``huggingface_hub`` itself."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_may_write"


class Hub(ThreadingHTTPServer):
    """Repositories by id: branches, which name a commit, and commits, which have files."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos = {}
        self.downloaded = []

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo_id, revision="main"):
        repo = self.repos[repo_id]
        return repo["commits"][repo["branches"].get(revision, revision)]["files"]

    def commit(self, repo_id, files, message="", branch="main", private=False):
        """Put files on a branch, beside those that it has."""
        made = {"branches": {}, "commits": {}, "private": private}
        repo = self.repos.setdefault(repo_id, made)
        before = repo["commits"].get(repo["branches"].get(branch), {"files": {}})["files"]
        files = before | files
        name = repr((sorted(files.items()), message, len(repo["commits"])))
        sha = hashlib.sha1(name.encode()).hexdigest()
        repo["commits"][sha] = {"files": files, "message": message}
        repo["branches"][branch] = sha
        return sha


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def found(self, repo_id, revision):
        """Return the commit that a revision names; answer with an error if there is none."""
        repo = self.server.repos.get(repo_id)
        sha = None if repo is None else repo["branches"].get(revision, revision)
        if repo is None:
            self.answer(404, {"error": "no"}, X_Error_Code="RepoNotFound")
        elif sha not in repo["commits"]:
            self.answer(404, {"error": "no"}, X_Error_Code="RevisionNotFound")
        else:
            return sha
        return None

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)", path):
            repo_id, kind, revision = match.groups()
            if sha := self.found(repo_id, revision):
                files = self.server.files(repo_id, sha)
                tree = [
                    {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for n, c in files.items()
                ]
                info = {"id": repo_id, "sha": sha, "siblings": [{"rfilename": n} for n in files]}
                self.answer(200, info if kind == "revision" else tree)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo_id, revision, name = match.groups()
            if sha := self.found(repo_id, revision):
                content = self.server.files(repo_id, sha)[name]
                if self.command == "GET":
                    self.server.downloaded.append(name)
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                self.answer(200, content, X_Repo_Commit=sha, ETag=etag)
        else:
            self.answer(404)

    do_HEAD = do_GET

    def do_POST(self):
        size = int(self.headers["Content-Length"] or 0)
        body = self.rfile.read(size) if size else self.chunks()
        path = unquote(urlsplit(self.path).path)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer(401, {"error": "no token"})
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo_id = asked["name"] if asked.get("organization") is None else None
            repo_id = repo_id or f"{asked['organization']}/{asked['name']}"
            repo_id = repo_id if "/" in repo_id else f"me/{repo_id}"
            exists = repo_id in self.server.repos
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            if not exists:
                self.server.commit(repo_id, {".gitattributes": b""}, private=private)
            url = f"{self.server.endpoint}/{repo_id}"
            self.answer(409 if exists else 200, {"url": url, "name": repo_id})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            asked = json.loads(body)["files"]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer(200, {"files": [{"path": file["path"], **modes} for file in asked]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            repo = self.server.repos[match[1]]
            repo["branches"].setdefault(match[2], repo["branches"]["main"])
            self.answer(200)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            (message,) = [line["value"]["summary"] for line in lines if line["key"] == "header"]
            sha = self.server.commit(match[1], files, message, match[2])
            url = f"{self.server.endpoint}/{match[1]}/commit/{sha}"
            self.answer(200, {"commitUrl": url, "commitOid": sha})
        else:
            self.answer(404)

    def chunks(self):
        """Return a body that is sent in chunks."""
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body
