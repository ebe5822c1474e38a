"""Does a small trained reranker choose better replies than consensus? Draw candidates, then fit and compare.

python projects/spt_convai2/reranker.py draw --model spt:smollm2-pt --data DATAPATH --out candidates.npz
python projects/spt_convai2/reranker.py fit candidates.npz
"""

from __future__ import annotations

import copy
import json
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from significance import p_values
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spt_parlai.checkpoints.files import check_writable
from spt_parlai.dashboard.world_logs import Turn
from spt_parlai.errors import UsageError, naming
from spt_parlai.metrics.corpus import CorpusBleu, Distinct
from spt_parlai.metrics.ranking import persona_overlap
from spt_parlai.metrics.reply import rouge, trim, unigram_f1, words
from spt_parlai.model.decoding import DecodingState, Search
from spt_parlai.model.prompted_lm import PromptedLM
from spt_parlai.model.rows import join_chosen
from spt_parlai.model.target_log_probs import token_log_probs

app = typer.Typer(
    add_completion=False, help=__doc__.splitlines()[0], no_args_is_help=True, pretty_exceptions_enable=False
)
console = Console(soft_wrap=True)
TOP_K, TEMPERATURE = 50, 0.6
WIDTH = 64  # of the MLP
COMPARED = ('linear', 'MLP, without consensus', 'MLP', 'MLP + consensus')  # rows that are tested against consensus
LOGGED_AS = ('unigram_f1', 'sacrebleu', 'rougeL', 'dist1', 'dist2')  # the columns, as `p_values` names them


class Context(NamedTuple):
    """A context and its gold reply. ids: token ids; dialogue: its number, different in the two folds."""

    ids: list[int]
    said: str
    persona: str
    gold: str
    dialogue: int


class Replies(NamedTuple):
    """The candidates of B contexts, C each, the likeliest reply first.

    texts: [B][C]; log_probs, alone: float32 [B, C], log p(y | c) and log p(y) without a context, summed over tokens;
    tokens: int64 [B, C], with the end; hidden: float32 [B, C, D], the LLM's last hidden states, averaged over the
    reply's words; context: float32 [B, D], the same of the context.
    """

    texts: list[list[str]]
    log_probs: Tensor
    alone: Tensor
    tokens: Tensor
    hidden: Tensor
    context: Tensor


# ---- contexts --------------------------------------------------------------------------------------------------


def contexts_of(agent, task: str, fold: str, data: Path | None, at_least: int, seed: int) -> list[Context]:
    """Contexts of whole dialogues of a fold, drawn by seed, until there are enough or no more."""
    from parlai.core.params import ParlaiParser
    from parlai.core.teachers import create_task_agent_from_taskname

    from spt_parlai.dialogue.episode import Episode
    from spt_parlai.dialogue.messages import split_message, well_formed

    place = {} if data is None else {'datapath': str(data)}
    opt = ParlaiParser(True, True).parse_kwargs(task=task, datatype=fold, batchsize=1, **place)
    (teacher,) = create_task_agent_from_taskname(opt)
    episodes: list[list] = [[]]
    while len(episodes) <= teacher.num_episodes():
        episodes[-1].append(teacher.act())
        if episodes[-1][-1]['episode_done']:
            episodes.append([])
    random.Random(seed).shuffle(drawn := episodes[:-1])
    found: list[Context] = []
    for number, messages in enumerate(drawn):
        if len(found) >= at_least:
            break
        turns = [turn for turn in well_formed(Episode(messages).turns) if turn['labels']]
        for turn, example in zip(turns, agent.batcher.examples(turns, agent.label_truncate), strict=True):
            said = split_message(turn['text'])[1]
            found.append(Context(example.context, said, example.persona, turn['labels'][0], number))
    return found


# ---- candidates ------------------------------------------------------------------------------------------------


