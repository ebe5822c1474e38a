"""Talk to a trained model from Python: its replies, every prompt's, their scores; piece by piece, and many at once.

model = spt_parlai.load('spt:smollm2')
reply = model.chat('hello ! how are you ?', persona=['i like cats.', 'i am a nurse.'])
print(reply.text, reply.prompt, reply.scores)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any

import parlai  # noqa: F401  this installs the hooks, before the imports below import more of ParlAI

from spt_parlai.agents.persona import persona_sentences
from spt_parlai.dialogue.messages import Turn, clean
from spt_parlai.errors import UsageError
from spt_parlai.server.engine import Ended, Engine, Event, Failed, Finished, Piece, ReplyRequest, Selected
from spt_parlai.server.models import open_agent

Persona = str | Sequence[str]
"""The sentences of a persona, or one string with `|` between them."""


@dataclass(frozen=True)
class Reply:
    """A reply.

    :param prompt: the prompt that wrote it, from 0.
    :param scores: the retriever's K scores of the context (eq. 1); one number for an agent without a retriever.
    :param selected: the prompt that the retriever selects (eq. 7).
    """

    text: str
    prompt: int
    scores: tuple[float, ...]
    selected: int


class Model:
    """A model file, ready to reply. What several threads ask for at once is decoded in one batch.

    :param model_file: a path, or a name such as `spt:smollm2`.
    :param options: options of its agent that replace those of the file, such as `llm`, `llm_dtype`, `gpu` or `no_cuda`.
    :raises UsageError: if there is no such file or option, or the LLM does not run here.
    """

    def __init__(self, model_file: str, **options: Any):
        agent = open_agent(model_file, **options)
        self.name = model_file
        self._engine = Engine(agent, most_waiting=2**31)

    @property
    def num_prompts(self) -> int:
        """K, or 1 for an agent without soft prompts."""
        return self._engine.num_prompts

    def dialogue(self, persona: Persona = (), history: Sequence[str] = ()) -> Dialogue:
        """A dialogue with this model. Any number of them go on side by side.

        :param persona: the model's.
        :param history: what was said before, in turn; the last of it is the model's.
        """
        turns = [Turn(clean(text), own=(len(history) - i) % 2 == 1) for i, text in enumerate(history)]
        sentences = persona.split('|') if isinstance(persona, str) else persona
        return Dialogue(self, persona_sentences(sentences), turns)

    def chat(self, message: str, persona: Persona = (), history: Sequence[str] = (), **how: Any) -> Reply:
        """Reply to one message of a dialogue that nobody keeps. persona, history: see `dialogue`; how: see `say`."""
        return self.dialogue(persona, history).say(message, **how)

    def say(self, dialogues: Sequence[Dialogue], messages: Sequence[str], **how: Any) -> list[Reply]:
        """Say a message in each of several dialogues; the replies, in one batch, become part of them.

        :param how: `prompt`, the prompt to reply with instead of the selected one; `temperature`, 0 for the likeliest
            tokens, which is the default; `top_p`, to draw from the likeliest tokens that have this probability
            together; `max_tokens`, the longest reply.
        :raises UsageError: for a value that cannot be used.
        """
        if len(dialogues) != len(messages):
            raise UsageError(
                f'{len(dialogues)} dialogues and {len(messages)} messages: give a message for each dialogue.'
            )
        requests = [dialogue._request(message, **how) for dialogue, message in zip(dialogues, messages, strict=True)]
        replies = [reply for (reply,) in self._replies(requests)]
        for dialogue, request, reply in zip(dialogues, requests, replies, strict=True):
            dialogue._add(request, reply.text)
        return replies

    def close(self) -> None:
        """End the model's thread, which otherwise ends with the program."""
        self._engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _replies(self, requests: Iterable[ReplyRequest]) -> list[list[Reply]]:
        """The replies to each request, all of them in one batch."""
        queues: list[SimpleQueue[Event]] = []
        for request in requests:
            queues.append(SimpleQueue())
            self._engine.submit(request, queues[-1].put)
        return [_collected(queue) for queue in queues]


@dataclass
class Dialogue:
    """A dialogue with a model. persona: the model's sentences; turns: all that was said, the oldest first."""

    model: Model
    persona: list[str]
    turns: list[Turn] = field(default_factory=list)

    def say(self, message: str, **how: Any) -> Reply:
        """Say something; the reply becomes part of the dialogue. how: see `Model.say`."""
        return self.model.say([self], [message], **how)[0]

    def stream(self, message: str, **how: Any) -> Iterator[str]:
        """The same, the text piece by piece. Where its reader stops, the reply ends."""
        request = self._request(message, **how)
        events, said = self.model._engine.events(request), ''
        try:
            for event in events:
                _check(event)
                if isinstance(event, Piece):
                    said += event.text
                    yield event.text
        finally:
            events.close()  # type: ignore[attr-defined]
            self._add(request, said)

    def all_prompts(self, message: str, **how: Any) -> list[Reply]:
        """What each of the K prompts would reply to a message, in one batch. The dialogue stays as it is."""
        request = replace(self._request(message, **how), prompts=tuple(range(self.model.num_prompts)))
        return self.model._replies([request])[0]

    def undo(self) -> None:
        """Forget the last message and the reply to it."""
        while self.turns and self.turns[-1].own:
            self.turns.pop()
        del self.turns[-1:]

    def _request(
        self,
        message: str,
        prompt: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_tokens: int | None = None,
    ) -> ReplyRequest:
        engine = self.model._engine
        if prompt is not None and not 0 <= prompt < engine.num_prompts:
            raise UsageError(f'prompt={prompt}: {self.model.name} has the prompts 0 to {engine.num_prompts - 1}.')
        if not 0 <= temperature < math.inf:
            raise UsageError(f'temperature={temperature}: give 0, for the likeliest tokens, or a positive number.')
        if not 0 < top_p <= 1:
            raise UsageError(f'top_p={top_p}: give a number above 0, and at most 1.')
        if max_tokens is not None and not 1 <= max_tokens <= engine.most_tokens:
            raise UsageError(f'max_tokens={max_tokens}: give a number from 1 to {engine.most_tokens}.')
        return ReplyRequest(
            tuple(self.persona),
            (*self.turns, Turn(clean(message), own=False)),
            () if prompt is None else (prompt,),
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens or engine.usual_tokens,
            seconds=math.inf,
        )

    def _add(self, request: ReplyRequest, reply: str) -> None:
        self.turns = [turn for turn in (*request.turns, Turn(clean(reply), own=True)) if turn.text]


def _collected(queue: SimpleQueue[Event]) -> list[Reply]:
    """The replies of a request, a row each, when it has finished."""
    texts: dict[int, str] = {}
    choice = Selected([], 0, [])
    while not isinstance(event := queue.get(), Finished):
        _check(event)
        if isinstance(event, Selected):
            choice = event
        elif isinstance(event, Ended):
            texts[event.row] = event.text
    return [
        Reply(texts[row], prompt, tuple(choice.scores), choice.selected) for row, prompt in enumerate(choice.prompts)
    ]


def _check(event: Event) -> None:
    if isinstance(event, Failed):
        raise RuntimeError(f'there is no reply: {event.message}')
