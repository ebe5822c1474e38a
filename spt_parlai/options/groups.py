"""The options of our agents, by group, and the defaults that our agents have for ParlAI's own options."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from spt_parlai.dialogue.instruction import INSTRUCTION
from spt_parlai.model.loading import DTYPES
from spt_parlai.model.soft_prompts import INITIALISATIONS, SOURCES
from spt_parlai.objective import SptObjective
from spt_parlai.options.declare import Needs, Opt, Option, OptionGroup, belongs, options_of, token_count

# ---- of every agent -------------------------------------------------------------------------------------------

MAX_NEW_TOKENS = Option('max_new_tokens', 32, 'longest generated reply, in tokens', int, at_least=1)

LLM = OptionGroup(
    'Frozen LLM',
    (
        Option(
            'llm',
            'facebook/opt-125m',
            'Hugging Face id or local folder of a decoder-only LM, or "demo" for the one inside this package',
        ),
        Option('llm_revision', None, 'revision of a Hugging Face id', 'nonestr'),
        Option(
            'llm_dtype',
            'auto',
            'auto: float32 on a CPU, the stored dtype on a GPU (half precision with --fp16 true)',
            choices=('auto', *DTYPES),
        ),
        Option('llm_device_map', 'none', "none, or accelerate's placement: auto, balanced, or a JSON file"),
        Option(
            'llm_quantization',
            'none',
            'load the LLM in 8 or 4 bits (needs bitsandbytes)',
            choices=('none', '8bit', '4bit'),
        ),
        Option(
            'dialogue_packing',
            True,
            'train on whole dialogues, all turns in one pass, so that --batchsize counts dialogues. '
            'false: every turn is an example of its own',
            'bool',
        ),
        Option(
            'checkpoint_activations',
            False,
            "recompute the LLM's layers in the backward pass: same gradients, far less memory, a third slower",
            'bool',
        ),
        Option(
            'llm_compile',
            False,
            "compile the LLM's layers for training with torch.compile: takes minutes at the start, slower on a CPU",
            'bool',
        ),
        Option(
            'tokens_at_once',
            0,
            'in training, how many tokens go through the LLM at a time, forward and backward, counted over all prompts '
            'and taken from rows of similar length (0: 1024 on a CPU, 8192 on a GPU): same gradients, less memory and '
            'padding',
            int,
            at_least=0,
        ),
        MAX_NEW_TOKENS,
        Option(
            'max_skipped_steps',
            20,
            'stop after this many steps in a row whose loss or gradient is not finite (0: never)',
            int,
            at_least=0,
        ),
    ),
)

CHAT = OptionGroup(
    'SPT chat',
    (
        Option(
            'persona',
            None,
            'sentences of the persona in interactive use, joined by "|"; empty: none; '
            'default: one drawn from the sample task',
        ),
        Option('persona_file', None, 'file with the persona, one sentence a line', 'nonestr'),
        Option('seed', None, 'makes sampling (and the drawing of a persona) repeatable', int),
    ),
)


def _scores_replies(opt: Opt) -> bool:
    return opt.get('paper_metrics', True) and not opt.get('interactive_mode') and not opt.get('skip_generation')


SCORED = belongs('an evaluation that scores replies (--paper-metrics true, --skip-generation false)', _scores_replies)

METRICS = OptionGroup(  # for every task, since the paper's metrics are reported of any agent
    "The paper's metrics",
    (
        Option(
            'paper_metrics', True, "in evaluation with replies, report the paper's metrics beside ParlAI's own", 'bool'
        ),
        Option(
            'trim_responses',
            False,
            'for these metrics only, cut each reply at the first "R:", "Q:", "Summary:", line break or ":"',
            'bool',
            needs=SCORED,
        ),
        Option(
            'bertscore',
            'none',
            'also report BERTScore with this encoder, a Hugging Face id or local folder (needs bert-score); '
            'the paper uses microsoft/deberta-xlarge-mnli',
            needs=SCORED,
        ),
        Option(
            'bertscore_layer',
            None,
            "layer of that encoder, from 1; default: the one bert-score's authors found best for it",
            int,
            needs=belongs('--bertscore', lambda opt: opt.get('bertscore', 'none') != 'none'),
        ),
    ),
)

# ---- of some agents -------------------------------------------------------------------------------------------


def _check_prompt_init(opt: Opt) -> str | None:
    init = opt['prompt_init']
    if init not in INITIALISATIONS and not (isinstance(init, str) and init.startswith(SOURCES)):
        return f'choose from {", ".join(INITIALISATIONS)}, "text:A|B|…" or "file:PATH"'
    trained = (opt.get('model_file'), f'{opt.get("model_file")}.checkpoint', opt.get('init_model'))
    if not init.startswith('file:') or any(path and os.path.isfile(path) for path in trained):
        return None  # prompts that are trained already need no beginning
    if os.path.exists(os.path.expanduser(init.removeprefix('file:'))):
        return None
    return 'no such file; give a .txt with a text a line, or a file or folder with trained prompts'


SOFT_PROMPTS = OptionGroup(
    'Soft prompts',
    (
        Option('prompt_length', 8, 'L, tokens per soft prompt', int, at_least=1),
        Option(
            'prompt_init',
            'normal',
            "normal: N(0, 1); embedding-scale: at the scale of the LLM's word embeddings; vocab: random words; "
            '"text:A|B|…": the words of K texts; "file:PATH": such texts, one a line (.txt), or trained prompts',
            check=_check_prompt_init,
        ),
    ),
)


def _check_force_prompt(opt: Opt) -> str | None:
    force, K = opt['force_prompt'], opt.get('num_prompts', 4)
    if isinstance(force, int) and not isinstance(force, bool) and -1 <= force < K:
        return None
    return f'give a prompt from 0 to {K - 1} (--num-prompts {K}), or -1 to let the retriever select'


SPT = OptionGroup(
    'Selective Prompt Tuning',
    (
        Option('num_prompts', 4, 'K, number of soft prompts', int, at_least=1),
        Option(
            'activation_beta',
            10.0,
            'beta of the softplus that turns cosines into scores; 10 keeps them in [0, 1]',
            float,
            above=0,
        ),
        *options_of(SptObjective),
        Option(
            'similarity_threshold',
            20.0,
            'contexts with a sentence BLEU (0-100) above this are pulled together, all others apart',
            float,
            at_least=0,
            at_most=100,
            note='the range of sentence BLEU',
        ),
        Option(
            'contrastive_text',
            'context',
            'which text of an example the contrast compares',
            choices=('context', 'persona'),
        ),
        Option(
            'contrastive_pairs',
            'all',
            'all: every two examples of a batch; across: only those of different dialogues',
            choices=('all', 'across'),
        ),
        Option(
            'score_noise',
            0.0,
            'strength of the normal noise on the scores before a prompt is selected, in evaluation (A.7)',
            float,
            at_least=0,
            note='0 adds none',
        ),
        Option(
            'force_prompt',
            -1,
            'always select this prompt, 0 to K-1 (-1: the retriever selects)',
            int,
            check=_check_force_prompt,
        ),
        Option(
            'prompt_chunk',
            0,
            'run the LLM for this many prompts at a time (0: all): same gradients, less memory',
            int,
            at_least=0,
        ),
    ),
)


def _check_match_spt(opt: Opt) -> str | None:
    matches = re.fullmatch(r'[1-9]\d*,[1-9]\d*', opt['match_spt'])
    return None if matches else 'give K,L, the number of prompts and their tokens, such as 4,8'


LORA = OptionGroup(
    'LoRA',
    (
        Option('lora_rank', 8, 'rank of the matrices beside each adapted layer', int, at_least=1),
        Option(
            'match_spt',
            None,
            'K,L: use the rank that trains about as many values as SPT with K prompts of L tokens',
            'nonestr',
            check=_check_match_spt,
        ),
        Option(
            'lora_alpha',
            None,
            'the output of the matrices is scaled by alpha / rank (default: twice the rank)',
            float,
            above=0,
        ),
        Option(
            'lora_dropout',
            0.0,
            "dropout before the matrices, in training; the LLM's own dropout is always off",
            float,
            at_least=0,
            below=1,
        ),
        Option(
            'lora_targets',
            None,
            "names of the layers to adapt, joined by commas, or all-linear (default: peft's choice for the LLM, "
            "mostly the attention's q_proj,v_proj)",
            'nonestr',
        ),
    ),
)

TEXT_PROMPT = OptionGroup(
    'Textual prompting', (Option('prompt_text', '', 'words before every context, as given (default: none)'),)
)

TRAINING_TASK = Option(
    'training_task',
    None,
    'task whose training dialogues are shown before a context; default: the -t of the run that trains',
    'nonestr',
)

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
    ),
)

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

_ENDPOINT = Needs(
    lambda opt: str(opt.get('model')).endswith(':InContextApiAgent'),
    'use -m spt_parlai.agents:InContextApiAgent or leave it out',
)

API = OptionGroup(
    'In-context learning with an OpenAI-compatible endpoint (InContextApiAgent)',
    (
        MAX_NEW_TOKENS,
        Option('api_base', None, 'URL of the endpoint, such as https://api.openai.com/v1', 'nonestr', needs=_ENDPOINT),
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


RETRIEVAL = OptionGroup(
    'Retrieved dialogues',
    (
        Option(
            'retrieval_encoder',
            'facebook/contriever',
            'Hugging Face id or local folder of a text encoder (mean pooling), or llm: the word embeddings of the '
            'frozen LLM',
        ),
        Option('retrieved', 1, 'how many training dialogues stand before a context', int, at_least=1),
        Option(
            'retrieved_length',
            -1,
            "the most tokens that retrieved dialogues take of the context's room (-1: a third)",
            int,
            check=token_count('retrieved_length', 'a third of the context'),
        ),
        Option(
            'retrieve_per',
            'turn',
            'turn: anew for every context; dialogue: once, from what is known before the first reply',
            choices=('turn', 'dialogue'),
        ),
        Option(
            'retrieval_cache', None, 'folder that keeps the index (default: spt_retrieval in the datapath)', 'nonestr'
        ),
        TRAINING_TASK,
    ),
)

GROUPS = (LLM, CHAT, METRICS, SOFT_PROMPTS, SPT, LORA, TEXT_PROMPT, IN_CONTEXT, CHAT_TEMPLATE, API, RETRIEVAL)

# ---- our defaults for ParlAI's options ------------------------------------------------------------------------


def set_training_defaults(parser) -> None:
    """Make a bare `parlai train_model -m … -t …` train well; each of these can still be given."""
    parser.set_defaults(
        optimizer='adam',
        learningrate=0.01,
        validation_metric='ppl',
        validation_metric_mode='min',
        skip_generation=None,  # neither true nor false: validation writes replies only if its metric needs them
        save_every_n_secs=60.0,
        save_after_valid=True,  # so that a run that was killed can continue
    )
    if '--num-epochs' in parser._option_string_actions:  # training only: a chat has a batch of one
        parser.set_defaults(
            num_epochs=15.0,
            validation_every_n_epochs=1.0,  # table 6, OPT-125M; ParlAI's own default never ends
            batchsize=4,  # dialogues, of about six turns each in ConvAI2
        )


def set_llm_of(parser, model_file: str | None) -> None:
    """Make the LLM of a model file the default, since some of ParlAI's scripts ask the parser and not the file."""
    try:
        stored = json.loads(Path(f'{model_file}.opt').read_text(encoding='utf-8'))
        parser.set_defaults(**{name: stored[name] for name in ('llm', 'llm_revision') if name in stored})
    except (OSError, ValueError, TypeError):
        return  # there is no such file yet, or it is damaged, which whoever loads it reports
