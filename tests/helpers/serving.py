"""An application behind a real server."""

import contextlib
import socket
import threading
import time

import pytest


@contextlib.contextmanager
def serving(app):
    """The address of an application that is served."""
    uvicorn = pytest.importorskip('uvicorn')
    with socket.create_server(('127.0.0.1', 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level='warning'))
        thread = threading.Thread(target=server.run, kwargs={'sockets': [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f'http://127.0.0.1:{listening.getsockname()[1]}'
        server.should_exit = True
        thread.join(10)
