"""`spt chat` and `spt serve`: load the models, open the port, serve until Ctrl-C."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from spt_parlai.agents.persona import sample_personas
from spt_parlai.dialogue.messages import personas_of
from spt_parlai.errors import UsageError, naming
from spt_parlai.server.app import application
from spt_parlai.server.models import name_of, open_model
from spt_parlai.server.ratings import Ratings
from spt_parlai.text_files import read_lines

_LOCAL = ('127.0.0.1', 'localhost')


def serve(
    model_files: Sequence[str],
    host: str,
    port: int,
    token: str | None = None,
    page: bool = True,
    personas_file: Path | None = None,
    ratings_file: Path | None = None,
) -> None:
    """Serve one model, or two to compare, until Ctrl-C.

    :raises UsageError: for a model file, a port or a file that cannot be used.
    """
    personas = read_personas(personas_file) if personas_file else sample_personas()
    ratings = Ratings(ratings_file) if ratings_file else None
    is_local = host in _LOCAL
    token = token or (None if is_local else secrets.token_urlsafe(16))
    names = [name_of(file) for file in model_files]
    if len({*names}) < len(names):  # two runs with the same last names
        names = [str(file) for file in model_files]
    with _listening(host, port) as listening:
        models = [open_model(file, name) for file, name in zip(model_files, names, strict=True)]
        app = application(
            models, token=token, hosts=_LOCAL if is_local else ('*',), page=page, personas=personas, ratings=ratings
        )
        address = f'http://{f"[{host}]" if ":" in host else host}:{listening.getsockname()[1]}'
        if page:
            print(f'Chat with {" and ".join(names)}: {address}/{f"#token={token}" if token else ""}')
        key = f', with the key {token}' if token else ''
        print(f"OpenAI's protocol: {address}/v1{key}. Ctrl-C ends it.", flush=True)
        config = uvicorn.Config(app, log_level='warning', timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[listening])
        for model in models:
            model.engine.close()


def read_personas(file: Path) -> tuple[tuple[str, ...], ...]:
    """The personas of a file in ConvAI2's format.

    :raises UsageError: if it cannot be read or has none.
    """
    with naming('--personas', file):
        personas = tuple(dict.fromkeys(tuple(persona) for persona in personas_of(read_lines(file)) if persona))
        if not personas:
            raise ValueError("it has no persona: give a file in ConvAI2's format, with lines `1 your persona: …`")
    return personas


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise UsageError(f'--host {host} --port {port} cannot be used ({reason}); give others.') from error