class GreedyAndDraws:
    """A `decoding.Choice` for groups of C rows: the first takes the likeliest tokens, the others draw theirs.

    All rows of a step are drawn at once, so a draw depends on the rows beside it. That is faster than `OwnDraws`.
    """

    def __init__(self, C: int, k: int):
        self.C, self.k = C, k

    def __call__(self, log_probs: Tensor, ended: list[bool], rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        values, ids = log_probs.topk(min(self.k, log_probs.shape[-1]), dim=-1)  # [R, k], the likeliest first
        noise = torch.empty_like(values).exponential_()
        first = torch.tensor([row % self.C == 0 for row in rows], device=values.device)
        column = (values.softmax(-1) / noise).argmax(-1).masked_fill(first, 0)[:, None]
        return ids.gather(1, column)[:, 0], values.gather(1, column)[:, 0]


@torch.no_grad()
def draw_for(agent, search: Search, nothing: DecodingState, contexts: Sequence[Context], C: int) -> Replies:
    """Draw C candidates of every context and read them again. nothing: the state without a context, one row."""
    model: PromptedLM = agent.bare_model
    ids = pad_sequence([torch.tensor(c.ids) for c in contexts], batch_first=True, padding_value=-1)
    encoded = model.encoder(ids)
    device = encoded.logits.device
    rows = torch.arange(len(contexts), device=device).repeat_interleave(C)
    found = replace(search, choose=GreedyAndDraws(C, TOP_K))(model, encoded.reordered(rows))
    tokens = zip(found.tokens.tolist(), found.lengths.tolist(), strict=True)
    texts = [trim(agent._v2t(row[:length])) for row, length in tokens]
    limit = max(agent.label_truncate, agent.opt['max_new_tokens'])
    targets = [torch.tensor(agent.batcher.target(text, limit)[0]) for text in texts]
    padded = pad_sequence(targets, batch_first=True, padding_value=-1).to(device)
    log_probs, hidden = read(model, encoded.reordered(rows), padded)
    alone, _ = read(model, nothing.reordered(torch.zeros_like(rows)), padded)
    B = len(contexts)
    return Replies(
        [texts[i * C : (i + 1) * C] for i in range(B)],
        log_probs.view(B, C).cpu(),
        alone.view(B, C).cpu(),
        (padded >= 0).sum(1).view(B, C).cpu(),
        hidden.view(B, C, -1).cpu(),
        context_states(model, ids, encoded.selected).cpu(),
    )


def read(model: PromptedLM, state: DecodingState, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Read a reply after each row: targets int64 [R, U], which end in the end token, right-padded with negative ids.

    :return: (log p(y | row) float32 [R], mean hidden state of its words float32 [R, D], 0 if it has none). The cache of
        `state` is consumed.
    """
    llm, there = model.llm, targets >= 0
    grown = state.extended(there)
    output = llm._forward(
        llm.lm.base_model, llm.embed(targets.clamp(min=0)), grown.mask, use_cache=True, past_key_values=state.cache
    )
    hidden = output.last_hidden_state  # [R, U, D], each after its token
    follows = there[:, 1:]
    head = llm.lm.get_output_embeddings()
    of = targets[:, 1:][follows]
    rest, _ = token_log_probs(hidden[:, :-1][follows], head.weight, head.bias, of, torch.zeros_like(of, dtype=bool))
    first = state.logits.float().log_softmax(-1).gather(1, targets[:, :1])[:, 0]
    log_probs = first.index_add(0, follows.nonzero()[:, 0], rest)
    is_word = torch.nn.functional.pad(follows, (0, 1))  # all but the end token, which nothing follows
    return log_probs, masked_mean(hidden, is_word)


def context_states(model: PromptedLM, contexts: Tensor, selected: Tensor) -> Tensor:
    """The mean hidden state of each context after its prompt: int64 [B, T], int64 [B] → float32 [B, D]."""
    embedded, mask = model._embed_contexts(contexts)
    prompts = model.soft_prompts.tokens[selected]
    rows, row_mask = join_chosen(prompts, embedded, mask)
    hidden = model.llm._forward(model.llm.lm.base_model, rows, row_mask).last_hidden_state
    return masked_mean(hidden, row_mask & (row_mask.cumsum(1) > prompts.shape[1]))


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """[R, T, D], bool [R, T] → float32 [R, D]; 0 for rows that have nothing."""
    total = torch.einsum('rtd,rt->rd', hidden.float(), mask.to(hidden.device).float())
    return total / mask.sum(1, keepdim=True).clamp(min=1).to(total)


# ---- what texts alone tell ----------------------------------------------------------------------------------------


def text_scores(replies: Sequence[str], gold: str, persona: str) -> np.ndarray:
    """float32 [C, 5]: F1, sentence BLEU and ROUGE-L with the gold reply (0 to 100), consensus, persona overlap."""
    return np.column_stack(
        [
            [[100 * unigram_f1(r, (gold,)), _bleu(r, gold), 100 * rouge(r, (gold,))['rougeL']] for r in replies],
            fast_consensus(replies),
            [persona_overlap(r, persona) for r in replies],
        ]
    ).astype(np.float32)


def fast_consensus(replies: Sequence[str]) -> np.ndarray:
    """`ranking.consensus` with every reply counted once: float64 [C]."""
    counts, number = [Counter(words(reply)) for reply in replies], {}
    table = np.zeros((len(replies), sum(map(len, counts)) or 1))
    for row, count in zip(table, counts, strict=True):
        for word, times in count.items():
            row[number.setdefault(word, len(number))] = times
    common = np.minimum(table[:, None], table[None]).sum(-1)  # [C, C]
    length = table.sum(1)
    f1 = 2 * common / np.maximum(length[:, None] + length[None], 1)
    np.fill_diagonal(f1, 0)
    return f1.sum(1) / max(len(replies) - 1, 1)


def _bleu(reply: str, gold: str) -> float:
    from sacrebleu import sentence_bleu

    return sentence_bleu(reply, [gold]).score


# ---- hidden states in few numbers ---------------------------------------------------------------------------------


def principal(states: np.ndarray, dimensions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The principal axes of standardized states: float32 [N, D] → (mean [D], deviation [D], axes [D, d]).

    The axes are divided by the deviation along them, so that `project` gives numbers of deviation 1.
    """
    mean, deviation = states.mean(0), states.std(0) + 1e-6
    scaled = (states - mean) / deviation
    values, axes = np.linalg.eigh(np.cov(scaled, rowvar=False))
    kept = slice(-1, -1 - min(dimensions, len(values)), -1)
    return mean, deviation, axes[:, kept] / np.sqrt(np.maximum(values[kept], 1e-6))


def project(states: np.ndarray, mean: np.ndarray, deviation: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """float32 [..., D] → float16 [..., d]."""
    return ((states - mean) / deviation @ axes).astype(np.float16)


# ---- draw ---------------------------------------------------------------------------------------------------------


@app.command()
def draw(
    model: Annotated[str, typer.Option(help='Model file, or a name such as spt:smollm2-pt.')],
    out: Annotated[Path, typer.Option(help='The .npz file to write.')],
    llm: Annotated[str | None, typer.Option(help='LLM (default: that of the model file).')] = None,
    data: Annotated[Path | None, typer.Option(help="ParlAI's datapath.")] = None,
    task: Annotated[str, typer.Option(help='The task.')] = 'convai2:self',
    train: Annotated[int, typer.Option(min=1, help='At least this many contexts of the train fold.')] = 3000,
    valid: Annotated[int, typer.Option(min=1, help='At least this many contexts of the valid fold.')] = 1000,
    candidates: Annotated[int, typer.Option(min=2, help='Replies drawn for each context.')] = 16,
    at_once: Annotated[int, typer.Option(min=1, help='Contexts at a time.')] = 128,
    dimensions: Annotated[int, typer.Option(min=1, help='Principal components of hidden states to keep.')] = 192,
    seed: Annotated[int, typer.Option(help='Draws dialogues and replies.')] = 1,
) -> None:
    """Draw candidate replies of both folds, and store their scores, their quality and hidden states of the LLM."""
    from joblib import Parallel, delayed

    with naming('--out', out):
        check_writable(out)
    started = time.perf_counter()
    agent = agent_of(model, llm, seed)
    folds = [contexts_of(agent, task, f, data, n, seed) for f, n in (('train:ordered', train), ('valid', valid))]
    contexts = [context for fold in folds for context in fold]
    is_valid = np.arange(len(contexts)) >= len(folds[0])
    console.print(f'{len(folds[0])} contexts of the train fold, {len(folds[1])} of the valid fold')
    found = draw_all(agent, contexts, 1 + candidates, at_once)
    console.print(f'{time.perf_counter() - started:.0f} s: all replies are drawn')
    by_text = Parallel(n_jobs=min(os.cpu_count() or 1, 1 + len(contexts) // 200), batch_size=64)(
        delayed(text_scores)(texts, c.gold, c.persona) for texts, c in zip(found.texts, contexts, strict=True)
    )
    by_text = np.stack(by_text)  # [N, C, 5]
    hidden, states = found.hidden.numpy(), found.context.numpy()
    axes = principal(hidden[~is_valid].reshape(-1, hidden.shape[-1]), dimensions)
    context_axes = principal(states[~is_valid], dimensions)
    told = {
        'replies': found.texts,
        **{name: [getattr(c, name) for c in contexts] for name in ('said', 'persona', 'gold')},
    }
    settings = {'model': model, 'llm': agent.opt['llm'], 'task': task, 'seed': seed, 'candidates': candidates}
    np.savez_compressed(
        out,
        valid=is_valid,
        dialogue=np.array([c.dialogue for c in contexts]),
        log_probs=found.log_probs.numpy(),
        alone=found.alone.numpy(),
        tokens=found.tokens.numpy().astype(np.int16),
        quality=by_text[..., :3],
        consensus=by_text[..., 3],
        persona=by_text[..., 4],
        hidden=project(hidden, *axes),
        context=project(states, *context_axes),
        texts=_json(told),
        settings=_json(settings),
    )
    console.print(f'{time.perf_counter() - started:.0f} s: wrote {out}, {out.stat().st_size / 1e6:.1f} MB')


def agent_of(model: str, llm: str | None, seed: int):
    """The agent of a model file, with the options of drawing."""
    from parlai.core.agents import create_agent
    from parlai.core.params import ParlaiParser

    given: dict[str, Any] = {} if llm is None else {'llm': llm}
    drawing = {'inference': 'topk', 'topk': TOP_K, 'temperature': TEMPERATURE, 'skip_generation': False}
    opt = ParlaiParser(True, True).parse_kwargs(model_file=model, datatype='valid', seed=seed, **drawing, **given)
    agent = create_agent(opt)
    agent.model.eval()
    if not agent.bare_model.llm.head_is_linear:
        raise UsageError(f'--llm {agent.opt["llm"]}: its logits are not a linear layer of hidden states; give another.')
    return agent


def search_of(agent) -> Search:
    """The search that the agent would use; `GreedyAndDraws` replaces its choice."""
    from spt_parlai.agents.generation import search_like

    like = agent._treesearch_factory(agent.bare_model.llm.device).set_block_list(agent.beam_block_list)
    search = search_like(like, agent.temperature, agent.opt['max_new_tokens'])
    assert search is not None
    return search


def draw_all(agent, contexts: Sequence[Context], C: int, at_once: int) -> Replies:
    """The candidates of all contexts; those of similar length are drawn together."""
    model, search, started = agent.bare_model, search_of(agent), time.perf_counter()
    with torch.no_grad():
        nothing = model.encoder(torch.tensor([agent._new_history().context(()).ids]))
    order = sorted(range(len(contexts)), key=lambda i: len(contexts[i].ids), reverse=True)
    parts = []
    for first in range(0, len(order), at_once):
        parts.append(draw_for(agent, search, nothing, [contexts[i] for i in order[first : first + at_once]], C))
        seconds = time.perf_counter() - started
        console.print(f'{seconds:.0f} s: {min(first + at_once, len(order))} of {len(order)} contexts')
    back = torch.tensor(order).argsort()
    texts = [texts for part in parts for texts in part.texts]
    tensors = (torch.cat(tensors)[back] for tensors in zip(*(part[1:] for part in parts), strict=True))
    return Replies([texts[i] for i in back.tolist()], *tensors)


def _json(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


# ---- rerankers ----------------------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """What `draw` wrote of N contexts, with C candidates each; the first is the greedy reply.

    quality: float32 [N, C], the mean of F1, BLEU and ROUGE-L; scalars: float32 [N, C, S], see `scalars_of`; hidden:
    float32 [N, C, d]; context: float32 [N, d]; dialogue: int64 [N]; replies: [N][C]; the others as in the file.
    """

    quality: Tensor
    scalars: Tensor
    hidden: Tensor
    context: Tensor
    dialogue: Tensor
    valid: Tensor
    rules: dict[str, Tensor]
    replies: list[list[str]]
    said: list[str]
    persona: list[str]
    gold: list[str]

    def part(self, chosen: Tensor) -> Drawn:
        """Some of the contexts: bool [N]."""
        numbers = chosen.nonzero()[:, 0].tolist()
        texts = ([of[i] for i in numbers] for of in (self.replies, self.said, self.persona, self.gold))
        rules = {name: scores[chosen] for name, scores in self.rules.items()}
        return Drawn(*(of[chosen] for of in self[:6]), rules, *texts)


SCALARS = ('log p', 'log p alone', 'tokens', 'persona', 'greedy', 'question', 'repeats the message', 'consensus')


def read_drawn(path: Path) -> Drawn:
    """Read a file of `draw`.

    :raises UsageError: if it is none.
    """
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
        texts = json.loads(found['texts'].tobytes())
        log_probs, alone, tokens, consensus, persona, quality, hidden, context, dialogue = (
            torch.from_numpy(found[name].astype(np.int64 if name == 'dialogue' else np.float32))
            for name in (
                'log_probs',
                'alone',
                'tokens',
                'consensus',
                'persona',
                'quality',
                'hidden',
                'context',
                'dialogue',
            )
        )
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f'{path} holds no candidates ({error}); write it with `draw`.') from error
    replies = texts['replies']
    of_text = [
        [(float('?' in r), unigram_f1(r, (said,))) for r in group]
        for group, said in zip(replies, texts['said'], strict=True)
    ]
    likelihood, unconditional = log_probs / tokens, alone / tokens
    is_greedy = torch.zeros_like(tokens)
    is_greedy[:, 0] = 1
    question, repeats = torch.tensor(of_text).unbind(-1)
    scalars = torch.stack([likelihood, unconditional, tokens, persona, is_greedy, question, repeats, consensus], -1)
    rules = {'likelihood': likelihood, 'MMI': likelihood - 0.5 * unconditional, 'consensus': consensus}
    return Drawn(
        quality.mean(-1),
        scalars,
        hidden,
        context,
        dialogue,
        torch.from_numpy(found['valid']),
        rules,
        replies,
        texts['said'],
        texts['persona'],
        texts['gold'],
    )


def centered(values: Tensor) -> Tensor:
    """Less the mean over the candidates of a context: [N, C, S] → [N, C, S]."""
    return values - values.mean(1, keepdim=True)


class Reranker(torch.nn.Module):
    """Scores candidates: a linear layer of scalars and, if `width` is positive, an MLP of states and scalars.

    :param used: the numbers of the scalars that are used.
    :param scale: float32 [S], the scalars' deviation within a context.
    """

    def __init__(self, used: Sequence[int], scale: Tensor, d: int, width: int, dropout: float = 0.3):
        super().__init__()
        self.used = list(used)
        self.register_buffer('scale', scale[self.used])
        self.linear = torch.nn.Linear(len(self.used), 1, bias=False)
        torch.nn.init.zeros_(self.linear.weight)
        self.mlp = None
        if width:
            self.mlp = torch.nn.Sequential(
                torch.nn.Dropout(dropout),
                torch.nn.Linear(len(self.used) + 2 * d, width),
                torch.nn.GELU(),
                torch.nn.Dropout(dropout),
                torch.nn.Linear(width, 1),
            )

    def forward(self, scalars: Tensor, hidden: Tensor, context: Tensor) -> Tensor:
        """float32 [N, C, S], [N, C, d], [N, d] → scores [N, C]."""
        scalars = centered(scalars[..., self.used]) / self.scale
        score = self.linear(scalars)[..., 0]
        if self.mlp is not None:
            around = context[:, None].expand_as(hidden)
            score = score + self.mlp(torch.cat([scalars, centered(hidden), around], -1))[..., 0]
        return score


def risk(scores: Tensor, quality: Tensor) -> Tensor:
    """Less the quality to expect of a reply that is drawn from the softmax of the scores: [N, C], [N, C] → []."""
    return -(scores.softmax(-1) * centered(quality[..., None])[..., 0]).sum(-1).mean()


def train_reranker(model: Reranker, train: Drawn, tune: Drawn, seed: int, epochs: int = 40, patience: int = 6) -> None:
    """Minimize the risk on `train`, and keep the weights with the least risk on `tune`."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    best, kept, left = float('inf'), copy.deepcopy(model.state_dict()), patience
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(train.quality), generator=generator).split(64):
            optimizer.zero_grad()
            loss = risk(model(train.scalars[rows], train.hidden[rows], train.context[rows]), train.quality[rows])
            loss.backward()
            optimizer.step()
        found = float(risk(scores_of(model, tune), tune.quality))
        if found < best:
            best, kept, left = found, copy.deepcopy(model.state_dict()), patience
        elif (left := left - 1) == 0:
            break
    model.load_state_dict(kept)


@torch.no_grad()
def scores_of(model: Reranker, drawn: Drawn) -> Tensor:
    return model.eval()(drawn.scalars, drawn.hidden, drawn.context)


def split(drawn: Drawn, seed: int, share: float = 0.15) -> tuple[Drawn, Drawn]:
    """The train fold without a share of its dialogues, and those dialogues, on which training stops."""
    dialogues = drawn.dialogue[~drawn.valid].unique().tolist()
    random.Random(seed).shuffle(dialogues)
    tuned = torch.isin(drawn.dialogue, torch.tensor(dialogues[: max(1, round(share * len(dialogues)))]))
    return drawn.part(~drawn.valid & ~tuned), drawn.part(~drawn.valid & tuned)


def fitted(drawn: Drawn, seeds: Sequence[int], used: Sequence[int], width: int) -> list[tuple[Reranker, Drawn]]:
    """A reranker for each seed, which splits, starts and shuffles, with the part on which its training stopped."""
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        train, tune = split(drawn, seed)
        model = Reranker(used, centered(train.scalars).flatten(0, 1).std(0) + 1e-6, train.hidden.shape[-1], width)
        train_reranker(model, train, tune, seed)
        found.append((model, tune))
    return found


def weight_of_consensus(models: Sequence[tuple[Reranker, Drawn]]) -> float:
    """How much consensus to add to the rerankers' scores: the best of a grid on the parts where training stopped."""

    def quality(weight: float) -> float:
        return sum(
            float(chosen_quality(scores_of(model, tune) + weight * tune.rules['consensus'], tune).sum())
            for model, tune in models
        )

    return max((0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0), key=quality)


def chosen_quality(scores: Tensor, drawn: Drawn) -> Tensor:
    return drawn.quality.gather(1, scores.argmax(1, keepdim=True))[:, 0]


# ---- fit ----------------------------------------------------------------------------------------------------------


def choices(drawn: Drawn, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Row → the number of the candidate that it chooses, int64 [N], for the contexts of the valid fold."""
    valid = drawn.part(drawn.valid)
    rows = {'greedy': torch.zeros(len(valid.quality), dtype=torch.long)}
    rows['one sample'] = rows['greedy'] + 1
    rows |= {name: scores.argmax(1) for name, scores in valid.rules.items()}
    everything, without = range(len(SCALARS)), [i for i, name in enumerate(SCALARS) if name != 'consensus']
    for name, used, width in (
        ('linear, without consensus', without, 0),
        ('linear', everything, 0),
        ('MLP, without consensus', without, WIDTH),
        ('MLP', everything, WIDTH),
    ):
        models = fitted(drawn, seeds, used, width)
        scores = sum(scores_of(model, valid) for model, _ in models) / len(models)
        rows[name] = scores.argmax(1)
        console.print(f'{name}: {sum(p.numel() for p in models[0][0].parameters())} weights, {len(models)} seeds')
        if width == 0 and used == everything:
            weights = sum(model.linear.weight.detach()[0] for model, _ in models) / len(models)
            console.print('  ' + ', '.join(f'{n} {w:+.2f}' for n, w in zip(SCALARS, weights.tolist(), strict=True)))
    weight = weight_of_consensus(models)
    console.print(f'MLP + consensus: {weight:g} times the consensus')
    rows['MLP + consensus'] = (scores + weight * valid.rules['consensus']).argmax(1)
    rows['the best, in hindsight'] = valid.quality.argmax(1)
    return rows


def measured(drawn: Drawn, choice: Tensor) -> tuple[dict[str, float], list[Turn]]:
    """Metrics of the chosen replies of the valid fold, and the replies as a world log has them."""
    valid = drawn.part(drawn.valid)
    replies = [group[i] for group, i in zip(valid.replies, choice.tolist(), strict=True)]
    found = {
        'F1': 100 * np.mean([unigram_f1(r, (g,)) for r, g in zip(replies, valid.gold, strict=True)]),
        'BLEU': sum((CorpusBleu.of(r, (g,)) for r, g in zip(replies, valid.gold, strict=True)), None).value(),
        'ROUGE-L': 100 * np.mean([rouge(r, (g,))['rougeL'] for r, g in zip(replies, valid.gold, strict=True)]),
        'DIST-1': Distinct(replies, (1,)).value(),
        'DIST-2': Distinct(replies, (2,)).value(),
    }
    turns = zip(valid.dialogue.tolist(), valid.said, valid.persona, valid.gold, replies, strict=True)
    log = [Turn(d, 0, said, (persona,), gold, reply, None, None) for d, said, persona, gold, reply in turns]
    return {name: float(value) for name, value in found.items()}, log


@app.command()
def fit(
    file: Annotated[Path, typer.Argument(help='What `draw` wrote.')],
    seeds: Annotated[int, typer.Option(min=1, help='Rerankers, whose scores are added up.')] = 5,
) -> None:
    """Train rerankers on the train fold, and compare what they choose on the valid fold with what consensus chooses."""
    drawn = read_drawn(file)
    if drawn.valid.all() or not drawn.valid.any() or len(drawn.dialogue[~drawn.valid].unique()) < 2:
        raise UsageError(f'{file}: fitting needs two dialogues of the train fold and one of the valid fold; draw more.')
    rows = choices(drawn, range(1, seeds + 1))
    logs = {name: measured(drawn, choice) for name, choice in rows.items()}
    columns = list(logs['greedy'][0])
    table = Table('', *columns, box=box.MARKDOWN)
    for name, (metrics, log) in logs.items():
        p = p_values([log], [logs['consensus'][1]]) if name in COMPARED else {}
        marks = {c: p.get(n, 1.0) for c, n in zip(columns, LOGGED_AS, strict=True)}
        cells = (f'{v:.2f}' + (f' (p {marks[c]:.3f})' if name in COMPARED else '') for c, v in metrics.items())
        table.add_row(name, *cells)
    Console(width=200).print(table)


if __name__ == '__main__':
    app()
