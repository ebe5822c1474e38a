"""Command-line options of the agents, declared once with their help; `option_checks` refuses what cannot work."""

from __future__ import annotations

import json
from pathlib import Path

from spt_parlai.dialogue.instruction import INSTRUCTION
from spt_parlai.dialogue.mutator import MUTATOR
from spt_parlai.errors import UsageError
from spt_parlai.model.loading import DTYPES

CONTRASTIVE_TEXTS = ('context', 'persona')
CONTRASTIVE_PAIRS = ('all', 'across')
CHAT_TEMPLATES = ('auto', 'false')
RETRIEVE_PER = ('turn', 'dialogue')
QUANTIZATIONS = ('none', '8bit', '4bit')
_GAINS = ('selected_gain', 'best_gain')  # in nats
NO_GENERATION_NEEDED = (
    'ppl',
    'ppl_word',
    'ppl_byte',
    'loss',
    'token_acc',
    'token_em',
    'nll',
    'selection',
    'contrastive',
    'fusion',
    'spt_loss',
    'prompt_usage_entropy',
    *_GAINS,
)


def add_llm_args(parser) -> None:
    group = parser.add_argument_group('Frozen LLM')
    group.add_argument(
        '--llm',
        type=str,
        default='facebook/opt-125m',
        help='Hugging Face id or local folder of a decoder-only LM, or "demo" (carried by the package)',
    )
    group.add_argument('--llm-revision', type='nonestr', default=None, help='revision of a Hugging Face id')
    group.add_argument(
        '--llm-dtype',
        type=str,
        default='auto',
        choices=['auto', *DTYPES],
        help='auto: float32 on a CPU, the stored dtype on a GPU (half precision with --fp16 true)',
    )
    group.add_argument(
        '--llm-device-map',
        type=str,
        default='none',
        help="none, or accelerate's placement: auto, balanced, or a JSON file",
    )
    group.add_argument(
        '--llm-quantization',
        type=str,
        default='none',
        choices=list(QUANTIZATIONS),
        help='load the LLM in 8 or 4 bits (needs bitsandbytes)',
    )
    group.add_argument(
        '--dialogue-packing',
        type='bool',
        default=True,
        help='train on whole dialogues, all turns in one pass; a batch is then --batchsize dialogues. '
        'false: every turn is an example of its own',
    )
    group.add_argument(
        '--checkpoint-activations',
        type='bool',
        default=False,
        help="recompute the LLM's layers in the backward pass: same gradients, far less memory, a third slower",
    )
    group.add_argument(
        '--llm-compile',
        type='bool',
        default=False,
        help="compile the LLM's layers for training with torch.compile: minutes at the start, and slower on a CPU",
    )
    group.add_argument(
        '--tokens-at-once',
        type=int,
        default=0,
        help='in training, run so many tokens through the LLM at a time, forward and backward, all prompts counted, of '
        'rows of like length (0: 1024 on a CPU, 8192 on a GPU): same gradients, less memory and padding',
    )
    group.add_argument('--max-new-tokens', type=int, default=32, help='longest generated reply, in tokens')
    group.add_argument(
        '--max-skipped-steps',
        type=int,
        default=20,
        help='stop after this many steps in a row whose loss or gradient is not finite (0: never)',
    )


def add_prompt_args(parser) -> None:
    group = parser.add_argument_group('Soft prompts')
    group.add_argument('--prompt-length', type=int, default=8, help='L, tokens per soft prompt')
    group.add_argument(
        '--prompt-init',
        type=str,
        default='normal',
        help="normal: N(0, 1); embedding-scale: at the scale of the LLM's word embeddings; vocab: random words; "
        '"text:A|B|…": the words of K texts; "file:PATH": such texts, one a line (.txt), or trained prompts',
    )


