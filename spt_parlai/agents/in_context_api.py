"""An OpenAI-compatible endpoint: messages → a reply, with every way this can fail told in one sentence.

What every such server has is used and no more: `POST {base}/chat/completions`. The key is read from the environment, goes into
one header and nowhere else.

In-context learning with an LLM behind an OpenAI-compatible endpoint: neither LLM nor tokenizer is here.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

import requests
from parlai.core.agents import Agent
from parlai.core.message import Message
from parlai.utils.misc import warn_once
from requests.adapters import HTTPAdapter
from requests.exceptions import ChunkedEncodingError, ConnectionError, RequestException, Timeout
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from spt_parlai.agents.persona import persona_of_chat
from spt_parlai.dialogue.instruction import chat_messages
from spt_parlai.dialogue.messages import Dialogue, check_message
from spt_parlai.dialogue.training_set import instruction_of
from spt_parlai.errors import UsageError, shorten
from spt_parlai.options.parlai_options import check_effects
from spt_parlai.options.validate import check_options
from spt_parlai.parlai_hooks.teachers import chosen_bert
from spt_parlai.training.seeding import seed_everything

_BUSY = (408, 409, 429, 500, 502, 503, 504, 529)  # worth another try
_REFUSALS = {
    401: 'it does not accept the key: set the environment variable {key_env}, or name another one with --api-key-env',
    403: 'the key in {key_env} may not do this: check its rights, and --api-model',
    404: 'there is nothing at {url}: check the URL, which often ends in /v1, and --api-model',
}
_LONGEST_PAUSE = 120  # seconds
_jitter = random.Random()  # of its own: what a run draws stays its seed's


class ChatEndpoint:
    """A model behind an endpoint.

    :param base: URL before `/chat/completions`.
    :param parameters: further entries of every request (`max_tokens`, `temperature` …).
    :param key_env: the environment variable that holds the key; where it is not set none is sent, as local servers like it.
    :param timeout: seconds to wait for a connection, and for an answer.
    :param retries: how often a request is sent again to a server that is busy, silent or gone. The first pause is of half a
        second and each next one twice as long, or the server says how long (`Retry-After`).
    :param concurrency: requests under way at a time.
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
            raise UsageError(f'--api-key-env {key_env}: its value holds characters that no key has; set it anew.')
        self._session = requests.Session()
        self._session.auth = self._authorize
        for scheme in ('http://', 'https://'):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=concurrency))
        self._stopped = threading.Event()

    def _authorize(self, request):
        if self._key:
            request.headers['Authorization'] = f'Bearer {self._key}'
        return request

    def replies(self, chats: Sequence[Sequence[dict[str, str]]]) -> list[str]:
        """A reply to each of these lists of messages. Raises UsageError where there is one without an answer."""
        self._stopped.clear()
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            answers = [pool.submit(self.reply, messages) for messages in chats]
            for answer in wait(answers, return_when=FIRST_EXCEPTION).done:
                answer.result()  # raises what went wrong, whatever others still wait for
            return [answer.result() for answer in answers]
        finally:
            self._stopped.set()  # nobody waits to try again for what nobody waits for
            pool.shutdown(cancel_futures=True)

    def reply(self, messages: Sequence[dict[str, str]]) -> str:
        answer = self._answer({**self.parameters, 'messages': list(messages)})
        try:
            choice = answer.json()['choices'][0]
            text = choice['message']['content']
        except (ValueError, LookupError, TypeError) as error:
            raise self._error(
                f'its answer is no chat completion ({shorten(answer.text)}): give an OpenAI-compatible endpoint'
            ) from error
        if not isinstance(text, str | None):
            raise self._error(f'its answer holds no text ({shorten(text)}): give an OpenAI-compatible endpoint')
        if not (text or '').strip():
            warn_once(
                f'an answer of --api-model {self.parameters["model"]} is empty (finish_reason {choice.get("finish_reason")!r}).'
            )
        return text or ''

    def _answer(self, request: dict[str, Any]) -> requests.Response:
        for tried in range(self.retries + 1):
            wanted = None
            try:
                answer = self._session.post(self.url, json=request, timeout=self.timeout, allow_redirects=False)
                if answer.status_code == 200:
                    return answer
                problem = f'{answer.status_code}, {self._reason(answer)}'
                if answer.status_code not in _BUSY:
                    refusal = _REFUSALS.get(answer.status_code, 'it does not take the request').format(
                        key_env=self.key_env, url=self.url
                    )
                    raise self._error(f'{refusal} ({problem})')
                wanted = _wanted_pause(answer.headers.get('Retry-After'))
            except (ConnectionError, Timeout, ChunkedEncodingError) as error:
                problem = (
                    f'no answer within {self.timeout:g} s'
                    if isinstance(error, Timeout)
                    else 'no connection, or one that broke off'
                )
            except RequestException as error:
                raise self._error(f'no request can be sent there ({type(error).__name__}): check the URL') from error
            doubling = min(0.5 * 2**tried, _LONGEST_PAUSE) * _jitter.uniform(0.75, 1)
            if tried < self.retries and self._stopped.wait(doubling if wanted is None else wanted):
                break
        raise self._error(
            f'tried {tried + 1} times, it had no reply ({problem}): try later, or raise --api-retries or --api-timeout'
        )

    def _reason(self, answer: requests.Response) -> str:
        """What the server says of a failure."""
        try:
            told = answer.json()
            error = told.get('error', told.get('detail', told))
            text = error.get('message', error) if isinstance(error, dict) else error
        except (ValueError, AttributeError):
            text = answer.text or answer.headers.get('Location') or answer.reason
        text = ' '.join(str(text).split())[:200].rstrip('.')
        return text.replace(self._key, '…') if self._key else text

    def _error(self, problem: str) -> UsageError:
        return UsageError(f'--api-base {self.url.removesuffix("/chat/completions")}: {problem}.')


