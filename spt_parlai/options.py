"""Command-line options of the agent: declared once with their help, checked together in one place."""

from __future__ import annotations

import math
import os
from pathlib import Path

from spt_parlai.errors import UsageError, shorten
from spt_parlai.model.loading import DTYPES
from spt_parlai.model.soft_prompts import INITIALISATIONS

CONTRASTIVE_TEXTS = ('context', 'persona')
QUANTIZATIONS = ('none', '8bit', '4bit')
NO_GENERATION_NEEDED = (
    'ppl', 'loss', 'token_acc', 'token_em', 'nll', 'selection', 'contrastive', 'fusion', 'spt_loss', 'prompt_usage_entropy',
)


def add_llm_args(parser) -> None:
    group = parser.add_argument_group('Frozen LLM')
    group.add_argument('--llm', type=str, default='facebook/opt-125m',
                       help='Hugging Face id or local folder of a decoder-only LM, or "demo" (carried by the package)')
    group.add_argument('--llm-revision', type='nonestr', default=None, help='revision of a Hugging Face id')
    group.add_argument('--llm-dtype', type=str, default='auto', choices=['auto', *DTYPES],
                       help='auto: float32 on a CPU, the stored dtype on a GPU (half precision with --fp16 true)')
    group.add_argument('--llm-device-map', type=str, default='none',
                       help="none, or accelerate's placement: auto, balanced, or a JSON file")
    group.add_argument('--llm-quantization', type=str, default='none', choices=list(QUANTIZATIONS),
                       help='load the LLM in 8 or 4 bits (needs bitsandbytes)')


def add_spt_args(parser) -> None:
    group = parser.add_argument_group('Selective Prompt Tuning')
    group.add_argument('--num-prompts', type=int, default=4, help='K, soft prompts in the group')
    group.add_argument('--prompt-length', type=int, default=8, help='L, tokens per soft prompt')
    group.add_argument('--prompt-init', type=str, default='normal', choices=list(INITIALISATIONS),
                       help="normal: N(0, 1); embedding-scale: at the scale of the LLM's word embeddings; vocab: random words")
    group.add_argument('--lambda-selection', type=float, default=1.0, help='weight of the selection KL (0: off)')
    group.add_argument('--lambda-contrastive', type=float, default=1.0, help='weight of the context-prompt contrast (0: off)')
    group.add_argument('--lambda-fusion', type=float, default=1.0, help='weight of the fusion NLL (0: off)')
    group.add_argument('--tau-gold', type=float, default=1.0, help='temperature of the gold distribution')
    group.add_argument('--tau-score', type=float, default=1.0, help='temperature of the retriever scores in the selection KL')
    group.add_argument('--similarity-threshold', type=float, default=20.0,
                       help='contexts with a sentence BLEU (0-100) above this are pulled together, others apart')
    group.add_argument('--contrastive-text', type=str, default='context', choices=list(CONTRASTIVE_TEXTS),
                       help='which text of a context the contrast compares')
    group.add_argument('--max-new-tokens', type=int, default=32, help='longest generated reply, in tokens')


def add_chat_args(parser) -> None:
    group = parser.add_argument_group('SPT chat')
    group.add_argument('--persona', type=str, default=None,
                       help='sentences of the persona in interactive use, joined by "|"; empty: none; '
                            'default: one drawn from the sample task')
    group.add_argument('--persona-file', type='nonestr', default=None, help='the same from a file, one sentence a line')
    if '--seed' not in parser._option_string_actions:  # train_model and self_chat have their own
        group.add_argument('--seed', type=int, default=None, help='makes sampling (and a drawn persona) repeatable')


