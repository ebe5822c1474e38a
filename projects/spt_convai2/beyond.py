"""Tables that the paper does not have: prompts that specialise, candidates, and data of several kinds.

Every row trains as many steps. A row "from PT" trains the first half as prompt tuning and the second half as SPT.
"""

from __future__ import annotations

from grid import K, Method, Options, Row, TableOfRows, spt, tuned_weights
from paper_figures import FURTHER
from sizes import Size

L = 8
RATES = {'learningrate': 0.1, 'lr_scheduler': 'linear', 'prompt_init': 'embedding-scale'}  # measured: agents/README.md
FROM_PT = {'learningrate': 0.03, 'lr_scheduler': 'linear', 'prompt_init_noise': 0.1}
RETRIEVER = {'retriever_learningrate': 0.001}
ALL = {**RETRIEVER, 'contrastive_pairs': 'across', 'tau_gold': 0.1, 'tau_score': 0.1}
GATED = {**RETRIEVER, 'prompt_assignment': 'gated', 'activation_beta': 1, 'tau_score': 0.05, 'lambda_contrastive': 0}
MIXTURE = {**GATED, 'prompt_assignment': 'mixture'}
ASSIGNMENTS = {name: {**GATED, 'prompt_assignment': name} for name in ('gated', 'mixture', 'wta', 'annealed', 'equal')}
SHARED = {'prompt_shared_rank': 8}  # what is common to all data trains whichever prompt was assigned
DRAWS = {'inference': 'topk', 'topk': 50, 'temperature': 0.6, 'rank_by': 'mbr'}
CANDIDATES = 16
PT = f'PT, {L} tokens'
VARIANTS: dict[str, Options] = {
    'contrast by embeddings': {'similarity_metric': 'embedding'},
    'adaptive prompts': {'adaptive_prompts': 0.1, 'adaptive_every': 10},
    'a shared part': SHARED,
}
REAL_COLUMNS = ('unigram_f1', 'sacrebleu', 'rougeL', 'dist1', 'dist2', 'ppl', 'selected_gain', 'best_gain')
MIXED_COLUMNS = ('ppl', *REAL_COLUMNS[:5], 'selected_gain', 'best_gain')


def _steps(size: Size, share: float = 1.0) -> Options:
    return {'max_train_steps': max(1, round(int(size.train['max_train_steps']) * share))}


def _pt(size: Size, task: str, share: float = 1.0, evaluate: Options | None = None, **options) -> Method:
    return Method(
        'PromptTuningAgent', {'prompt_length': L, **RATES, **_steps(size, share), **options}, evaluate or {}, task
    )


def _from_scratch(size: Size, task: str, options: Options, evaluate: Options | None = None) -> Method:
    train = {'num_prompts': K, 'prompt_length': L, **RATES, **_steps(size), **options}
    return Method('SptAgent', train, evaluate or {}, task)


def _from_pt(
    size: Size, task: str, options: Options, evaluate: Options | None = None, agent: str = 'SptAgent'
) -> Method:
    train = {'num_prompts': K, 'prompt_length': L, **FROM_PT, **_steps(size, 0.5), **options}
    return Method(agent, train, evaluate or {}, task, begin=_pt(size, task, 0.5))


