"""Small runs of ParlAI's own scripts, in process."""

import json
from pathlib import Path

from parlai.scripts.eval_model import EvalModel
from parlai.scripts.train_model import TrainModel

SAMPLE = 'spt_parlai.tasks.sample'
AGENT = 'spt_parlai.agents:SptAgent'
SMALL = {
    'task': SAMPLE,
    'model': AGENT,
    'num_prompts': 3,
    'prompt_length': 2,
    'label_truncate': 24,
    'max_new_tokens': 8,
    'batchsize': 4,
    'validation_max_exs': 8,
    'short_final_eval': True,
    'seed': 7,
    'save_every_n_secs': -1,
}


def train(model_file, llm, **options):
    """`parlai train_model`, an option of None left out; returns (validation report, test report)."""
    options = {**SMALL, 'llm': llm, 'model_file': str(model_file), **options}
    return TrainModel.main(**{k: v for k, v in options.items() if v is not None})


def evaluate(model_file, **options):
    """`parlai eval_model` on the sample task's valid fold; returns the report as plain numbers."""
    report = EvalModel.main(
        **{'model_file': str(model_file), 'task': SAMPLE, 'datatype': 'valid', 'batchsize': 4, **options}
    )
    return {k: float(v) for k, v in report.items()}


def loss_curve(model_file):
    """[(step, loss)] of every logged training step."""
    stats = json.loads(Path(f'{model_file}.trainstats').read_text())
    return [(r['train_steps'], r['spt_loss']) for r in stats['train_reports']]
