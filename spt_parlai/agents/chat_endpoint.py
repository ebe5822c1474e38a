"""The client of an OpenAI-compatible chat endpoint, which knows nothing of agents and dialogues.

It uses only what every such server has, which is `POST {base}/chat/completions`, and reports every failure in one
sentence.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

import requests
from parlai.utils.misc import warn_once
from requests.adapters import HTTPAdapter
from requests.exceptions import ChunkedEncodingError, ConnectionError, RequestException, Timeout
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from spt_parlai.dialogue.messages import well_formed
from spt_parlai.errors import UsageError, shorten

_BUSY = (408, 409, 429, 500, 502, 503, 504, 529)  # worth another try
_REFUSALS = {
    401: 'it does not accept the key: set the environment variable {key_env}, or name another one with --api-key-env',
    403: 'the key in {key_env} has no permission for this: check its rights, and --api-model',
    404: 'there is nothing at {url}: check the URL, which often ends in /v1, and --api-model',
}
_THOUGHTS = ('reasoning_content', 'reasoning')  # beside an answer's content, where some servers put them
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 120  # seconds
_jitter = random.Random()  # its own generator, so that --seed draws the same whatever the server does


class ChatEndpoint:
    """The client of one model behind an endpoint.

    The key is read from the environment and goes into the header of a request, and nowhere else.

    :param base: URL before `/chat/completions`.
    :param parameters: further entries of every request (`max_tokens`, `temperature` …).
    :param key_env: environment variable that holds the key. If it is not set, no key is sent: local servers need none.
    :param timeout: seconds to wait for a connection, and for an answer.
    :param retries: how often a request is repeated when the server is busy, silent or unreachable. The first pause is
        half a second and each further one twice as long, unless the server says how long (`Retry-After`).
    :param concurrency: how many requests are under way at a time.
    :raises UsageError: from every public method: for a bad key, a refused request, or no usable answer.
    """

    def __init__(
        self,
        base: str,
        model: str,
        parameters: dict[str, Any],
        key_env: str,
        timeout: float,
        retries: int,
        concurrency: int,
    ):
        self.url = f'{base.rstrip("/").removesuffix("/chat/completions")}/chat/completions'
        self.parameters = {'model': model, **parameters}
        self.key_env, self.timeout, self.retries, self.concurrency = key_env, timeout, retries, concurrency
        self._key = os.environ.get(key_env, '').strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UsageError(f'--api-key-env {key_env}: its value contains characters that no key has; set it again.')
        self._session = requests.Session()
        self._session.auth = self._authorize
        for scheme in ('http://', 'https://'):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=concurrency))
        self._stopped = threading.Event()

    def _authorize(self, request):
        """Without this, requests would send a password from ~/.netrc where there is no key."""
        if self._key:
            request.headers['Authorization'] = f'Bearer {self._key}'
        return request

    def replies(self, chats: Sequence[Sequence[dict[str, str]]]) -> list[str]:
        """One reply to each list of messages. The first request that fails ends the others' pauses."""
        self._stopped.clear()
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            answers = [pool.submit(self.reply, messages) for messages in chats]
            for answer in wait(answers, return_when=FIRST_EXCEPTION).done:
                answer.result()  # raises what went wrong, while other requests may still wait to be repeated
            return [answer.result() for answer in answers]
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)

    def reply(self, messages: Sequence[dict[str, str]]) -> str:
        """The reply to one list of messages."""
        answer = self._answer({**self.parameters, 'messages': list(messages)})
        try:
            choice = well_formed(answer.json()['choices'][0])
            message = choice['message']
            thought = any(message.get(name) for name in _THOUGHTS)  # then there may be no content beside it
            text = _text_of(message.get('content') if thought else message['content'])
        except (AttributeError, ValueError, LookupError, TypeError) as error:
            raise self._error(
                f'its answer is not a chat completion ({shorten(answer.text)}): give an OpenAI-compatible endpoint'
            ) from error
        if not isinstance(text, str | None):
            raise self._error(f'its answer contains no text ({shorten(text)}): give an OpenAI-compatible endpoint')
        if not (text or '').strip():
            model, reason = self.parameters['model'], choice.get('finish_reason')
            way_out = ': it holds thoughts alone; raise --max-new-tokens' if thought else ''
            warn_once(f'an answer of --api-model {model} is empty (finish_reason {reason!r}){way_out}.')
        return text or ''

    def _answer(self, request: dict[str, Any]) -> requests.Response:
        """The answer of a server that accepts the request.

        urllib3's `Retry` in the adapter is not enough: requests reads the body of an answer after `Retry` is done, so a
        request whose answer breaks off would not be repeated, and nothing can end the pauses of `Retry` early.
        """
        for tries in range(1, self.retries + 2):
            pause = min(_FIRST_PAUSE * 2 ** (tries - 1), _LONGEST_PAUSE) * _jitter.uniform(0.75, 1)
            try:
                answer = self._session.post(self.url, json=request, timeout=self.timeout, allow_redirects=False)
            except Timeout:
                problem = f'no answer within {self.timeout:g} s'
            except (ConnectionError, ChunkedEncodingError):
                problem = 'no connection, or one that broke off'
            except RequestException as error:
                raise self._error(f'no request can be sent there ({type(error).__name__}): check the URL') from error
            else:
                if answer.status_code == 200:
                    return answer
                problem = f'{answer.status_code}, {self._reason(answer)}'
                if answer.status_code not in _BUSY:
                    refusal = _REFUSALS.get(answer.status_code, 'it does not accept the request')
                    raise self._error(f'{refusal.format(key_env=self.key_env, url=self.url)} ({problem})')
                pause = _retry_after(answer, pause)
            if tries <= self.retries and self._stopped.wait(pause):
                break
        count = '1 try' if tries == 1 else f'{tries} tries'
        raise self._error(f'no reply after {count} ({problem}): try later, or raise --api-retries or --api-timeout')

    def _reason(self, answer: requests.Response) -> str:
        """What the server says about a failure, on one line and without the key."""
        try:
            told = answer.json()
            error = told.get('error', told.get('detail', told))
            text = error.get('message', error) if isinstance(error, dict) else error
        except (ValueError, AttributeError):
            text = answer.text or answer.headers.get('Location') or answer.reason
        text = ' '.join(well_formed(str(text)).split())[:200].rstrip('.')
        return text.replace(self._key, '…') if self._key else text

    def _error(self, problem: str) -> UsageError:
        return UsageError(f'--api-base {self.url.removesuffix("/chat/completions")}: {problem}.')


def _text_of(content: Any) -> Any:
    """The text of an answer's content, which some servers send as a list of parts; a thought or an image has none.

    Content of another kind is returned as it is.
    """
    if not isinstance(content, list) or not all(isinstance(part, dict) and part.get('type') for part in content):
        return content
    texts = [part.get('text') for part in content if part['type'] in ('text', 'output_text')]
    return ''.join(texts) if all(isinstance(text, str) for text in texts) else content


def _retry_after(answer: requests.Response, otherwise: float) -> float:
    """Seconds from the header `Retry-After`, which holds seconds or a date."""
    try:
        return Retry(retry_after_max=_LONGEST_PAUSE).parse_retry_after(answer.headers['Retry-After'])
    except (KeyError, InvalidHeader):
        return otherwise
