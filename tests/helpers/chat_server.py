"""A real HTTP server of the chat protocol that fails on request."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """An answer of the server.

    :param body: a JSON value, or bytes that are sent as they are.
    :param seconds: the delay of the answer.
    :param announced: how many bytes more than the body its header announces.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = {}
    seconds: float = 0.0
    announced: int = 0


def says(text, **more) -> Answer:
    return Answer(
        200,
        {'choices': [{'index': 0, 'message': {'role': 'assistant', 'content': text}, 'finish_reason': 'stop'}]},
        **more,
    )


class ChatServer(ThreadingHTTPServer):
    """Gives the answers of `script` first, one per request, and then `reply(request)` to every request with `key`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.base = f'http://127.0.0.1:{self.server_port}/v1'
        self.key, self.script, self.requests, self.headers = None, [], [], []
        self.reply = lambda request: f'you said : {request["messages"][-1]["content"]}'
        self.seconds = 0.0
        self.lock, self.under_way, self.most_under_way = threading.Lock(), 0, 0

    def answer(self, path: str, headers, request) -> Answer:
        with self.lock:
            self.requests.append(request)
            self.headers.append(dict(headers))
            if self.script:
                return self.script.pop(0)
        if path != '/v1/chat/completions':
            return Answer(404, {'error': {'message': f'no such path: {path}'}})
        if self.key and headers.get('Authorization') != f'Bearer {self.key}':
            return Answer(401, {'error': {'message': f'wrong key: {headers.get("Authorization")}'}})
        return says(self.reply(request), seconds=self.seconds)

    def handle_error(self, request, client_address):
        """Do not report clients that have gone away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        with server.lock:
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        answer = server.answer(self.path, self.headers, request)
        time.sleep(answer.seconds)
        with server.lock:
            server.under_way -= 1
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {
            **answer.headers,
            'Content-Type': 'application/json',
            'Content-Length': len(body) + answer.announced,
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)
        if answer.announced:
            self.close_connection = True

    def log_message(self, *_):
        pass


@contextmanager
def chat_server():
    server = ChatServer()
    threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