def add_lora_args(parser) -> None:
    group = parser.add_argument_group('LoRA')
    group.add_argument('--lora-rank', type=int, default=8, help='rank of the matrices beside each adapted layer')
    group.add_argument(
        '--match-spt',
        type='nonestr',
        default=None,
        help='K,L: the rank with which about as many values train as in SPT with K prompts of L tokens',
    )
    group.add_argument(
        '--lora-alpha',
        type=float,
        default=None,
        help='what a layer gains is scaled by alpha / rank (default: twice the rank)',
    )
    group.add_argument(
        '--lora-dropout',
        type=float,
        default=0.0,
        help="dropout before the matrices, in training; the LLM's own dropout is off always",
    )
    group.add_argument(
        '--lora-targets',
        type='nonestr',
        default=None,
        help="names of the layers to adapt, joined by commas, or all-linear (default: peft's choice for the LLM, "
        "mostly the attention's q_proj,v_proj)",
    )


def add_text_prompt_args(parser) -> None:
    group = parser.add_argument_group('Textual prompting')
    group.add_argument(
        '--prompt-text', type=str, default='', help='words before every context, as given (default: none)'
    )


def add_spt_args(parser) -> None:
    group = parser.add_argument_group('Selective Prompt Tuning')
    group.add_argument('--num-prompts', type=int, default=4, help='K, soft prompts in the group')
    group.add_argument(
        '--activation-beta',
        type=float,
        default=10.0,
        help='beta of the softplus that turns cosines into scores; 10 keeps them in [0, 1]',
    )
    group.add_argument('--lambda-selection', type=float, default=1.0, help='weight of the selection KL (0: off)')
    group.add_argument(
        '--lambda-contrastive', type=float, default=1.0, help='weight of the context-prompt contrast (0: off)'
    )
    group.add_argument('--lambda-fusion', type=float, default=1.0, help='weight of the fusion NLL (0: off)')
    group.add_argument('--tau-gold', type=float, default=1.0, help='temperature of the gold distribution')
    group.add_argument(
        '--tau-score', type=float, default=1.0, help='temperature of the retriever scores in the selection KL'
    )
    group.add_argument(
        '--similarity-threshold',
        type=float,
        default=20.0,
        help='contexts with a sentence BLEU (0-100) above this are pulled together, others apart',
    )
    group.add_argument(
        '--contrastive-text',
        type=str,
        default='context',
        choices=list(CONTRASTIVE_TEXTS),
        help='which text of a context the contrast compares',
    )
    group.add_argument(
        '--contrastive-pairs',
        type=str,
        default='all',
        choices=list(CONTRASTIVE_PAIRS),
        help='all: every two examples of a batch; across: only those of different dialogues',
    )
    group.add_argument(
        '--gold-noise',
        type=float,
        default=0.0,
        help='strength of normal noise on the gold distribution in training (stability experiment A.8)',
    )
    group.add_argument(
        '--score-noise',
        type=float,
        default=0.0,
        help='strength of normal noise on the scores before a prompt is selected, in evaluation (A.7)',
    )
    group.add_argument(
        '--force-prompt', type=int, default=-1, help='always select this prompt, 0 to K-1 (-1: the retriever selects)'
    )
    group.add_argument(
        '--prompt-chunk',
        type=int,
        default=0,
        help='run the LLM for this many prompts at a time (0: all): same gradients, less memory',
    )


def add_in_context_args(parser) -> None:
    group = parser.add_argument_group('In-context learning')
    group.add_argument(
        '--instruction', type=str, default=INSTRUCTION, help='what the LLM is told before the persona and the dialogue'
    )
    group.add_argument(
        '--shots',
        type=int,
        default=0,
        help='training dialogues shown as examples, drawn by --seed, the same for every query',
    )
    add_training_task_arg(group)


def add_chat_template_arg(parser) -> None:
    group = parser.add_argument_group('In-context learning with a local LLM')
    group.add_argument(
        '--chat-template',
        type=str,
        default='auto',
        choices=list(CHAT_TEMPLATES),
        help="auto: the chat template of the LLM's tokenizer, where it has one; false: plain text",
    )


