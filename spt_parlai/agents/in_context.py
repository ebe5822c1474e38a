"""In-context learning: a frozen LLM reads an instruction, examples and the dialogue, and nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence

from parlai.utils import logging

from spt_parlai.agents.base import LLMAgent
from spt_parlai.agents.batching import SMALLEST_CONTEXT
from spt_parlai.agents.in_context_api import API, IN_CONTEXT, template_variables
from spt_parlai.dialogue.instruction import (
    Instruction,
    Message,
    chat_messages,
    cut_to_fit,
    ever_shorter,
    instructed_context,
    without_system,
)
from spt_parlai.dialogue.messages import Dialogue, Turn
from spt_parlai.dialogue.template import Context, render
from spt_parlai.dialogue.thoughts import is_thinking
from spt_parlai.dialogue.training_set import instruction_of
from spt_parlai.errors import UsageError, refused
from spt_parlai.options.declare import Option, OptionGroup

CHAT_TEMPLATE = OptionGroup(
    'In-context learning with a local LLM',
    (
        Option(
            'chat_template',
            'auto',
            "auto: the chat template of the LLM's tokenizer, if it has one; false: plain text",
            choices=('auto', 'false'),
        ),
    ),
)


class InContextAgent(LLMAgent):
    """A frozen LLM with an instruction. Perplexities are those of the reply after the instruction and the dialogue."""

    kind = 'InContextAgent'
    context_is_foreseen = False  # it depends on the examples
    trains = False

    # API is among them so that its options are refused with the name of the agent that they belong to.
    options = (*LLMAgent.options, IN_CONTEXT, CHAT_TEMPLATE, API)

    def __init__(self, opt, shared=None):
        if shared is not None:
            self.instruction, self._chats, self._knows_system, self._thinks = shared['in_context']
        super().__init__(opt, shared)
        if self._chats:
            self.batcher.end, self.marks = self._end_of_turn(), ()

    def share(self):
        return {**super().share(), 'in_context': (self.instruction, self._chats, self._knows_system, self._thinks)}

    def build_model(self):
        """Fit the instruction and the examples into the window, then build the model.

        :raises UsageError: if they leave no room for the dialogue.
        """
        self.instruction = instruction_of(self.opt)
        self._chats = self.opt['chat_template'] == 'auto' and bool(self.dict.tokenizer.chat_template)
        if self._chats:
            self._knows_system = self._takes_system()
            self._check_chat_ids()
            if self.opt['stop_at_next_speaker'] == 'true':
                raise refused(
                    'stop_at_next_speaker',
                    'true',
                    'in a chat template the turns have no such marks; leave it out, or add --chat-template false',
                )
            self._thinks = self._begins_thinking()
        else:
            self._knows_system = False
        shortest = self._context(Dialogue(), self.instruction._replace(examples=()), None)
        if len(shortest.ids) > self.text_truncate - SMALLEST_CONTEXT:
            raise UsageError(
                f"--instruction: it takes {len(shortest.ids)} of the context's {self.text_truncate} tokens, which "
                'leaves none for the dialogue; give a shorter one.'
            )
        self.instruction = self.instruction._replace(examples=self._shown_examples(len(shortest.ids)))
        return super().build_model()

    def _shown_examples(self, without: int) -> list[Dialogue]:
        """The beginnings of the examples, which share half of the context equally.

        :param without: number of tokens in a context without examples.
        """

        def tokens(example: Dialogue) -> int:
            return self._context(Dialogue(), self.instruction._replace(examples=(example,)), None).length - without

        examples, half = self.instruction.examples, self.text_truncate // 2
        fitting = (cut_to_fit(example, half // len(examples), tokens) for example in examples)
        shown = [beginning for beginning in fitting if beginning is not None]
        if len(shown) < len(examples):
            raise UsageError(
                f'--shots {len(examples)}: half of the context of {self.text_truncate} tokens has no room for one '
                'exchange of each example; give fewer.'
            )
        if turns := sum(len(whole.turns) - len(kept.turns) for whole, kept in zip(examples, shown, strict=True)):
            logging.info(
                f'--shots {len(examples)}: half of the context is {half} tokens; the examples are shown without their '
                f'last {turns} turns in all'
            )
        return shown

    # ---- the context ----------------------------------------------------------------------------------

    def context_of(self, dialogue: Dialogue, limit: int | None, _replies=()) -> Context:
        return self._context(dialogue, self.instruction, limit)

    def _context(self, dialogue: Dialogue, instruction: Instruction, limit: int | None) -> Context:
        if not self._chats:
            return instructed_context(dialogue, instruction, self.dict.piece, self.dict.bos, limit)
        ids: list[int] = []
        length = 0  # of the first context, which is the longest
        for shown in ever_shorter(dialogue, instruction):
            ids = self._chat_ids(*shown)
            length = length or len(ids)
            if limit is None or len(ids) <= limit:
                break
        return Context(tuple(ids), render(dialogue), length)

    def _chat_ids(self, dialogue: Dialogue, instruction: Instruction) -> list[int]:
        messages = chat_messages(dialogue, instruction)
        return self._apply(messages if self._knows_system else without_system(messages))

    def _apply(self, messages: Sequence[Message], reply_follows: bool = True) -> list[int]:
        variables = {'enable_thinking': False, **template_variables(self.opt)}
        return self.dict.safe.encode_chat(messages, variables, add_generation_prompt=reply_follows)

    def _takes_system(self) -> bool:
        """Whether the chat template accepts a system message; some do not."""
        from jinja2 import TemplateError

        messages = [{'role': role, 'content': 'x'} for role in ('system', 'user', 'assistant', 'user')]
        try:
            return bool(self._apply(messages))
        except TemplateError:
            pass
        try:
            self._apply(messages[1:])
        except TemplateError as error:
            raise UsageError(
                f'--llm {self.opt["llm"]}: its chat template cannot write a dialogue ({error}); give the variables '
                'that it needs with --chat-template-variables, or --chat-template false.'
            ) from error
        return False

    def _begins_thinking(self) -> bool:
        """Whether the chat template opens a think block for the LLM."""
        ids = self._chat_ids(Dialogue(turns=[Turn('x', own=False)]), self.instruction._replace(examples=()))
        return is_thinking(self.dict.tokenizer.decode(ids))

    def _end_of_turn(self) -> int:
        """The LLM's end token with which its chat template closes a reply, or else EOS."""
        exchange = Dialogue(turns=[Turn('x', own=False), Turn('x', own=True)])
        messages = chat_messages(exchange, self.instruction._replace(examples=()))
        messages = messages if self._knows_system else without_system(messages)
        closed = self._apply(messages, reply_follows=False)
        ends = (self.END_IDX, *self.bare_model.other_ends)
        return next((i for i in reversed(closed) if i in ends), self.END_IDX)

    def _check_chat_ids(self) -> None:
        """Refuse a chat template with tokens that the LLM has no embedding for.

        :raises UsageError: naming one of them.
        """
        exchange = Dialogue(turns=[Turn('x', own=False), Turn('x', own=True), Turn('x', own=False)])
        highest = max(self._chat_ids(exchange, self.instruction._replace(examples=())))
        if highest >= self.dict.embedded:
            raise UsageError(
                f'--llm {self.opt["llm"]}: its chat template uses {self.dict[highest]!r}, which the LLM does not know; '
                'give --chat-template false, or take the tokenizer and the LLM from the same model.'
            )

    # ---- targets and replies --------------------------------------------------------------------------

    def reply_ids(self, text: str) -> list[int]:
        """In a chat a reply begins its message, so no space comes before it."""
        return list(self.dict.piece(' '.join(text.split()), True)) if self._chats else super().reply_ids(text)

    @property
    def stops_at_next_speaker(self) -> bool:
        """In plain text a reply ends before the next turn in every command: the LLM has not learnt where to end it."""
        return not self._chats and self.opt['stop_at_next_speaker'] != 'false'

    def _v2t(self, vector) -> str:
        text = super()._v2t(vector)
        return ' '.join(text.split()) if self._chats else text
