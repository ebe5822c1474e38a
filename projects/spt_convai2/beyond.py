"""Tables that the paper does not have: prompts that specialise, candidates, and data of several kinds.

Every row trains as many steps. A row "from PT" trains the first half as prompt tuning and the second half as SPT.
"""

from __future__ import annotations

from grid import K, Method, Options, Row, TableOfRows, spt, tuned_weights
from paper_figures import FIRST
from sizes import Size

CORPORA = {  # the tasks of `mixed` → what its columns are called
    'convai2:self': 'ConvAI2',
    'dailydialog': 'DailyDialog',
    'spt_parlai.tasks.dialogue_lines:TopicalChatTeacher': 'Topical-Chat',
    'spt_parlai.tasks.dialogue_lines:Taskmaster4Teacher': 'Taskmaster-4',
    'spt_parlai.tasks.dialogue_lines:WizardOfWikipediaTeacher': 'Wizard of Wikipedia',
}
L = 8
RATES = {'learningrate': 0.1, 'lr_scheduler': 'linear', 'prompt_init': 'embedding-scale'}  # measured: agents/README.md
FROM_PT = {'learningrate': 0.03, 'lr_scheduler': 'linear', 'prompt_init_noise': 0.2}
ALL = {'contrastive_pairs': 'across', 'tau_gold': 0.1, 'tau_score': 0.1}
GATED = {'contrastive_pairs': 'across', 'tau_score': 0.1, 'prompt_assignment': 'gated'}
MIXTURE = {**GATED, 'prompt_assignment': 'mixture'}
ASSIGNMENTS = {'gated': GATED, 'mixture': MIXTURE}
BLIND = {  # they look at the reply alone
    name: {**GATED, 'prompt_assignment': name} for name in ('wta', 'annealed', 'equal')
}
DRAWS = {'inference': 'topk', 'topk': 50, 'temperature': 0.6, 'rank_by': 'mbr'}
CANDIDATES = 16


def _steps(size: Size, share: float = 1.0) -> Options:
    return {'max_train_steps': max(1, round(int(size.train['max_train_steps']) * share))}


def _pt(size: Size, task: str, share: float = 1.0, evaluate: Options | None = None, **options) -> Method:
    return Method(
        'PromptTuningAgent', {'prompt_length': L, **RATES, **_steps(size, share), **options}, evaluate or {}, task
    )


def _from_scratch(size: Size, task: str, options: Options, agent: str = 'SptAgent', **more) -> Method:
    return Method(
        agent, {'num_prompts': K, 'prompt_length': L, **RATES, **_steps(size), **options}, more.get('evaluate', {}), task
    )


def _from_pt(size: Size, task: str, options: Options, evaluate: Options | None = None, agent: str = 'SptAgent') -> Method:
    train = {'num_prompts': K, 'prompt_length': L, **FROM_PT, **_steps(size, 0.5), **options}
    return Method(agent, train, evaluate or {}, task, begin=_pt(size, task, 0.5))


