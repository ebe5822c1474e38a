"""The sizes of the experiments: a few seconds to test them, about an hour on a CPU, or the paper's."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

PRESETS = Path(__file__).parents[2] / 'opt_presets'
PUBLISHED = {'prompt_init': 'normal'}
TUNED = {'prompt_init': 'embedding-scale'}
SETTINGS = {  # name → (options of every agent with soft prompts, further options of SPT)
    'published': (PUBLISHED, {}),
    'tuned': (TUNED, {'tau_gold': 0.1, 'tau_score': 0.1, 'contrastive_pairs': 'across'}),
}


@dataclass(frozen=True)
class Size:
    """The scale of all tables.

    train, evaluate: options of `parlai train_model` and `eval_model`; tasks: with and without persona; settings: those
    of table 1, the last of which the other tables use; prompt_counts: K of table 3; noises, gold_noises: α of tables 11
    and 12; rates: learning rates of the agents that train weights, of which those without a rate have no row;
    retrieval: options of RAG, whose defaults are the paper's; each: replies of each corpus if there are several;
    secondary: replies of secondary rows.
    """

    llms: tuple[str, ...]
    tasks: dict[str, str]
    train: dict[str, object]
    evaluate: dict[str, object]
    seeds: tuple[int, ...]
    settings: tuple[str, ...]
    prompt_counts: tuple[int, ...]
    noises: tuple[float, ...] = (0.01, 0.05, 0.1, 0.5, 1.0)
    gold_noises: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    rates: dict[str, float] = field(default_factory=dict)
    retrieval: dict[str, object] = field(default_factory=dict)
    each: int = 0
    secondary: int = 0


_ALWAYS = {'trim_responses': 'true'}  # the paper's authors cut every reply before they scored it
# `train_model` always evaluates at its end. Four examples of the sample task serve for that, because DailyDialog may
# not have a test fold.
_NO_VALIDATION = {
    'validation_every_n_epochs': -1,
    'evaltask': 'spt_parlai.tasks.sample',
    'validation_max_exs': 4,
    'short_final_eval': 'true',
}
# No other encoder is needed, and whole dialogues are still trained in one pass.
_OWN_EMBEDDINGS = {'retrieval_encoder': 'llm', 'retrieve_per': 'dialogue'}
_RATES = {'LoraAgent': 0.001, 'FullFineTuningAgent': 0.0001}  # the prompts' 0.01 is too high for weights
_CORPORA = (
    'convai2:self',
    'dailydialog',
    *(f'spt_parlai.tasks.dialogue_lines:{name}Teacher' for name in ('TopicalChat', 'Taskmaster4', 'WizardOfWikipedia')),
)
_MIXED = {
    'persona': 'convai2:self',
    'plain': 'dailydialog',
    'mixed': ','.join(_CORPORA),
    **{corpus: corpus for corpus in _CORPORA},
}
SIZES = {
    'smoke': Size(
        llms=('demo',),
        tasks={  # no download
            'persona': 'spt_parlai.tasks.sample',
            'plain': 'spt_parlai.tasks.sample',
            'mixed': 'spt_parlai.tasks.sample,spt_parlai.tasks.sample:SelfTeacher',
            'spt_parlai.tasks.sample': 'spt_parlai.tasks.sample',
            'spt_parlai.tasks.sample:SelfTeacher': 'spt_parlai.tasks.sample:SelfTeacher',
        },
        train={'max_train_steps': 4, 'batchsize': 2, 'log_every_n_steps': 2, 'max_new_tokens': 8, **_NO_VALIDATION},
        evaluate={'num_examples': 24, 'batchsize': 8, **_ALWAYS},
        seeds=(1,),
        settings=('published', 'tuned'),
        prompt_counts=(1, 2),
        noises=(1.0,),
        gold_noises=(1.0,),
        rates=_RATES,
        retrieval=_OWN_EMBEDDINGS,
        each=12,
        secondary=12,
    ),
    'small': Size(
        llms=('demo',),
        tasks=_MIXED,
        train={
            'max_train_steps': 120,
            'batchsize': 4,
            'log_every_n_steps': 10,
            'llm_dtype': 'bfloat16',
            **_NO_VALIDATION,
        },
        evaluate={'num_examples': 472, 'batchsize': 16, **_ALWAYS},
        seeds=(1, 2, 3),
        settings=('published', 'tuned'),
        prompt_counts=(1, 2, 4, 8),
        rates=_RATES,
        retrieval=_OWN_EMBEDDINGS,
        each=100,
        secondary=472,
    ),
    'real': Size(
        llms=('smollm2',),
        tasks=_MIXED,
        train={
            'max_train_steps': 120,
            'batchsize': 8,
            'log_every_n_steps': 20,
            'llm_dtype': 'bfloat16',
            **_NO_VALIDATION,
        },
        evaluate={'batchsize': 64, **_ALWAYS},
        seeds=(1, 2, 3),
        settings=('tuned',),
        prompt_counts=(2, 4, 8),
        rates=_RATES,
        retrieval=_OWN_EMBEDDINGS,
        each=300,
        secondary=1000,
    ),
    'paper': Size(
        llms=('facebook/opt-125m', 'facebook/opt-1.3b', 'facebook/opt-2.7b', 'meta-llama/Llama-2-7b-hf'),
        tasks={'persona': 'convai2:self', 'plain': 'dailydialog'},
        train={'batchsize': 4, 'log_every_n_steps': 100, 'fp16': 'true'},
        evaluate={'batchsize': 32, 'bertscore': 'microsoft/deberta-xlarge-mnli', **_ALWAYS},
        seeds=(1, 2, 3),
        settings=('published',),
        prompt_counts=tuple(range(1, 9)),
        rates={'LoraAgent': 0.001},  # all weights of a 7 B LLM with Adam in float32 do not fit on one GPU
    ),
}


def table_6(llm: str) -> dict[str, object]:
    """The paper's prompt length, learning rate and epochs for an LLM; OPT-125M's for an LLM that the paper lacks."""
    presets = [json.loads(path.read_text(encoding='utf-8')) for path in sorted(PRESETS.glob('*.opt'))]
    by_llm = {preset['llm']: preset for preset in presets if 'num_epochs' in preset}
    preset = by_llm.get(llm, by_llm['facebook/opt-125m'])
    return {name: preset[name] for name in ('prompt_length', 'learningrate', 'num_epochs')}
