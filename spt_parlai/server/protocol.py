"""OpenAI's chat protocol, as JSON values: from a request's body to a `ReplyRequest`, and from events to answers.

The persona is the system message, a sentence a line. Beyond the protocol, a request may have `spt_prompt`: the number
of the prompt to reply with, or "all", which gives one choice for each. Answers have `spt_scores`, the retriever's score
of every prompt, and `spt_prompt`, the prompt that it selects; each choice has the `spt_prompt` that it was made with.
With `spt_rank_by`, "mbr" or "persona", they also have `spt_ranking`, a score of every choice; the highest is the best.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from spt_parlai.agents.persona import persona_sentences
from spt_parlai.dialogue.messages import Turn, clean
from spt_parlai.errors import shorten
from spt_parlai.metrics import ranking
from spt_parlai.server.engine import Ended, Failed, Finished, ReplyRequest, Selected
from spt_parlai.server.models import ServedModel

MOST_MESSAGES = 400
MOST_CHARACTERS = 20_000  # in one message
MOST_CHOICES = 16
MOST_STOPS = 8
SECONDS = 60.0
_STATUS = {'busy': 429, 'timeout': 504, 'closed': 503, 'error': 500}

Json = dict[str, Any]


class RequestError(Exception):
    """A request that is not answered. status: HTTP's; parameter: the field of the request at fault, if any."""

    def __init__(self, message: str, status: int = 400, parameter: str | None = None):
        super().__init__(message)
        self.status, self.parameter = status, parameter

    @classmethod
    def of(cls, failed: Failed) -> RequestError:
        return cls(failed.message, _STATUS[failed.kind])

    def body(self) -> Json:
        kind = 'invalid_request_error' if self.status < 429 else 'server_error'
        error = {'message': str(self), 'type': kind, 'param': self.parameter, 'code': self.status}
        return {'error': error}


# ---- requests -------------------------------------------------------------------------------------------------


def chosen_model(body: Any, models: Sequence[ServedModel]) -> ServedModel:
    """The model that a request names, the first one if it names none.

    :raises RequestError: if the body is no JSON object, or there is no such model.
    """
    if not isinstance(body, dict):
        raise RequestError('the body of a request must be a JSON object')
    name = body.get('model') or models[0].name
    for model in models:
        if model.name == name:
            return model
    known = ', '.join(model.name for model in models)
    raise RequestError(f'model {shorten(name)}: there is no such model; this server has {known}', 404, 'model')


def reply_request(body: Json, model: ServedModel) -> ReplyRequest:
    """What a request asks of a model.

    :raises RequestError: naming the field that is wrong.
    """
    engine = model.engine
    persona, turns = _dialogue(body.get('messages'))
    most = 'max_completion_tokens' if body.get('max_completion_tokens') is not None else 'max_tokens'
    tokens = _number(body, most, engine.usual_tokens, 1, math.inf, whole=True)
    request = ReplyRequest(
        persona,
        turns,
        _prompts(body.get('spt_prompt'), engine.num_prompts),
        int(_number(body, 'n', 1, 1, MOST_CHOICES, whole=True)),
        _number(body, 'temperature', 0.0, 0, 2),
        _number(body, 'top_p', 1.0, 0.01, 1),
        int(tokens),
        _stops(body.get('stop')),
        SECONDS,
    )
    most_rows = max(MOST_CHOICES, engine.num_prompts)
    if request.rows > most_rows:
        raise RequestError(f'n {request.n}: that makes {request.rows} replies, and {most_rows} is the most', 400, 'n')
    if body.get('spt_rank_by') not in (None, 'mbr', 'persona'):
        raise RequestError(f'spt_rank_by {shorten(body["spt_rank_by"])}: give mbr or persona', 400, 'spt_rank_by')
    return request


def _number(body: Json, name: str, default: float, least: float, most: float, whole: bool = False) -> float:
    value = default if body.get(name) is None else body[name]
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        kind = 'a whole number' if whole else 'a number'
        wanted = f'{kind} of at least {least:g}' if most == math.inf else f'{kind} from {least:g} to {most:g}'
        raise RequestError(f'{name} {shorten(value)}: give {wanted}', 400, name)
    return value


def _prompts(value: Any, num_prompts: int) -> tuple[int, ...]:
    if value is None:
        return ()
    if value == 'all':
        return tuple(range(num_prompts))
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < num_prompts:
        raise RequestError(
            f'spt_prompt {shorten(value)}: give a prompt from 0 to {num_prompts - 1}, or "all"', 400, 'spt_prompt'
        )
    return (value,)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise RequestError(f'stop {shorten(value)}: give a text or a list of at most {MOST_STOPS}', 400, 'stop')
    return tuple(stops)


