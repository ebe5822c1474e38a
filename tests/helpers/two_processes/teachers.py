"""A teacher that divides its training data among W processes: `-t helpers.two_processes.teachers`.

It gives single turns in a fixed order. With batches of B, rank r trains on batches r, r + W, r + 2W, … of those that a
single process would see, so that the W batches of a step make up a single process's batch of W·B. If the variable SEEN
names a folder, each rank writes its answers there, example by example, and the gradients of every update. The variable
SIGNAL, "rank example signal", makes that rank send itself the signal after it has trained on the example.
"""

import json
import os
import random
from pathlib import Path

import torch
from parlai.core.teachers import DialogTeacher
from parlai.utils.distributed import get_rank, num_workers
from torch.optim.optimizer import register_optimizer_step_pre_hook

SIZES = {'train': 48, 'valid': 7, 'test': 1}  # odd numbers, and fewer than there are processes
WORDS = (
    'i you like tea dogs the city work as a nurse have two cats and walk in rain what do when is my best friend'.split()
)


def examples(fold):
    draw = random.Random(fold)
    for number in range(SIZES[fold]):
        persona, question, answer = (' '.join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(3))
        yield {
            'text': f'your persona: {persona} .\n{question} ?',
            'labels': [f'{answer} .'],
            'number': number,
            'fold': fold,
        }


class DefaultTeacher(DialogTeacher):
    def __init__(self, opt, shared=None):
        opt = {**opt, 'datafile': opt['datatype'].split(':')[0]}
        super().__init__(opt, shared)

    def setup_data(self, fold):
        for example in examples(fold):
            turn = example['number'] // self.opt['batchsize'] % num_workers()
            if fold != 'train' or turn == get_rank():
                yield example, True

    def custom_evaluation(self, teacher_action, labels, model_response):
        if 'loss' not in model_response.get(
            'metrics', ()
        ):  # the agent only draws the batch again, to continue from where it was
            return
        rank, number, sent = map(int, os.environ.get('SIGNAL', '-1 0 0').split())
        if (rank, number, 'train') == (get_rank(), teacher_action['number'], teacher_action['fold']):
            os.kill(os.getpid(), sent)
        if 'SEEN' in os.environ:
            report = {k: float(v) for k, v in model_response['metrics'].items()}
            seen = {
                'fold': teacher_action['fold'],
                'number': teacher_action['number'],
                'seed': self.opt['seed'],
                **report,
            }
            with open(Path(os.environ['SEEN']) / f'{get_rank()}.jsonl', 'a') as file:
                file.write(json.dumps(seen) + '\n')


def keep_gradients(optimizer, *_):
    """Save the gradients that an update is about to apply, averaged and clipped, in one file per update and process."""
    gradients = [p.grad for group in optimizer.param_groups for p in group['params']]
    if 'SEEN' in os.environ and any(gradient.any() for gradient in gradients):  # a loaded optimizer is tried with zeros
        folder = Path(os.environ['SEEN'])
        number = len(list(folder.glob(f'gradients_{get_rank()}_*.pt')))
        torch.save(gradients, folder / f'gradients_{get_rank()}_{number:02}.pt')


register_optimizer_step_pre_hook(keep_gradients)
