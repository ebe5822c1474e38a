"""`spt demo`: the main job in a few minutes on a CPU, through ParlAI's own training loop, evaluation and agent."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from spt_parlai.errors import UsageError

PRESET = Path(__file__).with_name('demo.opt')
QUESTIONS = ('hello ! how are you today ?', 'what do you do for a living ?', 'do you have any hobbies or pets ?')
SHOWN = (
    ('ppl', 'perplexity under the selected prompt'),
    ('token_acc', 'token accuracy under the selected prompt'),
    ('f1', 'unigram F1 of the replies'),
    ('nll', 'prompt NLL, summed over the prompts'),
    ('selection', 'selection KL'),
    ('contrastive', 'context-prompt contrast'),
    ('fusion', 'fusion NLL'),
)


def run_demo(out: Path, steps: int | None = None, seed: int = 0) -> dict:
    """Train, evaluate and chat; the model is left in `out`. Returns the evaluation's report."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the LM is there in a blink
    console = Console()
    preset = json.loads(PRESET.read_text())
    if steps:
        preset.update(max_train_steps=steps, log_every_n_steps=max(steps // 10, 1))
    model_file = str(_empty_folder(out) / 'model')

    console.rule('[bold]1. train')
    console.print('$ parlai train_model -o opt_presets/demo.opt -mf ' + model_file, style='cyan', soft_wrap=True)
    _train(console, {**preset, 'model_file': model_file, 'seed': seed, 'loglevel': 'warn'})
    console.rule('[bold]2. evaluate')
    console.print(f'$ parlai eval_model -mf {model_file} -t {preset["task"]} -dt valid', style='cyan', soft_wrap=True)
    report = _evaluate(console, model_file, preset)
    console.rule('[bold]3. chat')
    console.print(f'$ parlai interactive -mf {model_file}', style='cyan', soft_wrap=True)
    _chat(console, model_file)
    console.rule('[bold]next')
    console.print(
        'The real thing, with the data and the LLM downloaded once:\n'
        '  parlai train_model -t convai2:self -m spt_parlai.agents:SptAgent -mf runs/opt125m/model\n'
        '  parlai train_model -o opt_presets/llama2_7b.opt -mf runs/llama2/model     (a GPU; Llama 2 needs its licence)\n'
        'Other sizes are in opt_presets/, your own ConvAI2 files go in with `spt data convai2 --from FOLDER`.',
        highlight=False,
        soft_wrap=True,
    )
    return report


def _empty_folder(out: Path) -> Path:
    """A demo starts anew: an earlier demo's files go, anything else is a reason to stop."""
    if out.exists() and not out.is_dir():
        raise UsageError(f'--out {out} is a file: give a folder.')
    files = list(out.iterdir()) if out.exists() else []
    foreign = [f.name for f in files if not f.is_file() or f.name.split('.')[0] != 'model']
    if foreign:
        raise UsageError(f'--out {out} holds {foreign[0]}, which is no file of a demo: give another folder.')
    for file in files:
        file.unlink()
    out.mkdir(parents=True, exist_ok=True)
    return out


def _train(console: Console, options: dict) -> None:
    from parlai.scripts.train_model import TrainLoop, TrainModel
    from parlai.utils import logging

    logging.set_log_level('WARN')
    opt = TrainModel.setup_args().parse_kwargs(**options)
    loop = TrainLoop(opt)
    console.print(f'{_size(loop.agent)}; {loop.world.num_examples()} training examples')
    with Progress(console=console) as progress:
        bar = progress.add_task('training', total=opt['max_train_steps'])
        for report in loop.train_steps():
            progress.update(bar, completed=loop._train_steps)
            values = {k: float(report[k]) for k in ('spt_loss', 'ppl', 'selection', 'contrastive')}
            shown = '  '.join(f'{k} {v:.3g}' for k, v in values.items())
            progress.console.print(
                f'step {loop._train_steps:>4}  {shown}  {_usage(report)}', highlight=False, soft_wrap=True
            )
        progress.update(bar, completed=opt['max_train_steps'])


def _size(agent) -> str:
    trained = sum(p.numel() for p in agent.bare_model.parameters())
    return f'{trained:,} trained parameters around {agent.bare_model.llm.num_parameters:,} frozen ones'


def _usage(report) -> str:
    shares = [float(report[k]) for k in sorted(report) if k.startswith('prompt_usage_') and k[-1].isdigit()]
    return 'prompt usage ' + ' '.join(f'{s:.0%}' for s in shares)


def _evaluate(console: Console, model_file: str, preset: dict) -> dict:
    from parlai.scripts.eval_model import EvalModel
    from parlai.utils import logging

    logging.disable()  # its log and report would stand before the table
    with contextlib.redirect_stdout(io.StringIO()):
        report = EvalModel.main(
            model_file=model_file, task=preset['task'], datatype='valid', batchsize=preset['eval_batchsize']
        )
    logging.enable()
    table = Table('metric', 'value', 'meaning')
    for key, meaning in SHOWN:
        table.add_row(key, f'{float(report[key]):.4g}', meaning)
    table.add_row(
        'prompt_usage_0…', _usage(report).removeprefix('prompt usage '), 'share of the contexts that select each prompt'
    )
    table.add_row(
        'prompt_usage_entropy', f'{float(report["prompt_usage_entropy"]):.3f}', '1: even use, 0: one prompt takes all'
    )
    console.print(table)
    return report


def _chat(console: Console, model_file: str) -> None:
    from parlai.core.agents import create_agent_from_model_file
    from parlai.utils import logging

    logging.disable()
    agent = create_agent_from_model_file(model_file, {'interactive_mode': True, 'task': 'interactive'})
    logging.enable()
    for question in QUESTIONS:
        agent.observe({'id': 'you', 'text': question, 'episode_done': False})
        reply = agent.act()
        scores = ' '.join(f'{s:.2g}' for s in reply['prompt_scores'])
        console.print(f'  you:  {question}', highlight=False, soft_wrap=True)
        console.print(
            f'  SPT:  [bold]{reply["text"]}[/bold]   (prompt {reply["selected_prompt"]}; scores {scores})',
            highlight=False,
            soft_wrap=True,
        )