def _dialogue(messages: Any) -> tuple[tuple[str, ...], tuple[Turn, ...]]:
    if not isinstance(messages, list) or not messages or len(messages) > MOST_MESSAGES:
        raise RequestError(f'messages: give a list of 1 to {MOST_MESSAGES} messages', 400, 'messages')
    persona: list[str] = []
    turns: list[Turn] = []
    for i, message in enumerate(messages):
        role, text = _message(message, f'messages[{i}]')
        if role in ('system', 'developer'):
            persona += persona_sentences(text.split('\n'))
        elif spoken := clean(text):
            turns.append(Turn(spoken, own=role == 'assistant'))
    if turns and turns[-1].own:
        raise RequestError('messages: the last one must be of the user, whom the reply answers', 400, 'messages')
    return tuple(persona), tuple(turns)


def _message(message: Any, where: str) -> tuple[str, str]:
    if not isinstance(message, Mapping) or message.get('role') not in ('system', 'developer', 'user', 'assistant'):
        raise RequestError(
            f'{where}: give an object with the role system, user or assistant, and a content', 400, 'messages'
        )
    content = message.get('content')
    parts = content if isinstance(content, list) else [{'type': 'text', 'text': content}]
    if not all(isinstance(p, dict) and p.get('type') == 'text' and isinstance(p.get('text'), str) for p in parts):
        raise RequestError(f'{where}: its content must be a text, or a list of parts of the type text', 400, 'messages')
    text = ''.join(str(part['text']) for part in parts)
    if len(text) > MOST_CHARACTERS:
        raise RequestError(f'{where}: {len(text)} characters, and {MOST_CHARACTERS} is the most', 400, 'messages')
    return message['role'], text


# ---- answers --------------------------------------------------------------------------------------------------


def model_list(models: Sequence[ServedModel]) -> Json:
    data = [{'id': m.name, 'object': 'model', 'created': 0, 'owned_by': 'spt_parlai', **m.about} for m in models]
    return {'object': 'list', 'data': data}


def ranked(body: Json, request: ReplyRequest, ended: Mapping[int, Ended]) -> Json:
    """The `spt_ranking` of the replies, if the request asks for one."""
    texts = [ended[row].text for row in sorted(ended)]
    if body.get('spt_rank_by') == 'mbr':
        scores = ranking.consensus(texts)
    elif body.get('spt_rank_by') == 'persona':
        scores = [ranking.persona_overlap(text, ' '.join(request.persona)) for text in texts]
    else:
        return {}
    return {'spt_ranking': [float(f'{score:.4g}') for score in scores]}


class Answer:
    """Makes the JSON values of one answer, whole or in chunks."""

    def __init__(self, model: str):
        self.head = {'id': f'chatcmpl-{uuid.uuid4().hex}', 'created': int(time.time()), 'model': model}

    def chunk(self, choices: Sequence[Json], **more: Any) -> Json:
        return {**self.head, 'object': 'chat.completion.chunk', 'choices': list(choices), **more}

    def opening(self, selected: Selected) -> Json:
        """The first chunk, with the prompts and their scores."""
        choices = [
            {**delta(i, role='assistant', content=''), 'spt_prompt': prompt}
            for i, prompt in enumerate(selected.prompts)
        ]
        return self.chunk(choices, **_retrieved(selected))

    def whole(self, selected: Selected, ended: Mapping[int, Ended], finished: Finished) -> Json:
        choices = [
            {
                'index': i,
                'message': {'role': 'assistant', 'content': ended[i].text, 'refusal': None},
                'finish_reason': ended[i].reason,
                'logprobs': None,
                'spt_prompt': prompt,
            }
            for i, prompt in enumerate(selected.prompts)
        ]
        return {
            **self.head,
            'object': 'chat.completion',
            'choices': choices,
            'usage': usage(finished),
            **_retrieved(selected),
        }


def delta(index: int, finish_reason: str | None = None, **content: str) -> Json:
    return {'index': index, 'delta': content, 'finish_reason': finish_reason, 'logprobs': None}


def usage(finished: Finished) -> Json:
    context, replies = finished
    return {'prompt_tokens': context, 'completion_tokens': replies, 'total_tokens': context + replies}


def _retrieved(selected: Selected) -> Json:
    return {'spt_prompt': selected.selected, 'spt_scores': [float(f'{score:.4g}') for score in selected.scores]}
