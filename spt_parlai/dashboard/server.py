"""The page as a small web application, which reads the runs anew whenever their files have changed."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from spt_parlai.dashboard.page import as_json, page, read_runs
from spt_parlai.dashboard.runs import files_of
from spt_parlai.errors import UsageError


def application(model_files: Sequence[Path], hosts: Sequence[str]) -> Starlette:
    """`/` is the page, and `/runs.json` what it shows of the runs.

    :param hosts: names under which a browser may ask, so that no page from elsewhere can read the runs through DNS.
    """

    def show(request: Request) -> Response:
        return HTMLResponse(page(model_files, live=True))

    def runs(request: Request) -> Response:
        states = [(str(file), file.stat().st_mtime_ns) for run in model_files for file in files_of(run)]
        tag = f'"{hash(tuple(states)):x}"'
        if request.headers.get('if-none-match') == tag:
            return Response(status_code=304, headers={'etag': tag})
        return Response(as_json(read_runs(model_files)), media_type='application/json', headers={'etag': tag})

    return Starlette(
        routes=[Route('/', show), Route('/runs.json', runs)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
    )


def serve(model_files: Sequence[Path], port: int) -> None:
    """Serve the page to this machine until Ctrl-C.

    :raises UsageError: for a port that cannot be used.
    """
    import uvicorn

    try:
        listening = socket.create_server(('127.0.0.1', port))
    except OSError as error:
        raise UsageError(f'--port {port} cannot be used ({error.strerror}); give another one.') from error
    with listening:
        print(f'The dashboard is at http://127.0.0.1:{listening.getsockname()[1]}/ until Ctrl-C.', flush=True)
        config = uvicorn.Config(application(model_files, ['127.0.0.1', 'localhost']), log_level='warning')
        uvicorn.Server(config).run(sockets=[listening])