def add_api_args(parser) -> None:
    group = parser.add_argument_group('In-context learning with an OpenAI-compatible endpoint (InContextApiAgent)')
    if '--max-new-tokens' not in parser._option_string_actions:
        group.add_argument('--max-new-tokens', type=int, default=32, help='longest generated reply, in tokens')
    group.add_argument(
        '--api-base',
        type='nonestr',
        default=None,
        help='URL of the endpoint, such as https://api.openai.com/v1',
    )
    group.add_argument('--api-model', type='nonestr', default=None, help='name of its LLM')
    group.add_argument(
        '--api-key-env',
        type=str,
        default='OPENAI_API_KEY',
        help='environment variable with the key; where it is not set, none is sent',
    )
    group.add_argument(
        '--api-temperature', type=float, default=0.0, help='sampling temperature; 0: the likeliest tokens'
    )
    group.add_argument(
        '--api-parameters',
        type=str,
        default='{}',
        help='further entries of every request, as a JSON object; null takes one out: {"max_tokens": null}',
    )
    group.add_argument('--api-timeout', type=float, default=60.0, help='seconds to wait for an answer')
    group.add_argument(
        '--api-retries',
        type=int,
        default=6,
        help='how often a request is sent again to a server that is busy, silent or gone',
    )
    group.add_argument(
        '--api-concurrency', type=int, default=8, help='requests of a batch (see --batchsize) under way at a time'
    )


def add_training_task_arg(group) -> None:
    group.add_argument(
        '--training-task',
        type='nonestr',
        default=None,
        help='task whose train fold the dialogues before a context are of; default: the -t of the run that trains',
    )


def add_retrieval_args(parser) -> None:
    group = parser.add_argument_group('Retrieved dialogues')
    group.add_argument(
        '--retrieval-encoder',
        type=str,
        default='facebook/contriever',
        help="Hugging Face id or local folder of a text encoder (mean pooling), or llm: the frozen LLM's word embeddings",
    )
    group.add_argument('--retrieved', type=int, default=1, help='how many training dialogues stand before a context')
    group.add_argument(
        '--retrieved-length',
        type=int,
        default=-1,
        help="most tokens that these take of the context's room (-1: a third)",
    )
    group.add_argument(
        '--retrieve-per',
        type=str,
        default='turn',
        choices=list(RETRIEVE_PER),
        help='turn: anew for every context; dialogue: once, by what is known before the first reply',
    )
    group.add_argument(
        '--retrieval-cache',
        type='nonestr',
        default=None,
        help='folder that keeps the index (default: spt_retrieval in the datapath)',
    )
    add_training_task_arg(group)


def add_chat_args(parser) -> None:
    group = parser.add_argument_group('SPT chat')
    group.add_argument(
        '--persona',
        type=str,
        default=None,
        help='sentences of the persona in interactive use, joined by "|"; empty: none; '
        'default: one drawn from the sample task',
    )
    group.add_argument('--persona-file', type='nonestr', default=None, help='the same from a file, one sentence a line')
    if '--seed' not in parser._option_string_actions:  # train_model and self_chat have their own
        group.add_argument('--seed', type=int, default=None, help='makes sampling (and a drawn persona) repeatable')


def add_metric_args(parser) -> None:
    """For whoever evaluates: our agents and, as `metrics.teachers` reports for any agent, every task."""
    if '--paper-metrics' in parser._option_string_actions:
        return
    group = parser.add_argument_group("The paper's metrics")
    group.add_argument(
        '--paper-metrics',
        type='bool',
        default=True,
        help="in evaluation with replies, report the paper's metrics beside ParlAI's own",
    )
    group.add_argument(
        '--trim-responses',
        type='bool',
        default=False,
        help='for these metrics alone, cut each reply at the first "R:", "Q:", "Summary:", line break or ":"',
    )
    group.add_argument(
        '--bertscore',
        type=str,
        default='none',
        help='also report BERTScore with this encoder, a Hugging Face id or local folder (needs bert-score); '
        "the paper's is microsoft/deberta-xlarge-mnli",
    )
    group.add_argument(
        '--bertscore-layer',
        type=int,
        default=None,
        help="its layer, from 1; default: the one bert-score's authors found best for that model",
    )


