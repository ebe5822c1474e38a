"""A Hugging Face hub on this machine: what huggingface_hub asks of the real one to write and read a repository."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHA = '0' * 39 + '1'


class FakeHub:
    """repos: of each repository the files, by path. refuse: answer every request to write with 403."""

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.refuse = False


@contextmanager
def running_hub():
    """A hub, and its address."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = self.path.split('?')[0].strip('/')
            if not path:
                return self.answer(200, b'')
            if path.startswith('api/models/'):
                repo = '/'.join(path.split('/')[2:4])
                if repo not in hub.repos:
                    return self.answer(404, b'{}', **{'X-Error-Code': 'RepoNotFound'})
                if '/revision/' in path and not path.endswith(('/main', SHA)):
                    return self.answer(404, b'{}', **{'X-Error-Code': 'RevisionNotFound'})
                siblings = [{'rfilename': name} for name in hub.repos[repo]]
                tree = [{'type': 'file', 'path': n, 'size': len(c), 'oid': 'x'} for n, c in hub.repos[repo].items()]
                told = tree if '/tree/' in path else {'id': repo, 'modelId': repo, 'sha': SHA, 'siblings': siblings}
                return self.answer(200, json.dumps(told).encode())
            owner, name, _, _, *file = path.split('/')
            content = hub.repos.get(f'{owner}/{name}', {}).get('/'.join(file))
            if content is None:
                return self.answer(404, b'', **{'X-Error-Code': 'EntryNotFound'})
            etag = hashlib.sha1(content).hexdigest()
            self.answer(200, content, **{'X-Repo-Commit': SHA, 'ETag': f'"{etag}"'})

        def do_POST(self):
            body = self.rfile.read(int(self.headers['Content-Length'] or 0))
            if hub.refuse:
                return self.answer(403, b'{"error": "not yours"}')
            if self.path.startswith('/api/repos/create'):
                asked = json.loads(body)
                repo = f'{asked.get("organization") or "me"}/{asked["name"]}'
                hub.repos.setdefault(repo, {})
                return self.answer(200, json.dumps({'url': f'{address}/{repo}'}).encode())
            if self.path == '/api/validate-yaml':
                return self.answer(200, b'{"errors": [], "warnings": []}')
            repo = '/'.join(self.path.split('/')[3:5])
            if '/preupload/' in self.path:
                files = [
                    {'path': f['path'], 'uploadMode': 'regular', 'shouldIgnore': False}
                    for f in json.loads(body)['files']
                ]
                return self.answer(200, json.dumps({'files': files}).encode())
            for line in body.splitlines():
                entry = json.loads(line)
                if entry['key'] == 'file':
                    hub.repos[repo][entry['value']['path']] = base64.b64decode(entry['value']['content'])
            told = {'commitUrl': f'{address}/{repo}/commit/{SHA}', 'commitOid': SHA, 'success': True}
            self.answer(200, json.dumps(told).encode())

        def answer(self, status, content, **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header('Content-Length', str(len(content)))
            self.send_header('Content-Type', 'application/json')
            self.end_headers()
            if self.command != 'HEAD':
                self.wfile.write(content)

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    address = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub, address
    finally:
        server.shutdown()
        server.server_close()
