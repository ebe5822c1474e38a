"""Model cards: the README.md beside a model that is shared, with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spt_parlai import hub
from spt_parlai.errors import UsageError

CARD = 'README.md'
_TRAINING = (  # options that say how a model was trained, in this order
    *('task', 'num_prompts', 'prompt_length', 'batchsize', 'update_freq', 'optimizer', 'learningrate'),
    *('retriever_learningrate', 'lr_scheduler', 'max_train_steps', 'num_epochs', 'lambda_contrastive'),
    *(
        'lambda_selection',
        'lambda_fusion',
        'tau_gold',
        'tau_score',
        'contrastive_pairs',
        'prompt_init',
        'llm_dtype',
        'seed',
    ),
)
_METRICS = {
    'ppl': 'perplexity of a token',
    'ppl_word': 'perplexity of a word',
    'unigram_f1': 'unigram F1, %',
    'sacrebleu': 'BLEU, %',
    'rouge1': 'ROUGE-1, %',
    'rouge2': 'ROUGE-2, %',
    'rougeL': 'ROUGE-L, %',
    'dist1': 'DIST-1, %',
    'dist2': 'DIST-2, %',
    'prompt_usage_entropy': 'entropy of the use of the prompts, 0 to 1',
    'exs': 'replies evaluated',
}


def read_report(path: Path) -> dict[str, float]:
    """The numbers of a file that `eval_model --report-filename` wrote.

    :raises UsageError: if it is none.
    """
    try:
        report = json.loads(path.read_text(encoding='utf-8'))['report']
        return {name: float(value) for name, value in report.items() if isinstance(value, (int, float))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f'--report {path} is no report; give the file of eval_model --report-filename.') from error


def model_card(name: str, spt: Mapping[str, Any], options: Mapping[str, Any], report: Mapping[str, float]) -> str:
    """The card of a model file.

    :param name: what the model is loaded by.
    :param spt: the description in its checkpoint.
    :param options: those of its run.
    :param report: of its evaluation; {} if there is none.
    """
    lines = [
        f'# {name.removeprefix("hf:")}',
        '',
        f'{_prompts(spt)} around the frozen LLM `{hub.hub_id(spt["llm"])}`, which is not included. {_trained(spt)}.',
        '',
        '## Use',
        '',
        f'    parlai interactive -mf {name} --persona "i like cats.|i am a nurse."',
        f'    parlai eval_model -mf {name} -t {options.get("task")}',
        '',
        'or in Python:',
        '',
        '    import spt_parlai',
        f'    model = spt_parlai.load({name!r})',
        "    print(model.chat('hello !', persona=['i like cats.']).text)",
        '',
        *_table('Training', 'option', {n: options[n] for n in _TRAINING if options.get(n) not in (None, '')}),
    ]
    if shown := {meaning: f'{report[n]:.4g}' for n, meaning in _METRICS.items() if n in report}:
        lines += ['', *_table('Results', 'metric', shown)]
    return _front_matter(spt, 'spt_parlai', report) + '\n'.join(lines) + '\n'


def adapter_card(spt: Mapping[str, Any], prompt: int) -> str:
    """The card of a PEFT adapter that is one soft prompt."""
    llm = hub.hub_id(spt['llm'])
    lines = (
        f'# Soft prompt {prompt} around {llm}',
        '',
        f'One of {spt["num_prompts"]} soft prompts of {spt["prompt_length"]} tokens each, as a prompt-tuning adapter. '
        f'The retriever that selects one of them has no counterpart in PEFT. {_trained(spt)}.',
        '',
        '    from peft import PeftModel',
        '    from transformers import AutoModelForCausalLM',
        f'    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({llm!r}), FOLDER)',
        '',
        'The context is `given persona: {p1} {p2} …; context: Q: {partner} R: {self} … Q: {partner} R:`.',
    )
    return _front_matter(spt, 'peft', {}) + '\n'.join(lines) + '\n'


def _prompts(spt: Mapping[str, Any]) -> str:
    K, L = spt.get('num_prompts', 0), spt.get('prompt_length', 0)
    if not L:
        return 'Weights'
    return f'{K} soft prompts of {L} tokens and their retriever' if K > 1 else f'One soft prompt of {L} tokens'


def _trained(spt: Mapping[str, Any]) -> str:
    paper = 'Selective Prompt Tuning ([arXiv 2406.18187](https://arxiv.org/abs/2406.18187))'
    return f'Trained with `{spt.get("agent") or "SptAgent"}` of spt_parlai, {paper} in ParlAI'


def _table(title: str, first: str, rows: Mapping[str, Any]) -> list[str]:
    return [f'## {title}', '', f'| {first} | value |', '| --- | --- |', *(f'| {k} | {v} |' for k, v in rows.items())]


def _front_matter(spt: Mapping[str, Any], library: str, report: Mapping[str, float]) -> str:
    """The YAML that the hub reads; the LLM only if it is one of the hub's."""
    from huggingface_hub import ModelCardData

    llm = hub.hub_id(spt['llm'])
    data = ModelCardData(
        library_name=library,
        base_model=None if Path(llm).is_absolute() else llm,
        pipeline_tag='text-generation',
        tags=['spt_parlai', 'dialogue', 'prompt-tuning'],
        language='en',
    )
    return f'---\n{data.to_yaml()}\n---\n\n'
