"""The files of a training run that never ran, with numbers that are easy to check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spt_parlai.checkpoints import metrics_log

PERPLEXITIES = (50.0, 30.0, 40.0)  # of the validations after 10, 20 and 30 steps


def report(step: int, **more: Any) -> dict[str, Any]:
    return {'parleys': step, 'train_steps': step, 'total_epochs': step / 100, 'train_time': 2.0 * step, **more}


def usage(*shares: float) -> dict[str, float]:
    """The log entries of the prompts' use."""
    return {f'prompt_usage_{k}': share for k, share in enumerate(shares)} | {
        'prompt_usage_entropy': float(max(shares) < 1)
    }


def record(model_file: Path, steps: int = 30, **options: Any) -> Path:
    """Write what a run of two prompts leaves: a report every 5 steps, a validation every 10, and a world log."""
    model_file.parent.mkdir(parents=True, exist_ok=True)
    metrics_log.begin(model_file, {'validation_metric': 'ppl', 'max_train_steps': 40, **options}, 0, [])
    for step in range(5, steps + 1, 5):
        metrics_log.append(model_file, 'train', report(step, ppl=60.0, **usage(0.5, 0.5), time_left=179.6 - 2 * step))
        if step % 10 == 0:
            shown = {
                'persona': ['i like tea.'],
                'dialogue': ['hello <b>there</b>'],
                'label': 'hi .',
                'scores': [0.3, 0.1],
                'selected': 0,
                'replies': [f'zero at {step}', f'one at {step}'],
            }
            metrics_log.append(model_file, 'replies', {'parleys': step, 'train_steps': step, 'contexts': [shown]})
            ppl = PERPLEXITIES[step // 10 - 1]
            metrics_log.append(model_file, 'valid', report(step, ppl=ppl, **usage(1.0, 0.0)))
    turns = [
        (
            {'id': 'sample', 'text': f'your persona: i like tea.\nmessage {n}', 'eval_labels': ['hi']},
            {'id': 'Spt', 'text': f'reply {n}: yes', 'selected_prompt': n % 2, 'prompt_scores': [0.2, 0.1]},
        )
        for n in (1, 2)
    ]
    log = model_file.with_name('valid.jsonl')
    log.write_text(json.dumps({'dialog': turns}) + '\n')
    log.with_suffix('.metadata').write_text(json.dumps({'opt': {'model_file': str(model_file)}}))
    return model_file