def set_spt_defaults(parser) -> None:
    """What makes the bare command right; every one of them can be given."""
    parser.set_defaults(
        optimizer='adam', learningrate=0.01, validation_metric='ppl', validation_metric_mode='min',
        skip_generation=None,  # decided by `skips_generation`
        save_every_n_secs=60.0, save_after_valid=True,  # a killed run continues
        display_add_fields='selected_prompt,prompt_scores',
    )
    if '--num-epochs' in parser._option_string_actions:  # training alone: a chat has a batch of one
        parser.set_defaults(
            num_epochs=15.0, validation_every_n_epochs=1.0,  # table 6, OPT-125M; ParlAI's own default never ends
            batchsize=8,  # a batch of one has no pairs to contrast
        )


def skips_generation(opt) -> bool:
    """--skip-generation as given; else validation during training (`training_loop`, set by spt_parlai.resume) generates
    only if its metric needs replies, and everything else generates."""
    if opt.get('skip_generation') is not None:
        return opt['skip_generation']
    return opt.get('training_loop', False) and opt.get('validation_metric', 'ppl') in NO_GENERATION_NEEDED


# ---- checks ----------------------------------------------------------------------------------------------

_AT_LEAST_ONE = ('num_prompts', 'prompt_length', 'max_new_tokens', 'batchsize')
_NOT_NEGATIVE = {
    'lambda_selection': 'switches the loss off', 'lambda_contrastive': 'switches the loss off',
    'lambda_fusion': 'switches the loss off', 'learningrate': 'trains nothing',
}
_POSITIVE = ('tau_gold', 'tau_score', 'temperature')
_CHOICES = {
    'llm_dtype': ('auto', *DTYPES), 'llm_quantization': QUANTIZATIONS, 'prompt_init': INITIALISATIONS,
    'contrastive_text': CONTRASTIVE_TEXTS,
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
    for name, zero in _NOT_NEGATIVE.items():
        if not _number(opt.get(name, 0.0)) or opt.get(name, 0.0) < 0:
            raise _bad(name, opt[name], f'give a number of at least 0 (0 {zero})')
    for name in _POSITIVE:
        if not _number(opt.get(name, 1.0)) or opt.get(name, 1.0) <= 0:
            raise _bad(name, opt[name], 'give a number above 0')
    threshold = opt.get('similarity_threshold', 20.0)
    if not _number(threshold) or not 0 <= threshold <= 100:
        raise _bad('similarity_threshold', threshold, 'sentence BLEU lies between 0 and 100')
    for name, choices in _CHOICES.items():
        if name in opt and opt[name] not in choices:
            raise _bad(name, opt[name], f'choose from {", ".join(choices)}')
    for name, instead in _UNSUPPORTED.items():
        if opt.get(name):
            raise UsageError(f'{_flag(name)} {opt[name]} does not work with this agent: {instead}.')
    if opt.get('ddp_backend', 'ddp') != 'ddp':
        raise _bad('ddp_backend', opt['ddp_backend'], 'only ddp works here: what trains is too small to shard')
    if opt.get('inference', 'greedy') == 'greedy' and opt.get('beam_size', 1) != 1:
        raise _bad('beam_size', opt['beam_size'], '--inference greedy follows one hypothesis; add --inference beam')
    if opt.get('persona') is not None and opt.get('persona_file'):
        raise UsageError('--persona and --persona-file were both given: give one of them.')
    blocked = [p for p in Path(opt.get('model_file') or '.').parents if p.is_file()]
    if blocked:
        raise _bad('model_file', opt['model_file'], f'{blocked[0]} is a file, so nothing can be written below it; give another path')
    start, model_file = opt.get('init_model'), opt.get('model_file')
    if start and not os.path.isfile(start) and not (model_file and os.path.isfile(model_file)):
        raise _bad('init_model', start, 'no such file; give the model file to start from, or leave the option out')
    for name in ('text_truncate', 'label_truncate', 'truncate'):
        value = opt.get(name)
        if value is not None and (not isinstance(value, int) or value == 0 or value < -1):
            raise _bad(name, value, 'give a number of tokens, or -1 for as many as fit')


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _flag(name: str) -> str:
    return '--' + name.replace('_', '-')


def _bad(name: str, value, way_out: str) -> UsageError:
    return UsageError(f'{_flag(name)} {shorten(value)}: {way_out}.')
