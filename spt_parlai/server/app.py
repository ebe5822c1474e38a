"""The web application: OpenAI's protocol, and the chat page with what it needs besides."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from spt_parlai.server import protocol
from spt_parlai.server.engine import Ended, Event, Failed, Finished, Job, Piece, ReplyRequest, Selected
from spt_parlai.server.models import ServedModel
from spt_parlai.server.protocol import Answer, RequestError
from spt_parlai.server.ratings import Ratings

PAGE = Path(__file__).with_name('page')
MOST_BYTES = 1_000_000  # of a request's body
SECONDS_TO_SEND = 20.0  # for a client to send its request
_LOOK = 0.5  # seconds between two looks whether a client is still there
_HEADERS = {
    'content-security-policy': "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    'referrer-policy': 'no-referrer',
    'x-content-type-options': 'nosniff',
    'cache-control': 'no-cache',
}
logger = logging.getLogger(__name__)


def application(
    models: Sequence[ServedModel],
    *,
    token: str | None = None,
    hosts: Sequence[str] = ('*',),
    page: bool = True,
    personas: Sequence[Sequence[str]] = (),
    ratings: Ratings | None = None,
) -> Starlette:
    """Build the application.

    :param models: what answers; the first one is the default, and the page compares the first two.
    :param token: what clients must send as their bearer token, None: nothing.
    :param hosts: names under which a browser may ask, so that no page from elsewhere can ask through DNS.
    :param page: whether there is a page.
    :param personas: what the page shuffles.
    :param ratings: where the page's ratings go.
    """

    def guarded(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def answered(request: Request) -> Response:
            given = request.headers.get('authorization', '').removeprefix('Bearer ')
            if token and not hmac.compare_digest(given.encode(), token.encode()):
                raise RequestError('this server asks for its token: Authorization: Bearer TOKEN', 401)
            return await answer(request)

        return answered

    async def list_models(request: Request) -> Response:
        return JSONResponse(protocol.model_list(models))

    async def complete(request: Request) -> Response:
        body = await _json(request)
        model = protocol.chosen_model(body, models)
        asked = protocol.reply_request(body, model)
        stream = _Events(model, asked)
        try:
            first = await stream.next(request)
            if isinstance(first, Failed):
                raise RequestError.of(first)
            assert isinstance(first, Selected)
            if not body.get('stream'):
                ended, finished = await _rest(stream, request)
                ranked = protocol.ranked(body, asked, ended)
                return JSONResponse({**Answer(model.name).whole(first, ended, finished), **ranked})
        except BaseException:
            stream.job.cancel()
            raise
        with_usage = bool((body.get('stream_options') or {}).get('include_usage'))
        chunks = _chunks(stream, model.name, first, with_usage, lambda ended: protocol.ranked(body, asked, ended))
        return StreamingResponse(chunks, media_type='text/event-stream')

    async def rate(request: Request) -> Response:
        assert ratings is not None
        body = await _json(request)
        if not isinstance(body, dict):
            raise RequestError('a rating must be a JSON object')
        ratings.add(body)
        return JSONResponse({'saved': True}, 201)

    async def show_page(request: Request) -> Response:
        return FileResponse(PAGE / 'index.html')

    async def list_personas(request: Request) -> Response:
        return JSONResponse(personas)

    routes: list[Route | Mount] = [
        Route('/v1/models', guarded(list_models)),
        Route('/v1/chat/completions', guarded(complete), methods=['POST']),
    ]
    if page:
        routes += [
            Route('/', show_page),
            Route('/personas', guarded(list_personas)),
            Mount('/page', StaticFiles(directory=PAGE)),
        ]
        if ratings is not None:
            routes.append(Route('/ratings', guarded(rate), methods=['POST']))
    return Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)), Middleware(_SafeHeaders)],
        exception_handlers={
            RequestError: _request_error,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _any_error,
        },
    )


# ---- requests -----------------------------------------------------------------------------------------------


async def _json(request: Request) -> Any:
    """The JSON value that a request brings. What browsers send across origins without asking is not taken."""
    if request.headers.get('content-type', '').split(';')[0].strip() != 'application/json':
        raise RequestError('send the request as application/json', 415)
    data = b''
    try:
        async with asyncio.timeout(SECONDS_TO_SEND):
            async for part in request.stream():
                data += part
                if len(data) > MOST_BYTES:
                    raise RequestError(f'the request is larger than {MOST_BYTES} bytes', 413)
    except TimeoutError as error:
        raise RequestError(f'the request did not arrive within {SECONDS_TO_SEND:g} seconds', 408) from error
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(f'the request is not JSON: {error}') from error


class _Events:
    """The events of a request, from the engine's thread to the server's loop."""

    def __init__(self, model: ServedModel, request: ReplyRequest):
        loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Event]()
        self.job: Job = model.engine.submit(
            request, lambda event: loop.call_soon_threadsafe(self._queue.put_nowait, event)
        )

    async def next(self, request: Request | None = None) -> Event:
        """Wait for the next event. With a request, that its client goes away ends the waiting."""
        while True:
            try:
                return await asyncio.wait_for(self._queue.get(), _LOOK if request else None)
            except TimeoutError:
                if request and await request.is_disconnected():
                    raise ClientDisconnect from None


# ---- answers ------------------------------------------------------------------------------------------------


async def _rest(stream: _Events, request: Request) -> tuple[dict[int, Ended], Finished]:
    """The replies, once all of them have ended."""
    ended: dict[int, Ended] = {}
    while True:
        event = await stream.next(request)
        if isinstance(event, Ended):
            ended[event.row] = event
        elif isinstance(event, Failed):
            raise RequestError.of(event)
        elif isinstance(event, Finished):
            return ended, event


async def _chunks(
    stream: _Events,
    model: str,
    selected: Selected,
    with_usage: bool,
    ranked: Callable[[dict[int, Ended]], dict[str, Any]],
) -> AsyncIterator[str]:
    """The chunks of an answer, as server-sent events. Whoever stops reading cancels the request."""
    answer = Answer(model)
    ended: dict[int, Ended] = {}
    try:
        yield _sent(answer.opening(selected))
        while True:
            event = await stream.next()
            if isinstance(event, Piece):
                yield _sent(answer.chunk([protocol.delta(event.row, content=event.text)]))
            elif isinstance(event, Ended):
                ended[event.row] = event
                yield _sent(answer.chunk([protocol.delta(event.row, event.reason)]))
            elif isinstance(event, Failed):
                yield _sent(RequestError.of(event).body())
                break
            elif isinstance(event, Finished):
                if ranking := ranked(ended):
                    yield _sent(answer.chunk([], **ranking))
                if with_usage:
                    yield _sent(answer.chunk([], usage=protocol.usage(event)))
                break
        yield 'data: [DONE]\n\n'
    finally:
        stream.job.cancel()


def _sent(value: dict[str, Any]) -> str:
    return f'data: {json.dumps(value)}\n\n'


def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {'retry-after': '1'} if error.status == 429 else None
    return JSONResponse(error.body(), error.status, headers)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = f'{request.method} {request.url.path}: {error.detail}'
    return JSONResponse(RequestError(sentence, error.status_code).body(), error.status_code)


def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


def _any_error(request: Request, error: Exception) -> Response:
    logger.error('%s %s failed', request.method, request.url.path, exc_info=error)
    return JSONResponse(RequestError('the server has made a mistake; its log says more', 500).body(), 500)


class _SafeHeaders:
    """Adds headers to every answer: the page may load nothing from elsewhere, and may not be framed."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message['type'] == 'http.response.start':
                message['headers'] = [*message['headers'], *((k.encode(), v.encode()) for k, v in _HEADERS.items())]
            await send(message)

        await self.app(scope, receive, send_with_headers)