def set_training_defaults(parser) -> None:
    """What makes the bare command right; every one of them can be given."""
    parser.set_defaults(
        mutators=MUTATOR,  # see `dialogue.whole_dialogue`: training folds alone, unless --dialogue-packing false
        optimizer='adam',
        learningrate=0.01,
        validation_metric='ppl',
        validation_metric_mode='min',
        skip_generation=None,  # decided by `skips_generation`
        save_every_n_secs=60.0,
        save_after_valid=True,  # a killed run continues
    )
    if '--num-epochs' in parser._option_string_actions:  # training alone: a chat has a batch of one
        parser.set_defaults(
            num_epochs=15.0,
            validation_every_n_epochs=1.0,  # table 6, OPT-125M; ParlAI's own default never ends
            batchsize=4,  # dialogues, of about six turns each in ConvAI2
        )


def set_llm_of(parser, model_file: str | None) -> None:
    """The LLM of a model file is the default of a command about it: some of ParlAI's scripts ask the parser, not the file."""
    try:
        stored = json.loads(Path(f'{model_file}.opt').read_text(encoding='utf-8'))
        parser.set_defaults(**{name: stored[name] for name in ('llm', 'llm_revision') if name in stored})
    except (OSError, ValueError, TypeError):
        return  # no such file yet, or a damaged one, which whoever loads it says


def skips_generation(opt) -> bool:
    """--skip-generation as given; else validation during training (`training_loop`, set by spt_parlai.training.resume) generates
    only if its metric needs replies, and everything else generates."""
    if opt.get('skip_generation') is not None:
        return opt['skip_generation']
    return opt.get('training_loop', False) and opt.get('validation_metric', 'ppl') in NO_GENERATION_NEEDED


_LOWER_IS_BETTER = (
    'ppl',
    'ppl_word',
    'ppl_byte',
    'loss',
    'nll',
    'selection',
    'contrastive',
    'fusion',
    'spt_loss',
    'mean_rank',
)
_HIGHER_IS_BETTER = ('accuracy', 'f1', 'token_acc', 'token_em', 'prompt_usage_entropy', *_GAINS)
_PERCENTAGES = (
    'unigram_f1',
    'sacrebleu',
    'rouge1',
    'rouge2',
    'rougeL',
    'bertscore_',
    'dist',
    'meteor',
    'persona_bleu',
)  # the paper's
_HIGHER_IS_BETTER_FAMILIES = ('hits@', 'bleu', 'rouge', *_PERCENTAGES[:-1])


def settle_validation(opt) -> None:
    """Which way `--validation-metric` improves, and from where on the task counts as solved, unless they are given.

    :raises UsageError: for a direction in which the metric gets worse.
    """
    given = opt.get('override') or {}
    metric = opt['validation_metric'].rsplit('/', 1)[-1]  # of one task among several: task/metric
    mode = 'min' if metric in _LOWER_IS_BETTER else 'max'
    known = metric in _LOWER_IS_BETTER + _HIGHER_IS_BETTER or metric.startswith(_HIGHER_IS_BETTER_FAMILIES)
    asked = given.get('validation_metric_mode')
    if known and asked not in (None, mode):
        better = 'lower' if mode == 'min' else 'higher'
        raise UsageError(f'--validation-metric-mode {asked}: {metric} is better the {better} it is; leave it out.')
    opt['validation_metric_mode'] = mode if known or asked is None else asked
    if metric.startswith((*_PERCENTAGES, *_GAINS)) and 'validation_cutoff' not in given:
        opt['validation_cutoff'] = 100.0  # ParlAI's 1.0 is perfect for metrics of 0 to 1
    if opt['validation_metric_mode'] == 'min' and metric != 'ppl' and 'validation_cutoff' not in given:
        opt[
            'validation_cutoff'
        ] = -1.0  # never: ParlAI's 1.0 is a perfect ppl, but a loss can be below it, or 0, early on
