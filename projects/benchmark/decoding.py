"""Compare four ways to decode greedily when every context of a batch has its own prompt.

    python projects/benchmark/decoding.py

This prints a table of the batched search of this package, ParlAI's search around the same model, and transformers'
`generate`, called once for every distinct prompt of a batch: over the contexts of that prompt (`groups`), or over the
whole batch, of which the other rows are thrown away (`reruns`, as in the code of the paper's authors). All prompts are
in use. The contexts come from the sample task of the package, so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from parlai.core.agents import create_agent
from parlai.core.params import ParlaiParser
from parlai.core.teachers import create_task_agent_from_taskname
from parlai.utils import logging

from spt_parlai.model.rows import join_chosen

TASK = 'spt_parlai.tasks.sample'


def build_agent(args):
    """An SptAgent with untrained prompts, or the one in --model-file. Noise makes it select every prompt."""
    parser = ParlaiParser(True, True)
    options = {
        'batchsize': args.batchsize,
        'score_noise': 100.0,
        'max_new_tokens': args.max_new_tokens,
        'task': TASK,
        'label_truncate': args.max_new_tokens,
        'llm_dtype': args.dtype,
        'datatype': 'valid',
    }
    if args.model_file:
        options.update(model_file=args.model_file, beam_block_ngram=-1)
    else:
        options.update(
            model='spt_parlai.agents:SptAgent',
            llm=args.llm,
            num_prompts=args.num_prompts,
            prompt_init='embedding-scale',
            seed=0,
        )
    agent = create_agent(parser.parse_kwargs(**options))
    agent.model.eval()
    return agent


def observed(agent, count: int) -> list:
    """The first `count` contexts of the task's train and valid folds, as the agent observes them."""
    found = []
    for fold in ('train:evalmode', 'valid'):
        teacher = create_task_agent_from_taskname({**agent.opt, 'task': TASK, 'datatype': fold, 'batchsize': 1})[0]
        while not teacher.epoch_done() and len(found) < count:
            found.append(agent.observe(teacher.act()))
            agent.self_observe({'text': found[-1]['eval_labels'][0]})
    return found


# ---- the four ways: batch → token ids of each row, EOS included ---------------------------------------------


def parlai_form(agent, batch):
    return [tokens[1:].tolist() for tokens, _, _ in agent._generate(batch, 1, agent.opt['max_new_tokens'])[0]]


def batched(agent, batch):
    agent.searches_batches = True
    return parlai_form(agent, batch)


def parlai(agent, batch):
    agent.searches_batches = False
    return parlai_form(agent, batch)


def with_generate(agent, batch, wanted, prompt: int):
    """transformers' own loop with one prompt, over the rows `wanted` of a batch."""
    model, length = agent.bare_model, agent.opt['max_new_tokens']
    contexts = batch.text_vec[wanted]
    contexts = contexts[:, : int((contexts >= 0).sum(1).max())]
    words, mask = model._embed_contexts(contexts)
    rows, mask = join_chosen(model.soft_prompts.tokens[prompt].expand(len(words), -1, -1), words, mask)
    return model.llm.lm.generate(
        inputs_embeds=rows,
        attention_mask=mask.long(),
        max_new_tokens=length,
        do_sample=False,
        num_beams=1,
        pad_token_id=agent.END_IDX,
        eos_token_id=agent.END_IDX,
        bos_token_id=agent.END_IDX,
    ).tolist()


def groups(agent, batch):
    replies: list = [None] * batch.batchsize
    for prompt in batch.selection.selected.unique().tolist():
        mine = (batch.selection.selected == prompt).nonzero()[:, 0]
        for row, tokens in zip(mine.tolist(), with_generate(agent, batch, mine, prompt), strict=True):
            replies[row] = tokens
    return replies


def reruns(agent, batch):
    replies: list = [None] * batch.batchsize
    for prompt in batch.selection.selected.unique().tolist():
        found = with_generate(agent, batch, torch.arange(batch.batchsize), prompt)
        for row in (batch.selection.selected == prompt).nonzero()[:, 0].tolist():
            replies[row] = found[row]
    return replies


WAYS = {'batched search': batched, "ParlAI's search": parlai, 'generate, groups': groups, 'generate, reruns': reruns}


def reply_of(tokens: list[int], end: int, longest: int) -> list[int]:
    """The tokens before the end. In a reply that does not end, ParlAI replaces the last token by the end token."""
    return tokens[: tokens.index(end)] if end in tokens else tokens[: longest - 1]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--llm', default='demo')
    parser.add_argument('--model-file', help='file of a trained agent (default: untrained prompts around --llm)')
    parser.add_argument('--num-prompts', type=int, default=4)
    parser.add_argument('--examples', type=int, default=500)
    parser.add_argument('--batchsize', type=int, default=64)
    parser.add_argument('--max-new-tokens', type=int, default=32)
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--repeats', type=int, default=3)
    args = parser.parse_args()
    logging.disable()

    agent = build_agent(args)
    seen = observed(agent, args.examples)
    batches = [agent.batchify(seen[i : i + args.batchsize]) for i in range(0, len(seen), args.batchsize)]
    torch.manual_seed(0)
    for batch in batches:
        batch['selection'] = agent.bare_model.retrieve(batch.text_vec)
    used = torch.cat([b.selection.selected for b in batches]).bincount(minlength=args.num_prompts).tolist()
    print(
        f'{len(seen)} contexts, batches of {args.batchsize}, at most {args.max_new_tokens} new tokens, '
        f'{agent.bare_model.llm.dtype} on {agent.bare_model.llm.device}, {torch.get_num_threads()} threads; '
        f'contexts per prompt {used}'
    )

    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    busy: dict[str, list[float]] = {name: [] for name in WAYS}  # processor seconds, for machines that are shared
    replies = {}
    for way in WAYS.values():
        way(agent, batches[0])  # warm-up
    for _ in range(args.repeats):
        for name, way in WAYS.items():
            start, start_busy = time.perf_counter(), time.process_time()
            found = [tokens for batch in batches for tokens in way(agent, batch)]
            seconds[name].append(time.perf_counter() - start)
            busy[name].append(time.process_time() - start_busy)
            replies[name] = [reply_of(tokens, agent.END_IDX, args.max_new_tokens) for tokens in found]
    ours = next(iter(WAYS))
    tokens = sum(len(r) + 1 for r in replies[ours])
    print(f'{tokens / len(seen):.1f} tokens per reply\n')
    print(f'{"":<18}{"seconds":>9}{"tokens/s":>10}{"× ours":>8}{"CPU s":>9}{"× ours":>8}{"same replies":>14}')
    for name in WAYS:
        wall, cpu = statistics.median(seconds[name]), statistics.median(busy[name])
        same = sum(a == b for a, b in zip(replies[name], replies[ours], strict=True))
        print(
            f'{name:<18}{wall:>9.2f}{tokens / wall:>10.0f}{wall / statistics.median(seconds[ours]):>8.2f}{cpu:>9.2f}'
            f'{cpu / statistics.median(busy[ours]):>8.2f}{f"{same}/{len(seen)}":>14}'
        )


if __name__ == '__main__':
    main()
