"""In-context learning with an LLM behind an OpenAI-compatible endpoint: no LLM and no tokenizer is loaded here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from parlai.core.agents import Agent
from parlai.core.message import Message

from spt_parlai.agents.chat_endpoint import ChatEndpoint
from spt_parlai.agents.persona import persona_of_chat
from spt_parlai.dialogue.control_tokens import DATE, FROZEN_DATE
from spt_parlai.dialogue.instruction import END_OF_TURN, INSTRUCTION, chat_messages, first_turn_of
from spt_parlai.dialogue.messages import Dialogue, check_message, well_formed
from spt_parlai.dialogue.thoughts import without_thoughts
from spt_parlai.dialogue.training_set import instruction_of
from spt_parlai.errors import UsageError, flag, refused, shorten
from spt_parlai.options.declare import Needs, Opt, Option, OptionGroup
from spt_parlai.options.groups import CHAT, MAX_NEW_TOKENS, TRAINING_TASK
from spt_parlai.options.parlai_options import check_parlai_options
from spt_parlai.options.validate import check_options
from spt_parlai.training.resume import ResumableAgent
from spt_parlai.training.seeding import seed_everything

_NO_VARIABLES = {  # arguments of transformers' method, and what it gives the template itself
    'add_generation_prompt',
    'chat_template',
    'continue_final_message',
    'conversation',
    'frozen_date',
    'max_length',
    'messages',
    'padding',
    'return_assistant_tokens_mask',
    'return_dict',
    'return_tensors',
    'sanitize_control_tokens',
    'tokenize',
    'tokenizer_kwargs',
    'truncation',
}


def _wrong_variables(opt: Opt) -> None:
    template_variables(opt)


IN_CONTEXT = OptionGroup(
    'In-context learning',
    (
        Option(
            'instruction',
            INSTRUCTION,
            'what the LLM is told before the persona and the dialogue',
            check=lambda opt: None if opt['instruction'].strip() else 'say what the LLM is to do, or leave it out',
        ),
        Option(
            'shots',
            0,
            'how many training dialogues are shown as examples; --seed draws them, the same for every query',
            int,
            at_least=0,
        ),
        TRAINING_TASK,
        Option(
            'chat_template_variables',
            '{}',
            'JSON object with variables of the chat template, such as {"enable_thinking": true}',
            needs=Needs(lambda opt: opt.get('chat_template') != 'false', 'leave it out, or leave out --chat-template'),
            check=_wrong_variables,
        ),
    ),
)

_ENDPOINT = Needs(
    lambda opt: str(opt.get('model')).endswith(':InContextApiAgent'),
    'use -m spt_parlai.agents:InContextApiAgent or leave it out',
)

API = OptionGroup(
    'In-context learning with an OpenAI-compatible endpoint (InContextApiAgent)',
    (
        MAX_NEW_TOKENS,
        Option(
            'api_base',
            None,
            'URL of the endpoint, such as https://api.openai.com/v1',
            'nonestr',
            needs=_ENDPOINT,
        ),
        Option('api_model', None, 'name of its LLM', 'nonestr', needs=_ENDPOINT),
        Option(
            'api_key_env',
            'OPENAI_API_KEY',
            'environment variable that holds the key; if it is not set, no key is sent',
            needs=_ENDPOINT,
        ),
        Option(
            'api_temperature',
            0.0,
            'sampling temperature; 0: the likeliest tokens',
            float,
            at_least=0,
            note='0 takes the likeliest tokens',
            needs=_ENDPOINT,
        ),
        Option(
            'api_parameters',
            '{}',
            'further entries of every request, as a JSON object; null removes one: {"max_tokens": null}',
            needs=_ENDPOINT,
        ),
        Option('api_timeout', 60.0, 'seconds to wait for an answer', float, above=0, needs=_ENDPOINT),
        Option(
            'api_retries',
            6,
            'how often a request is repeated when the server is busy, silent or unreachable',
            int,
            at_least=0,
            needs=_ENDPOINT,
        ),
        Option(
            'api_concurrency',
            8,
            'how many requests of a batch (see --batchsize) are under way at a time',
            int,
            at_least=1,
            needs=_ENDPOINT,
        ),
    ),
)


class InContextApiAgent(Agent, ResumableAgent):
    """Sends the dialogue so far to a chat endpoint and says what it answers; the requests of a batch run concurrently.

    The protocol has no probabilities of a given reply, so there are no perplexities.
    """

    options = (IN_CONTEXT, API, CHAT)

    @classmethod
    def trains_anything(cls) -> bool:
        return False

    @classmethod
    def add_cmdline_args(cls, parser, partial_opt=None):
        for group in cls.options:
            group.add_to(parser)
        group = parser.add_argument_group("ParlAI's options")  # those of its TorchAgent that have an effect here
        group.add_argument('-histsz', '--history-size', type=int, default=-1, help='utterances to remember (-1: all)')
        group.add_argument(
            '--use-reply', default='label', choices=['label', 'model', 'none'], help='whose replies the history holds'
        )
        group.add_argument('--no-cuda', action='store_true', help='run --bertscore on the CPU')
        return parser

    def __init__(self, opt, shared=None):
        super().__init__(opt, shared)
        self.id = 'InContext'
        if shared is None:
            check_parlai_options(opt)
            check_options(opt, self.options)
            seed = (opt.get('override') or {}).get('seed')  # not that of a script's default
            if seed is not None:  # a persona may be drawn
                seed_everything(seed)
            self.endpoint, self.instruction = _endpoint_of(opt), instruction_of(opt)
        else:
            self.endpoint, self.instruction = shared['endpoint'], shared['instruction']
        self._stops = self.opt['stop_at_next_speaker'] == 'true'
        self.persona = persona_of_chat(self.opt, self.id)
        self.reset()

    def share(self):
        return {**super().share(), 'endpoint': self.endpoint, 'instruction': self.instruction}

    def reset(self):
        super().reset()
        self.dialogue = Dialogue(list(self.persona))

    def observe(self, observation):
        check_message(observation)
        self.observation = Message(well_formed(observation))
        if not self.observation.is_padding():
            self.dialogue.observe(observation.get('text'))
            self.dialogue.keep_newest(self.opt['history_size'])
            self.observation.force_set('chat', chat_messages(self.dialogue, self.instruction))
        return self.observation

    def act(self):
        reply = self.batch_act([self.observation])[0]
        self.self_observe(reply)
        return reply

    def batch_act(self, observations):
        replies = [Message({'id': self.id, 'episode_done': False}) for _ in observations]
        asked = [i for i, observation in enumerate(observations) if 'chat' in observation]
        texts = self.endpoint.replies([observations[i]['chat'] for i in asked])
        for i, text in zip(asked, texts, strict=True):
            reply = without_thoughts(text)
            replies[i]['text'] = ' '.join((first_turn_of(reply) if self._stops else reply).split())
        return replies

    def self_observe(self, reply) -> None:
        """Add the reply that `--use-reply` asks for to the dialogue, as ParlAI's own agents do."""
        heard, use_reply = self.observation, self.opt['use_reply']
        if heard.get('episode_done', False):
            self.reset()
            return
        labels = heard.get('labels') or heard.get('eval_labels')
        if use_reply == 'label' and labels:
            self.dialogue.reply(labels[0])
        elif use_reply != 'none':
            self.dialogue.reply(reply.get('text', ''))
        self.dialogue.keep_newest(self.opt['history_size'])


