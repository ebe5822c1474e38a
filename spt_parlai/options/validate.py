"""What cannot work is refused before anything is loaded, in one sentence that names the option and the value."""

from __future__ import annotations

import math
import os
import re

from spt_parlai.errors import UsageError, shorten
from spt_parlai.model.loading import DTYPES
from spt_parlai.model.soft_prompts import INITIALISATIONS, SOURCES
from spt_parlai.options.declare import CHAT_TEMPLATES, CONTRASTIVE_PAIRS, CONTRASTIVE_TEXTS, QUANTIZATIONS, RETRIEVE_PER

_WHOLE = ('prompt_chunk', 'tokens_at_once', 'max_skipped_steps', 'shots', 'api_retries')
_AT_LEAST_ONE = (
    'num_prompts',
    'prompt_length',
    'lora_rank',
    'max_new_tokens',
    'batchsize',
    'retrieved',
    'api_concurrency',
)
_NOT_NEGATIVE = {
    'lambda_selection': 'switches the loss off',
    'lambda_contrastive': 'switches the loss off',
    'lambda_fusion': 'switches the loss off',
    'learningrate': 'trains nothing',
    'gold_noise': 'adds none',
    'score_noise': 'adds none',
    'api_temperature': 'takes the likeliest tokens',
}
_POSITIVE = ('tau_gold', 'tau_score', 'temperature', 'activation_beta', 'api_timeout')
_CHOICES = {
    'llm_dtype': ('auto', *DTYPES),
    'llm_quantization': QUANTIZATIONS,
    'contrastive_text': CONTRASTIVE_TEXTS,
    'contrastive_pairs': CONTRASTIVE_PAIRS,
    'retrieve_per': RETRIEVE_PER,
    'chat_template': CHAT_TEMPLATES,
}
_UNSUPPORTED = {
    'model_parallel': 'use --llm-device-map auto to spread the LLM over several GPUs',
    'data_parallel': 'use parlai multiprocessing_train for several GPUs',
    'person_tokens': 'no tokens are added to a frozen LLM; the template marks the speakers',
    'history_reversed': 'the template needs the dialogue in its order',
    'history_add_global_end_token': 'no tokens are added to a frozen LLM',
    'special_tok_lst': 'no tokens are added to a frozen LLM',
}


def check_options(opt) -> None:
    """Refuse what cannot work, before anything is loaded. Raises UsageError naming the option and the value."""
    for name in _AT_LEAST_ONE:
        value = opt.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _bad(name, value, 'give a whole number of at least 1')
    for name in _WHOLE:
        value = opt.get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise _bad(name, value, 'give a whole number of at least 0')
    for name, zero in _NOT_NEGATIVE.items():
        if not _number(opt.get(name, 0.0)) or opt.get(name, 0.0) < 0:
            raise _bad(name, opt[name], f'give a number of at least 0 (0 {zero})')
    for name in _POSITIVE:
        if not _number(opt.get(name, 1.0)) or opt.get(name, 1.0) <= 0:
            raise _bad(name, opt[name], 'give a number above 0')
    alpha, dropout, match = opt.get('lora_alpha'), opt.get('lora_dropout', 0.0), opt.get('match_spt')
    if alpha is not None and not (_number(alpha) and alpha > 0):
        raise _bad('lora_alpha', alpha, 'give a number above 0, or leave it out')
    if not _number(dropout) or not 0 <= dropout < 1:
        raise _bad('lora_dropout', dropout, 'give a number of at least 0 and below 1')
    if match is not None and not re.fullmatch(r'[1-9]\d*,[1-9]\d*', match):
        raise _bad('match_spt', match, 'give K,L: how many prompts of how many tokens, as 4,8')
    for beta in opt.get('betas') or ():
        if not _number(beta) or not 0 <= beta < 1:
            raise _bad('betas', opt['betas'], 'give two numbers of at least 0 and below 1')
    threshold = opt.get('similarity_threshold', 20.0)
    if not _number(threshold) or not 0 <= threshold <= 100:
        raise _bad('similarity_threshold', threshold, 'sentence BLEU lies between 0 and 100')
    for name, choices in _CHOICES.items():
        if name in opt and opt[name] not in choices:
            raise _bad(name, opt[name], f'choose from {", ".join(choices)}')
    force, K = opt.get('force_prompt', -1), opt.get('num_prompts', 4)
    if not isinstance(force, int) or isinstance(force, bool) or not -1 <= force < K:
        raise _bad(
            'force_prompt',
            force,
            f'give a prompt from 0 to {K - 1} (--num-prompts {K}), or -1 for what the retriever selects',
        )
    init = opt.get('prompt_init', 'normal')
    if init not in INITIALISATIONS and not (isinstance(init, str) and init.startswith(SOURCES)):
        raise _bad('prompt_init', init, f'choose from {", ".join(INITIALISATIONS)}, "text:A|B|…" or "file:PATH"')
    begun = [
        opt.get('model_file'),
        f'{opt.get("model_file")}.checkpoint',
        opt.get('init_model'),
    ]  # prompts that exist need no beginning
    if (
        init.startswith('file:')
        and not any(map(os.path.isfile, filter(None, begun)))
        and not os.path.exists(os.path.expanduser(init.removeprefix('file:')))
    ):
        raise _bad(
            'prompt_init',
            init,
            'no such file; give a .txt with a text a line, or a file or folder with trained prompts',
        )
    for name, instead in _UNSUPPORTED.items():
        if opt.get(name):
            raise UsageError(f'{_flag(name)} {opt[name]} does not work with this agent: {instead}.')
    if opt.get('ddp_backend', 'ddp') != 'ddp':
        raise _bad('ddp_backend', opt['ddp_backend'], 'only ddp works here: what trains is too small to shard')
    if opt.get('inference', 'greedy') == 'greedy' and opt.get('beam_size', 1) != 1:
        raise _bad('beam_size', opt['beam_size'], '--inference greedy follows one hypothesis; add --inference beam')
    if not opt.get('instruction', 'x').strip():
        raise _bad('instruction', opt['instruction'], 'say what the LLM is to do, or leave it out')
    if opt.get('persona') is not None and opt.get('persona_file'):
        raise UsageError('--persona and --persona-file were both given: give one of them.')
    start, model_file = opt.get('init_model'), opt.get('model_file')
    if start and not os.path.isfile(start) and not (model_file and os.path.isfile(model_file)):
        raise _bad('init_model', start, 'no such file; give the model file to start from, or leave the option out')
    for name in ('text_truncate', 'label_truncate', 'truncate', 'retrieved_length'):
        value = opt.get(name)
        if value is not None and (not isinstance(value, int) or value == 0 or value < -1):
            raise _bad(name, value, 'give a number of tokens, or -1 for as many as fit')


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _flag(name: str) -> str:
    return '--' + name.replace('_', '-')


def _bad(name: str, value, way_out: str) -> UsageError:
    return UsageError(f'{_flag(name)} {shorten(value)}: {way_out}.')
