"""One model, one thread, one batch at a time: replies to many dialogues, token by token.

Whoever wants a reply submits a request and is told of every event by a callback. The thread takes the waiting requests
that can be decoded together, and one search (`model.decoding.Search`) finds all of their replies. The search asks for
the next token of every row, and there the rows are sampled, shown, stopped and cancelled.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import NamedTuple

import torch
from parlai.core.message import Message
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spt_parlai.agents.base import LLMAgent
from spt_parlai.agents.generation import blocked_context
from spt_parlai.dialogue.messages import Dialogue, Turn
from spt_parlai.model.decoding import Search, greedy, nucleus
from spt_parlai.model.prompted_lm import Selection
from spt_parlai.server.reply_text import ReplyText

logger = logging.getLogger(__name__)
_GATHERING = 0.005  # seconds to wait for further requests after the first


@dataclass(frozen=True)
class ReplyRequest:
    """A dialogue, and how to reply to it.

    :param prompts: the prompts to reply with; (): the one that the retriever selects.
    :param n: replies for each of them.
    :param temperature: 0 takes the likeliest tokens.
    :param top_p: tokens are drawn from the likeliest ones that have this probability together.
    :param max_tokens: the longest reply; the LLM's window may leave room for fewer (`Engine.most_tokens`).
    :param stop: replies end before these strings, besides the marks of the next turn.
    :param seconds: the longest time, waiting included.
    """

    persona: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()
    prompts: tuple[int, ...] = ()
    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 32
    stop: tuple[str, ...] = ()
    seconds: float = 60.0

    @property
    def rows(self) -> int:
        return max(len(self.prompts), 1) * self.n


class Selected(NamedTuple):
    """The retriever's choice. scores: K numbers (eq. 1); selected: eq. 7; prompts: the prompt of each row."""

    scores: list[float]
    selected: int
    prompts: list[int]


class Piece(NamedTuple):
    """The next piece of the text of a row."""

    row: int
    text: str


class Ended(NamedTuple):
    """A row has ended, with 'stop' or at its greatest 'length'. text: the whole reply."""

    row: int
    text: str
    reason: str


class Finished(NamedTuple):
    """All rows have ended. Counts of tokens, those of the context and those of the replies."""

    context_tokens: int
    reply_tokens: int


class Failed(NamedTuple):
    """The request ends without a reply. kind: 'busy', 'timeout', 'closed' or 'error'."""

    kind: str
    message: str


Event = Selected | Piece | Ended | Finished | Failed


@dataclass(eq=False)
class Job:
    """A request under way; `cancel` ends it at its next token, and no event follows."""

    request: ReplyRequest
    emit: Callable[[Event], object]
    deadline: float
    cancelled: bool = False
    over: bool = False
    texts: list[ReplyText] = field(default_factory=list)

    def cancel(self) -> None:
        self.cancelled = True

    def tell(self, event: Event) -> None:
        if self.cancelled or self.over:
            return
        self.over = isinstance(event, (Finished, Failed))
        try:
            self.emit(event)
        except Exception:  # whoever asked has gone; the others' replies go on
            self.cancelled = True