def json_object(opt: Opt, name: str, example: str) -> dict[str, Any]:
    """The JSON object of an option. Raises UsageError for anything else."""
    try:
        value = json.loads(opt[name])
    except ValueError as error:
        raise UsageError(f'{flag(name)} {shorten(opt[name])} is not JSON ({error}).') from error
    if not isinstance(value, dict):
        raise refused(name, opt[name], f'give a JSON object, such as {example}')
    return value


def template_variables(opt: Opt) -> dict[str, Any]:
    """The variables of `--chat-template-variables`.

    :raises UsageError: for a name that is no variable, or a date that is none.
    """
    given = json_object(opt, 'chat_template_variables', '{"enable_thinking": true}')
    if taken := sorted(given.keys() & _NO_VARIABLES):
        raise refused(
            'chat_template_variables', opt['chat_template_variables'], f'{taken[0]} is no variable; leave it out'
        )
    try:
        datetime.fromisoformat(given.get(DATE, FROZEN_DATE))
    except (TypeError, ValueError) as error:
        raise refused(
            'chat_template_variables', opt['chat_template_variables'], f'give {DATE} a date, such as {FROZEN_DATE}'
        ) from error
    return given


def _endpoint_of(opt) -> ChatEndpoint:
    """The endpoint of the `--api-…` options. Raises UsageError for an option that cannot work."""
    for name, meaning in (
        ('base', 'the URL of the endpoint'),
        ('model', 'the name by which the endpoint knows the LLM'),
    ):
        if not opt.get(f'api_{name}'):
            raise UsageError(f'-m spt_parlai.agents:InContextApiAgent needs --api-{name}: {meaning}.')
    return chat_endpoint(
        opt,
        stop=list(END_OF_TURN) if opt['stop_at_next_speaker'] == 'true' else None,
        chat_template_kwargs=template_variables(opt) or None,  # of vLLM, SGLang and llama.cpp; others may refuse it
    )


def chat_endpoint(opt: Mapping[str, Any], **more: Any) -> ChatEndpoint:
    """The client that the `--api-…` options describe. Raises UsageError for an option that cannot work.

    :param more: further entries of every request, before those of `--api-parameters`; None leaves an entry out.
    """
    if not opt['api_base'].startswith(('http://', 'https://')):
        raise UsageError(
            f'--api-base {opt["api_base"]}: give a URL that begins with http:// or https://, such as '
            'https://api.openai.com/v1.'
        )
    parameters = {
        'max_tokens': opt['max_new_tokens'],
        'temperature': opt['api_temperature'],
        **more,
        **json_object(opt, 'api_parameters', '{"top_p": 0.9}'),
    }
    return ChatEndpoint(
        opt['api_base'],
        opt['api_model'],
        {name: value for name, value in parameters.items() if value is not None},
        opt['api_key_env'],
        opt['api_timeout'],
        opt['api_retries'],
        opt['api_concurrency'],
    )