def _drawn(prompts: int = 1, **others) -> Options:
    """16 candidates in all, ranked by consensus."""
    return {**DRAWS, 'candidates_per_prompt': CANDIDATES // prompts, **others}


def _rows(llm: str, methods: dict[str, Method], baselines: dict[str, str]) -> list[Row]:
    return [Row(label, llm, method, baselines.get(label)) for label, method in methods.items()]


def mixed(size: Size, llms: tuple[str, ...]) -> TableOfRows:
    """The prompts of one run for five kinds of talk, and one prompt for each kind that is told which it is."""
    llm, task, few = llms[-1], 'mixed', {'num_examples': size.each}
    methods = {
        PT: _pt(size, task, evaluate=few),
        f'PT, {K * L} tokens': _pt(size, task, evaluate=few, prompt_length=K * L),
        'SPT, all, from PT': _from_pt(size, task, ALL, few),
        'SPT, gated, from PT': _from_pt(size, task, GATED, few),
        'SPT, mixture, from PT': _from_pt(size, task, MIXTURE, few),
        'SPT, gated, from PT, a shared part': _from_pt(size, task, {**GATED, **SHARED}, few),
        'SPT, gated, a shared part': _from_scratch(size, task, {**GATED, **SHARED}, few),
    }
    drawn = {
        f'{PT}, {CANDIDATES} candidates': _pt(size, task, evaluate=_drawn(**few)),
        f'SPT, gated, from PT, {CANDIDATES} candidates': _from_pt(size, task, GATED, _drawn(K, **few)),
        f'SPT, mixture, from PT, {CANDIDATES} candidates': _from_pt(size, task, MIXTURE, _drawn(K, **few)),
    }
    corpora = size.tasks[task].split(',')
    told = [
        Row('one prompt a corpus, told which', llm, _pt(size, one, 1 / len(corpora), evaluate=few), PT)
        for one in corpora
    ]
    rows = [
        *_rows(llm, methods, dict.fromkeys(list(methods)[1:], PT)),
        *told,
        *_rows(llm, drawn, dict.fromkeys(list(drawn)[1:], next(iter(drawn)))),
    ]
    return TableOfRows('mixed', 'Five corpora at once', MIXED_COLUMNS, rows, FURTHER)


def mixed_more(size: Size, llms: tuple[str, ...]) -> TableOfRows:
    """The other assignments, from scratch, and other numbers of prompts."""
    llm, task, few = llms[-1], 'mixed', {'num_examples': size.each}
    methods = {
        PT: _pt(size, task, evaluate=few),
        'SPT, all': _from_scratch(size, task, ALL, few),
        **{f'SPT, {name}': _from_scratch(size, task, options, few) for name, options in ASSIGNMENTS.items()},
        'SPT, gated, from PT, published retriever': _from_pt(
            size, task, {**GATED, 'activation_beta': 10, 'tau_score': 0.1, 'lambda_contrastive': 1}, few
        ),
        **{
            f'SPT, gated, from PT, K = {count}': _from_pt(size, task, {**GATED, 'num_prompts': count}, few)
            for count in size.prompt_counts
            if count not in (1, K)
        },
    }
    rows = _rows(llm, methods, dict.fromkeys(list(methods)[1:], PT))
    return TableOfRows('mixed_more', 'Five corpora at once, from scratch', MIXED_COLUMNS, rows)


def real(size: Size, llms: tuple[str, ...]) -> TableOfRows:
    """ConvAI2 alone: what a user should choose."""
    llm, task = llms[-1], 'persona'
    methods = {
        PT: _pt(size, task),
        f'PT, {K * L} tokens': _pt(size, task, prompt_length=K * L),
        'SPT, as published': spt(size, llm, 'published', prompt_length=L, **_steps(size)),
        'SPT, all, from PT': _from_pt(size, task, ALL),
        'SPT, gated, from PT': _from_pt(size, task, GATED),
        'SPT with LoRA, from PT': _from_pt(size, task, ALL, agent='SptLoraAgent'),
        'LoRA': tuned_weights(size, llm, 'LoraAgent', lr_scheduler='linear', match_spt=f'{K},{L}', **_steps(size)),
        'the LLM alone': Method('TextPromptAgent', None, seeded=False),
        'the LLM alone, one example': Method('InContextAgent', None, {'shots': 1}),
        f'{PT}, {CANDIDATES} candidates': _pt(size, task, evaluate=_drawn()),
        f'SPT, all, from PT, {CANDIDATES} candidates': _from_pt(size, task, ALL, _drawn(K)),
        f'SPT, gated, from PT, {CANDIDATES} candidates': _from_pt(size, task, GATED, _drawn(K)),
    }
    return TableOfRows(
        'real', 'ConvAI2', REAL_COLUMNS, _rows(llm, methods, dict.fromkeys(list(methods)[1:], PT)), FURTHER
    )


def real_more(size: Size, llms: tuple[str, ...]) -> TableOfRows:
    """SPT from scratch, and with other numbers of prompts."""
    llm, task, few = llms[-1], 'persona', {'num_examples': size.secondary}
    methods = {
        PT: _pt(size, task, evaluate=few),
        'SPT, all': _from_scratch(size, task, ALL, few),
        'SPT, mixture, from PT': _from_pt(size, task, MIXTURE, few),
        **{
            f'SPT, all, K = {count}': _from_scratch(size, task, {**ALL, 'num_prompts': count}, few)
            for count in size.prompt_counts
            if count not in (1, K)
        },
    }
    rows = _rows(llm, methods, dict.fromkeys(list(methods)[1:], PT))
    return TableOfRows('real_more', 'ConvAI2, from scratch', REAL_COLUMNS, rows)


def variants(size: Size, llms: tuple[str, ...]) -> TableOfRows:
    """What the paper leaves open, each beside SPT itself."""
    llm, task, few, base = llms[-1], 'persona', {'num_examples': size.secondary}, 'SPT, all, from PT'
    methods = {
        PT: _pt(size, task, evaluate=few),
        base: _from_pt(size, task, ALL, few),
        **{f'{base}, {name}': _from_pt(size, task, {**ALL, **more}, few) for name, more in VARIANTS.items()},
        'SPT with LoRA, from PT': _from_pt(size, task, ALL, few, 'SptLoraAgent'),
    }
    rows = _rows(llm, methods, {base: PT, **dict.fromkeys(list(methods)[2:], base)})
    return TableOfRows('variants', 'ConvAI2, variants of SPT', REAL_COLUMNS, rows)


TABLES = {'mixed': mixed, 'real': real, 'variants': variants, 'mixed_more': mixed_more, 'real_more': real_more}