def _drawn(size: Size, prompts: int = 1) -> Options:
    """16 candidates in all, ranked by consensus."""
    drawn = {**DRAWS, 'candidates_per_prompt': CANDIDATES // prompts}
    return {**drawn, **({'num_examples': size.drawn} if size.drawn else {})}


def mixed(size: Size, llms: tuple[str, ...]) -> TableOfRows:
    """Prompts of one run for five kinds of talk, and one prompt for each kind, told which it is."""
    llm, first = llms[-1], f'PT, {L} tokens'
    methods = {
        first: _pt(size, 'mixed'),
        'SPT, gated, from PT': _from_pt(size, 'mixed', GATED),
        'SPT, mixture, from PT': _from_pt(size, 'mixed', MIXTURE),
        'SPT, all, from PT': _from_pt(size, 'mixed', ALL),
        f'PT, {K * L} tokens': _pt(size, 'mixed', prompt_length=K * L),
        'SPT, all': _from_scratch(size, 'mixed', ALL),
        **{f'SPT, {name}': _from_scratch(size, 'mixed', options) for name, options in ASSIGNMENTS.items()},
        **{f'SPT, {name}': _from_scratch(size, 'mixed', options) for name, options in BLIND.items()},
        **{
            f'SPT, gated, from PT, K = {count}': _from_pt(size, 'mixed', {**GATED, 'num_prompts': count})
            for count in size.prompt_counts
            if count not in (1, K)
        },
    }
    rows = [Row(label, llm, method, None if label == first else first) for label, method in methods.items()]
    told = 'one prompt a corpus, which is told'
    rows += [Row(told, llm, _pt(size, task, 1 / len(CORPORA)), first) for task in CORPORA if task in size.tasks]
    drawn = f'{first}, {CANDIDATES} candidates'
    rows += [
        Row(drawn, llm, _pt(size, 'mixed', evaluate=_drawn(size)), None),
        *(
            Row(
                f'SPT, {name}, from PT, {CANDIDATES} candidates',
                llm,
                _from_pt(size, 'mixed', options, evaluate=_drawn(size, K)),
                drawn,
            )
            for name, options in ASSIGNMENTS.items()
        ),
    ]
    columns = ('ppl', *(f'{task}/ppl' for task in CORPORA), 'unigram_f1', 'sacrebleu', 'rougeL', 'dist1', 'dist2')
    return TableOfRows('mixed', 'Five corpora at once', (*columns, 'selected_gain', 'best_gain'), rows)


def real(size: Size, llms: tuple[str, ...]) -> TableOfRows:
    """ConvAI2 alone: SPT as published, prompts that specialise, candidates, and the other agents."""
    llm, first = llms[-1], f'PT, {L} tokens'
    drawn = f'{first}, {CANDIDATES} candidates'
    methods = {
        first: _pt(size, 'persona'),
        'SPT, as published': spt(size, llm, 'published', prompt_length=L, **_steps(size)),
        'SPT, all': _from_scratch(size, 'persona', ALL),
        'SPT, all, from PT': _from_pt(size, 'persona', ALL),
        'SPT, gated, from PT': _from_pt(size, 'persona', GATED),
        'SPT, mixture, from PT': _from_pt(size, 'persona', MIXTURE),
        drawn: _pt(size, 'persona', evaluate=_drawn(size)),
        f'SPT, all, from PT, {CANDIDATES} candidates': _from_pt(size, 'persona', ALL, _drawn(size, K)),
        f'SPT, gated, from PT, {CANDIDATES} candidates': _from_pt(size, 'persona', GATED, _drawn(size, K)),
        f'PT, {K * L} tokens': _pt(size, 'persona', prompt_length=K * L),
        'LoRA': tuned_weights(size, llm, 'LoraAgent', lr_scheduler='linear', match_spt=f'{K},{L}', **_steps(size)),
        'SPT with LoRA, from PT': _from_pt(size, 'persona', ALL, agent='SptLoraAgent'),
        'the LLM alone': Method('TextPromptAgent', None, seeded=False),
        'in-context, one example': Method('InContextAgent', None, {'shots': 1}),
        **{
            f'SPT, all, K = {count}': _from_scratch(size, 'persona', {**ALL, 'num_prompts': count})
            for count in size.prompt_counts
            if count not in (1, K)
        },
    }
    baselines = {label: drawn if 'candidates' in label and label != drawn else first for label in methods}
    rows = [
        Row(label, llm, method, None if label in (first,) else baselines[label]) for label, method in methods.items()
    ]
    columns = (*(c for c in FIRST if not c.startswith(('bert', 'rouge1', 'rouge2'))), 'ppl', 'selected_gain', 'best_gain')
    return TableOfRows('real', 'ConvAI2: what to choose', columns, rows)


TABLES = {'mixed': mixed, 'real': real}
