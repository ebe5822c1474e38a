"""Kill training runs, start them again with the same command until they end, and compare them with one left alone.

    python stopped_runs.py --llm FOLDER --work FOLDER --random 20 --deliberate all

Random kills come at any moment; deliberate ones right before or after the n-th time that a run renames or syncs a
file, or with half of a checkpoint written. Runs are forks of this process, which has imported everything.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'  # a fork of a process with a pool of threads would wait for them for ever

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from helpers.runs import train
from parlai.scripts.train_model import TrainLoop

OPTIONS = {
    'max_train_steps': 24,
    'batchsize': 2,
    'log_every_n_steps': 1,
    'validation_every_n_steps': 8,
    'save_every_n_secs': 0.1,
    'loglevel': 'error',
}
VARIANTS = [
    {},
    {'update_freq': 2, 'max_train_steps': 14, 'validation_every_n_steps': 5},
    {'warmup_updates': 12, 'optimizer': 'sgd', 'lr_scheduler': 'cosine'},
]
COMPARED = (
    'loss',
    'ppl',
    'token_acc',
    'nll',
    'selection',
    'contrastive',
    'fusion',
    'spt_loss',
    'prompt_usage_0',
    'prompt_usage_1',
    'prompt_usage_2',
    'prompt_usage_entropy',
    'lr',
    'exs',
    'train_steps',
    'parleys',
    'total_exs',
    'total_epochs',
    'total_train_updates',
    'gnorm',
)
DELIBERATE = [  # (what, its n-th call, the moment); a save is .opt, .dict, checkpoint and .trainstats: three renames
    *(('replace', n, moment) for n in range(1, 13) for moment in ('before', 'after')),
    *(('fsync', n, 'before') for n in range(1, 13)),
    *(('torch.save', n, moment) for n in range(1, 5) for moment in ('half written', 'after')),
]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def plant(what: str, number: int, moment: str) -> None:
    """Make this process kill itself around the n-th call of a function."""
    owner, name = (torch, 'save') if what == 'torch.save' else (os, what)
    original, calls = getattr(owner, name), []

    def fatal(*args, **kwargs):
        calls.append(1)
        if len(calls) < number:
            return original(*args, **kwargs)
        if moment == 'before':
            die()
        original(*args, **kwargs)
        if moment == 'half written':
            os.truncate(args[1], os.path.getsize(args[1]) // 2)
        die()

    setattr(owner, name, fatal)


def record_to(folder: Path) -> None:
    """Append every logged training report to a file at once, and save all tensors after the last step.

    ParlAI does not save those where an earlier model was better.
    """
    log, train_steps = TrainLoop.log, TrainLoop.train_steps

    def logged(loop):
        log(loop)
        with open(folder / 'logged', 'a') as file:
            file.write(json.dumps(comparable(loop.train_reports[-1])) + '\n')

    def to_the_last(loop):
        yield from train_steps(loop)
        torch.save((loop.agent.model.state_dict(), loop.agent.optimizer.state_dict()), folder / 'last')

    TrainLoop.log, TrainLoop.train_steps = logged, to_the_last


def comparable(report: dict) -> dict:
    return {name: float(report[name]) for name in COMPARED if name in report}


def run(llm: str, folder: Path, variant: dict, kill_after: float | None = None, planted=None) -> bool:
    """One start of the command in a fork. Returns whether it ended by itself; any other end than a kill is an error."""
    pid = os.fork()
    if not pid:
        try:
            output = os.open(folder / 'output', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            record_to(folder)
            if planted:
                plant(*planted)
            train(folder / 'model', llm, **{**OPTIONS, **variant})
        except BaseException as error:
            print(f'ended in {error!r}', flush=True)
            raise
        finally:
            os._exit(int(sys.exc_info()[0] is not None))
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    assert status == 0, (folder / 'output').read_text()[-3000:]
    return True


def outcome(folder: Path) -> dict:
    """What a finished run leaves: reports and tensors."""
    stats = json.loads((folder / 'model.trainstats').read_text())
    left = {path.name for path in folder.iterdir()} - {'output', 'logged', 'last'}
    return {
        'valid': [comparable(report) for report in stats['valid_reports']],
        'final': [comparable(stats[f'final_{fold}_report']) for fold in ('valid', 'test')],
        'logged': {r['train_steps']: comparable(r) for r in stats['train_reports']},
        'files': {name for name in left if '.part' not in name},
        'best': torch.load(folder / 'model', weights_only=True)['model'],
        'last': torch.load(folder / 'last', weights_only=True),
    }


def compare(folder: Path, variant: dict, whole: dict) -> None:
    """A stopped run against the one left alone: every number of both, bit for bit."""
    found = outcome(folder)
    assert found['files'] == whole['files'], found['files'] ^ whole['files']
    for name in ('valid', 'final'):
        assert found[name] == whole[name], (name, found[name], whole[name])
    lines = [json.loads(line) for line in (folder / 'logged').read_text().splitlines() if line.endswith('}')]
    for report in (*lines, *found['logged'].values()):
        expected = whole['logged'][report['train_steps']]
        if (
            report['exs'] < expected['exs']
        ):  # the first after a stop between two updates is of the batches after the stop alone
            assert variant.get('update_freq', 1) > 1
            report, expected = (
                {name: r[name] for name in ('lr', 'parleys', 'total_exs', 'total_train_updates')}
                for r in (report, expected)
            )
        assert report == expected, (report, expected)
    assert {report['train_steps'] for report in lines} == set(whole['logged'])
    for name in ('best', 'last'):
        torch.testing.assert_close(found[name], whole[name], rtol=0, atol=0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--llm', required=True)
    parser.add_argument('--work', required=True, type=Path)
    parser.add_argument('--random', type=int, default=20, help='how many kills at random moments')
    parser.add_argument('--deliberate', default='all', help='how many of the deliberate kills, drawn at random; or all')
    parser.add_argument('--seed', type=int, default=None)
    args = parser.parse_args()
    seed = random.randrange(10**6) if args.seed is None else args.seed
    print(f'seed {seed}', flush=True)
    chance = random.Random(seed)
    torch.set_num_threads(1)

    def fresh(name) -> Path:
        folder = args.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    @functools.cache
    def left_alone(number: int):
        """(variant, its outcome, how many seconds it takes)"""
        variant, folder, began = VARIANTS[number], fresh(f'whole{number}'), time.time()
        assert run(args.llm, folder, variant)
        return variant, outcome(folder), time.time() - began

    kills, trial = 0, 0
    while kills < args.random:
        variant, whole, seconds = left_alone(trial % len(VARIANTS))
        folder, mine = fresh('random'), []
        for moment in (chance.uniform(0, 0.7 * seconds) for _ in range(min(4, args.random - kills))):
            if run(args.llm, folder, variant, kill_after=moment):
                break
            mine.append(moment)
        else:
            assert run(args.llm, folder, variant)
        compare(folder, variant, whole)
        kills, trial = kills + len(mine), trial + 1
        print(f'{variant}: killed after {" ".join(f"{m:.2f}" for m in mine)} s, and ended the same', flush=True)

    plans = DELIBERATE if args.deliberate == 'all' else chance.sample(DELIBERATE, int(args.deliberate))
    for number, plan in enumerate(plans):
        variant, whole, _ = left_alone(number % len(VARIANTS))
        folder = fresh('deliberate')
        killed = not run(args.llm, folder, variant, planted=plan)
        if killed:
            run(args.llm, folder, variant)
        compare(folder, variant, whole)
        print(f'{variant}: {"killed at" if killed else "never came to"} {plan}, and ended the same', flush=True)
    print(f'{kills} random and {len(plans)} deliberate kills', flush=True)


if __name__ == '__main__':
    main()
