"""The options of our agents, by group, and the defaults that our agents have for ParlAI's own options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spt_parlai import trained_models
from spt_parlai.errors import flag
from spt_parlai.options.declare import Opt, Option, OptionGroup, belongs

# ---- of every agent -------------------------------------------------------------------------------------------

MAX_NEW_TOKENS = Option('max_new_tokens', 32, 'longest generated reply, in tokens', int, at_least=1)


def _check_sharding(opt: Opt) -> str | None:
    if opt['llm_sharding'] == 'none':
        return None
    for name, nothing in (('llm_device_map', 'none'), ('llm_quantization', 'none'), ('llm_compile', False)):
        if opt.get(name, nothing) != nothing:
            return f'it does not work with {flag(name)} {opt[name]}; leave one of them out (--llm-sharding none)'
    return None


LLM = OptionGroup(
    'LLM',
    (
        Option(
            'llm',
            'facebook/opt-125m',
            'Hugging Face id, local folder or GGUF file of a decoder-only LM, or a name: "smollm2" and "gemma3-270m", '
            'which can be installed, or "demo" for the small one inside this package',
        ),
        Option('llm_revision', None, 'revision of a Hugging Face id', 'nonestr'),
        Option(
            'llm_dtype',
            'auto',
            'auto: float32 on a CPU, the stored dtype on a GPU (half precision with --fp16 true)',
            choices=('auto', 'float32', 'bfloat16', 'float16'),
        ),
        Option('llm_device_map', 'none', "none, or accelerate's placement: auto, balanced, or a JSON file"),
        Option(
            'llm_sharding',
            'none',
            'full: each of several processes holds only a share of the LLM and gathers a layer while it runs; hybrid: '
            'shares within each machine',
            choices=('none', 'full', 'hybrid'),
            check=_check_sharding,
            needs=belongs(
                'several processes (parlai multiprocessing_train, multiprocessing_eval, torchrun or SLURM)',
                lambda opt: (opt.get('distributed_world_size') or 1) > 1,
            ),
        ),
        Option(
            'llm_quantization',
            'none',
            'load the LLM in 8 or 4 bits (needs bitsandbytes)',
            choices=('none', '8bit', '4bit'),
        ),
        Option(
            'dialogue_packing',
            True,
            'train on whole dialogues, all turns in one pass, so that --batchsize counts dialogues, and evaluate their '
            'turns in one pass. false: every turn is an example of its own',
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
    'Chat',
    (
        Option(
            'persona',
            None,
            'sentences of the persona in interactive use, joined by "|"; empty: none; '
            'default: one drawn from the sample task',
        ),
        Option('persona_file', None, 'file with the persona, one sentence a line', 'nonestr'),
        Option(
            'stop_at_next_speaker',
            'auto',
            'true: a reply ends before Q:, R: or a line break, where the LLM goes on to the next turn; auto: in chats '
            'and display_model only',
            choices=('auto', 'true', 'false'),
        ),
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

# ---- of more than one agent -----------------------------------------------------------------------------------


TRAINING_TASK = Option(
    'training_task',
    None,
    'task whose training dialogues are shown before a context; default: the -t of the run that trains',
    'nonestr',
)

# ---- our defaults for ParlAI's options ------------------------------------------------------------------------


def set_training_defaults(parser, of_agent: dict[str, Any]) -> None:
    """Make a bare `parlai train_model -m … -t …` train well; each of these can still be given.

    A script's own defaults stay, such as the single epoch of `parlai profile_train`.

    :param of_agent: the agent's own defaults, by option.
    """
    defaults = dict(
        optimizer='adam',
        learningrate=0.01,
        validation_metric='ppl',
        validation_metric_mode='min',
        skip_generation=None,  # neither true nor false: validation writes replies only if its metric needs them
        save_every_n_secs=60.0,
        save_after_valid=True,  # so that a run that was killed can continue
    )
    if '--num-epochs' in parser._option_string_actions:  # training only: a chat has a batch of one
        defaults.update(
            num_epochs=15.0,
            validation_every_n_epochs=1.0,  # table 6, OPT-125M; ParlAI's own default never ends
            batchsize=4,  # dialogues, of about six turns each in ConvAI2
        )
    defaults.update(of_agent)
    set_by_script = {name: value for name, value in parser._defaults.items() if name in defaults}
    parser.set_defaults(**{**defaults, **set_by_script})


def set_llm_of(parser, model_file: str | None) -> None:
    """Make the LLM of a model file the default, because some of ParlAI's scripts read the parser and not the file."""
    try:
        stored = json.loads(Path(f'{trained_models.resolve(str(model_file))}.opt').read_text(encoding='utf-8'))
        parser.set_defaults(**{name: stored[name] for name in ('llm', 'llm_revision') if name in stored})
    except (OSError, ValueError, TypeError):
        return  # there is no such file yet, or it is damaged, which is reported when it is loaded
