"""In-context learning with an LLM behind an OpenAI-compatible endpoint: neither LLM nor tokenizer is here."""

from __future__ import annotations

import json
from typing import Any

from parlai.core.agents import Agent
from parlai.core.message import Message

from spt_parlai.agent.chat import persona_of_chat
from spt_parlai.dialogue.instruction import chat_messages
from spt_parlai.dialogue.messages import Dialogue, check_message
from spt_parlai.dialogue.training_set import instruction_of
from spt_parlai.endpoint import ChatEndpoint
from spt_parlai.errors import UsageError, shorten
from spt_parlai.metrics.teachers import chosen_bert
from spt_parlai.option_checks import check_options
from spt_parlai.option_effects import check_effects
from spt_parlai.training.seeding import seed_everything

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


class EndpointAgent(Agent):
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
