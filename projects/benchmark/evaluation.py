"""Compare evaluation of whole dialogues with evaluation turn by turn, as `eval_model` does it.

    python projects/benchmark/evaluation.py --model-file spt:smollm2 --data DATAPATH

Both ways evaluate the same dialogues with the same model, one after the other in rounds; loading does not count. The
script also says whether both report the same and reply the same, and how many times as many operations the LLM needs
turn by turn, by the counts of `flops.py` over a hundred dialogues: without replies no ratio can be above that.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from dialogues import Reader, episodes
from flops import LLMShape
from parlai.core.agents import create_agent
from parlai.core.params import ParlaiParser
from parlai.core.worlds import create_task
from parlai.utils import logging

from spt_parlai.trained_models import resolve

NOT_COMPARED = {'exps', 'ltps', 'ctps', 'tps', 'gpu_mem'}  # rates


def agent_of(args):
    options = {
        'task': args.task,
        'datatype': 'valid',
        'batchsize': args.batchsize,
        'llm_dtype': args.dtype,
        'max_new_tokens': args.max_new_tokens,
        'inference': 'greedy',
        'seed': 0,
    }
    if args.data:
        options['datapath'] = args.data
    if args.model_file:
        options.update(model='spt_parlai.agents:SptAgent', model_file=resolve(args.model_file))
    else:
        options.update(model='spt_parlai.agents:SptAgent', llm=args.llm, num_prompts=4, prompt_length=8)
    return create_agent(ParlaiParser(True, True).parse_kwargs(**options))


def evaluate(agent, dialogues: int) -> tuple[float, float, dict[str, float], list[str]]:
    """Evaluate the first dialogues of the task; return (seconds, processor seconds, the report, the replies)."""
    agent.reset_metrics()
    world = create_task(agent.opt, agent)
    one = getattr(world, 'worlds', [world])[0]
    del one.get_agents()[0].data.data[dialogues:]  # which all teachers of a batch share
    replies = []
    start, busy = time.perf_counter(), time.process_time()
    while not world.epoch_done():
        world.parley()
        for one in getattr(world, 'worlds', [world]):
            if 'metrics' in (act := one.get_acts()[1]):
                replies.append(act.get('text', ''))
    spent = time.perf_counter() - start, time.process_time() - busy
    report = {name: float(value) for name, value in world.report().items() if name not in NOT_COMPARED}
    world.shutdown()
    return *spent, report, replies


def furthest(a: dict[str, float], b: dict[str, float]) -> tuple[float, str]:
    """The greatest relative difference of two reports, and the metric's name."""
    return max((abs(a[name] - b[name]) / max(1e-6, abs(b[name])), name) for name in b)


def operations(agent, data: str | None) -> float:
    """Operations of predicting each turn after its own context, relative to those of one row for each dialogue."""
    reader, shape = Reader(agent.opt['llm'], 2**31, 2**31), LLMShape.of(agent.bare_model.llm.lm)
    singly = whole = 0.0
    for episode in episodes(data, 100):
        turns = reader.turns(episode)
        targets = sum(len(turn.target) for turn in turns)
        rows = [agent.opt.get('prompt_length', 0) + len(turn.context) + len(turn.target) - 1 for turn in turns]
        singly += shape.forward(rows, targets)
        whole += shape.forward([max(rows)], targets)
    return singly / whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model-file', help='a trained agent (default: untrained prompts around --llm)')
    parser.add_argument('--llm', default='demo')
    parser.add_argument('--task', default='spt_parlai.tasks.sample')
    parser.add_argument('--data', help="ParlAI's datapath")
    parser.add_argument('--batchsize', type=int, default=4)
    parser.add_argument('--dialogues', type=int, default=8)
    parser.add_argument('--max-new-tokens', type=int, default=32)
    parser.add_argument('--dtype', default='bfloat16')
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    logging.disable()
    agent = agent_of(args)
    print(
        f'{args.model_file or args.llm}, {args.task}, {args.dialogues} dialogues, batches of {args.batchsize}, at most '
        f'{args.max_new_tokens} new tokens, {args.dtype}, {torch.get_num_threads()} threads'
    )
    print(f'{"":<18}{"s, turns":>10}{"s, packed":>10}{"ratio":>7}{"CPU ratio":>11}{"same replies":>14}{"furthest":>10}')
    for skip in (True, False):
        agent.opt['skip_generation'] = agent.skip_generation = skip
        spent: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        found = {}
        for number in range(args.rounds + 1):  # the first one warms up
            for packs in (True, False):
                agent.opt['dialogue_packing'] = packs
                *times, report, replies = evaluate(agent, args.dialogues if number else 1)
                found[packs] = report, replies
                if number:
                    spent[packs].append((times[0], times[1]))
        wall, busy = ({p: statistics.median(t[i] for t in spent[p]) for p in spent} for i in (0, 1))
        same = sum(a == b for a, b in zip(found[True][1], found[False][1], strict=True))
        difference, name = furthest(found[True][0], found[False][0])
        print(
            f'{"without replies" if skip else "with replies":<18}{wall[False]:>10.2f}{wall[True]:>10.2f}'
            f'{wall[False] / wall[True]:>7.2f}{busy[False] / busy[True]:>11.2f}'
            f'{f"{same}/{len(found[True][1])}":>14}{difference:>10.1e} ({name})'
        )
    print(f'operations, turn by turn to whole dialogues: {operations(agent, args.data):.2f}')


if __name__ == '__main__':
    main()