class Engine:
    """Replies with an agent's model. The agent belongs to the engine's thread from now on.

    :param agent: an agent with an LLM of its own.
    :param most_rows: the most replies that are decoded together.
    :param most_waiting: the most replies that may wait; further requests fail at once.
    """

    def __init__(self, agent: LLMAgent, most_rows: int = 64, most_waiting: int = 256):
        self.agent = agent
        self.model = agent.bare_model.eval()
        self.num_prompts = agent.bare_model.soft_prompts.num_prompts
        self.most_tokens = max(agent.label_truncate, agent.opt['max_new_tokens'])
        self.usual_tokens = max(agent.opt['max_new_tokens'] - 1, 1)  # without the end token
        self.most_rows, self.most_waiting = most_rows, most_waiting
        self.marks = agent.marks
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name='decoding', daemon=True)
        self._thread.start()

    # ---- from other threads ---------------------------------------------------------------------------

    def submit(self, request: ReplyRequest, emit: Callable[[Event], object]) -> Job:
        """Ask for a reply. `emit` is called from the decoding thread, last with `Finished` or `Failed`."""
        job = Job(request, emit, time.monotonic() + request.seconds)
        with self._changed:
            waiting = sum(other.request.rows for other in self._waiting)
            if self._closed:
                job.tell(Failed('closed', 'the server is shutting down'))
            elif waiting + request.rows > self.most_waiting:
                job.tell(Failed('busy', f'{waiting} replies are waiting already; try again in a moment'))
            else:
                self._waiting.append(job)
                self._changed.notify()
        return job

    def events(self, request: ReplyRequest) -> Iterator[Event]:
        """The events of a request, one after another. Leaving the loop cancels it."""
        queue: SimpleQueue[Event] = SimpleQueue()
        job = self.submit(request, queue.put)
        try:
            while True:
                yield (event := queue.get())
                if isinstance(event, (Finished, Failed)):
                    return
        finally:
            job.cancel()

    def close(self) -> None:
        """End the thread. What waits or runs fails."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    # ---- the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while jobs := self._next_batch():
            try:
                with torch.inference_mode():
                    self._reply(jobs)
            except Exception as error:
                logger.exception('a batch of %d requests failed', len(jobs))
                for job in jobs:
                    job.tell(Failed('error', f'{type(error).__name__}: {error}'))

    def _next_batch(self) -> list[Job]:
        """Wait for requests; returns those that run together, the longest waiting first. None are left at the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
            time.sleep(_GATHERING)
            with self._changed:
                jobs: list[Job] = []
                left: list[Job] = []
                rows = 0
                for job in self._waiting:
                    if job.cancelled:
                        continue
                    if self._closed:
                        job.tell(Failed('closed', 'the server is shutting down'))
                    elif time.monotonic() > job.deadline:
                        job.tell(_too_late(job))
                    elif jobs and not self._run_together(jobs[0], job, rows):
                        left.append(job)
                    else:
                        jobs.append(job)
                        rows += job.request.rows
                self._waiting = deque(left)
                if jobs or self._closed:
                    return jobs

    def _run_together(self, first: Job, job: Job, rows: int) -> bool:
        """The temperature also decides how a reply ends (`PromptedLM.output`), so it is that of a whole batch."""
        return first.request.temperature == job.request.temperature and rows + job.request.rows <= self.most_rows

    def _reply(self, jobs: Sequence[Job]) -> None:
        agent, model = self.agent, self.model
        contexts, scored = zip(*(self._context(job.request) for job in jobs), strict=True)
        padded = self._padded(contexts)
        scores, selected = model.retrieve(padded if scored[0] is None else self._padded(scored))
        rows = [
            (i, prompt)
            for i, job in enumerate(jobs)
            for prompt in job.request.prompts or (int(selected[i]),)
            for _ in range(job.request.n)
        ]
        for i, (job, choice) in enumerate(zip(jobs, selected.tolist(), strict=True)):
            job.texts = [self._text(job.request) for _ in range(job.request.rows)]
            job.tell(Selected(scores[i].tolist(), choice, [prompt for j, prompt in rows if j == i]))
        of = torch.tensor([i for i, _ in rows])
        prompts = torch.tensor([prompt for _, prompt in rows], device=selected.device)
        temperature = jobs[0].request.temperature
        model.end_temperature = temperature
        search = Search(
            _Rows(jobs, temperature, agent.END_IDX),
            agent.START_IDX,
            agent.END_IDX,
            max(text.limit for job in jobs for text in job.texts) + 1,
            temperature=temperature or 1.0,
            min_length=agent.beam_min_length,
            block_ngram=agent.beam_block_ngram,
            context_block_ngram=agent.beam_context_block_ngram,
        )
        encoded = model.encoder(padded[of], selection=Selection(scores[of.to(scores.device)], prompts))
        search(model, encoded, blocked_context(padded)[of].to(encoded.logits.device))
        for job, context in zip(jobs, contexts, strict=True):
            job.tell(Finished(len(context), sum(len(text.ids) for text in job.texts)))

    def _context(self, request: ReplyRequest) -> tuple[Tensor, Tensor | None]:
        """The token ids of a dialogue's context, and those that the retriever reads if they are others."""
        history, message = self.agent._new_history(), Message()
        history.dialogue = Dialogue(list(request.persona), list(request.turns))
        history.dialogue.keep_newest(history.size)
        self.agent.batcher.add_context(message, history, with_full_context=False)
        scored = message['scored']
        return message['text_vec'], None if scored is None else torch.tensor(scored)

    def _padded(self, rows: Sequence[Tensor]) -> Tensor:
        return pad_sequence(list(rows), batch_first=True, padding_value=self.agent.NULL_IDX)

    def _text(self, request: ReplyRequest) -> ReplyText:
        return ReplyText(
            lambda ids: self.agent._said(ids)[1],
            [*self.marks, *request.stop],
            min(request.max_tokens, self.most_tokens),
        )


class _Rows:
    """Picks the next token of every row of a batch, and tells the requests of it. It is a `decoding.Choice`."""

    def __init__(self, jobs: Sequence[Job], temperature: float, end: int):
        self.temperature, self.end = temperature, end
        self.rows = [(job, row) for job in jobs for row in range(job.request.rows)]
        self.running = [True] * len(self.rows)

    def __call__(self, log_probs: Tensor, ended: list[bool], _rows: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        if len(self.rows) > len(ended):  # rows that have ended have left the batch
            self.rows = [row for row, runs in zip(self.rows, self.running, strict=True) if runs]
            self.running = [True] * len(self.rows)
        tokens, scores = self._draw(log_probs, ended)
        chosen = tokens.tolist()
        for i, (job, row) in enumerate(self.rows):
            if self.running[i] and not self._goes_on(job, row, chosen[i]):
                chosen[i], self.running[i] = self.end, False
        return tokens.new_tensor(chosen), scores

    def _draw(self, log_probs: Tensor, ended: list[bool]) -> tuple[Tensor, Tensor]:
        if self.temperature == 0:
            return greedy(log_probs, ended)
        return nucleus(log_probs, ended, p=log_probs.new_tensor([[job.request.top_p] for job, _ in self.rows]))

    def _goes_on(self, job: Job, row: int, token: int) -> bool:
        """Show the next token of a row; returns whether the row goes on after it."""
        if time.monotonic() > job.deadline:
            job.tell(_too_late(job))
        if job.cancelled or job.over:
            return False
        text = job.texts[row]
        piece = text.end() if token == self.end else text.push(token)
        if piece:
            job.tell(Piece(row, piece))
        if text.finish_reason is not None:
            job.tell(Ended(row, text.text, text.finish_reason))
        return text.finish_reason is None


def _too_late(job: Job) -> Failed:
    return Failed('timeout', f'no reply within {job.request.seconds:g} seconds')


@contextlib.contextmanager
def running(agent: LLMAgent, **limits: int) -> Iterator[Engine]:
    """An engine within this context."""
    engine = Engine(agent, **limits)
    try:
        yield engine
    finally:
        engine.close()