def _wanted_pause(retry_after: str | None) -> float | None:
    """Seconds, from `Retry-After`: seconds or a date."""
    try:
        return None if retry_after is None else Retry(retry_after_max=_LONGEST_PAUSE).parse_retry_after(retry_after)
    except InvalidHeader:
        return None


_USED = {  # of a frozen LLM's options, with a tolerated --no-cuda
    'instruction',
    'shots',
    'training_task',
    'persona',
    'persona_file',
    'seed',
    'max_new_tokens',
    'history_size',
    'use_reply',
    'interactive_mode',
    'paper_metrics',
    'trim_responses',
    'bertscore',
    'bertscore_layer',
    'display_add_fields',
    'no_cuda',
}


class InContextApiAgent(Agent):
    """Tells a chat endpoint the dialogue so far and says what it answers; a batch is asked for at once.

    :param defaults: every option of the agent that stands for this one, and its default; what an endpoint cannot do is refused.
    """

    def __init__(self, opt, shared=None, defaults: dict[str, Any] | None = None):
        super().__init__(opt, shared)
        self.id = 'InContext'
        if shared is None:
            check_options(opt)
            check_effects(opt)
            _refuse_ignored(opt, defaults or {})
            chosen_bert(opt.get('override') or {})
            seed = (opt.get('override') or {}).get('seed')
            if seed is not None:  # for a persona that is drawn
                seed_everything(seed)
            self.endpoint, self.instruction = endpoint_of(opt), instruction_of(opt)
        else:
            self.instruction, self.endpoint = shared['instruction'], shared['endpoint']
        self.persona = persona_of_chat(self.opt, self.id)
        self.reset()

    def share(self):
        return {**super().share(), 'instruction': self.instruction, 'endpoint': self.endpoint}

    def reset(self):
        super().reset()
        self.dialogue = Dialogue(list(self.persona))

    def observe(self, observation):
        check_message(observation)
        self.observation = Message(observation)
        if not self.observation.is_padding():
            self.dialogue.observe(observation.get('text'))
            self._forget()
            self.observation.force_set('chat', chat_messages(self.dialogue, self.instruction))
        return self.observation

    def act(self):
        reply = self.batch_act([self.observation])[0]
        self.self_observe(reply)
        return reply

    def batch_act(self, observations):
        asked = [i for i, observation in enumerate(observations) if 'chat' in observation]
        replies = [Message({'id': self.id, 'episode_done': False}) for _ in observations]
        for i, text in zip(asked, self.endpoint.replies([observations[i]['chat'] for i in asked])):
            replies[i]['text'] = ' '.join(text.split())
        return replies

    def self_observe(self, reply) -> None:
        """What counts as said goes by `--use-reply`, as with ParlAI's own agents."""
        heard, use_reply = self.observation, self.opt.get('use_reply', 'label')
        if heard.get('episode_done', False):
            self.reset()
            return
        labels = heard.get('labels') or heard.get('eval_labels')
        if use_reply == 'label' and labels:
            self.dialogue.reply(labels[0])
        elif use_reply != 'none':
            self.dialogue.reply(reply.get('text', ''))
        self._forget()

    def _forget(self) -> None:
        size = self.opt.get('history_size', -1)
        if size >= 0:
            del self.dialogue.turns[: max(0, len(self.dialogue.turns) - size)]


def endpoint_of(opt) -> ChatEndpoint:
    """The endpoint of the `--api-…` options. Raises UsageError for an option that cannot work."""
    if not opt['api_base'].startswith(('http://', 'https://')):
        raise UsageError(
            f'--api-base {opt["api_base"]}: give a URL that begins with http:// or https://, such as https://api.openai.com/v1.'
        )
    if not opt.get('api_model'):
        raise UsageError('--api-base needs --api-model: the name by which the endpoint knows the LLM.')
    try:
        more = json.loads(opt['api_parameters'])
    except ValueError as error:
        raise UsageError(f'--api-parameters {shorten(opt["api_parameters"])} is not JSON ({error}).') from error
    if not isinstance(more, dict):
        raise UsageError(
            f'--api-parameters {shorten(opt["api_parameters"])}: give a JSON object, such as {{"top_p": 0.9}}.'
        )
    parameters = {'max_tokens': opt['max_new_tokens'], 'temperature': opt['api_temperature'], **more}
    return ChatEndpoint(
        opt['api_base'],
        opt['api_model'],
        {name: value for name, value in parameters.items() if value is not None},
        opt['api_key_env'],
        opt['api_timeout'],
        opt['api_retries'],
        opt['api_concurrency'],
    )


def _refuse_ignored(opt, defaults: dict[str, Any]) -> None:
    for name, value in (opt.get('override') or {}).items():
        if (
            name in defaults
            and name not in _USED
            and not name.startswith('api_')
            and value not in (None, defaults[name])
        ):
            raise UsageError(
                f'--{name.replace("_", "-")} {shorten(value)} does nothing with --api-base, where the endpoint runs the LLM; leave it out.'
            )
