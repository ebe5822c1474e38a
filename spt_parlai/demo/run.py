"""`spt demo`: train, evaluate and chat in a minute on a CPU, with ParlAI's own training loop, evaluation and agent."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from spt_parlai.checkpoints.files import check_writable
from spt_parlai.errors import UsageError, naming

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


def run_demo(out: Path, steps: int | None = None, seed: int = 0, console: Console | None = None) -> dict:
    """Train, evaluate and chat.

    :param out: folder for the model; files of an earlier demo in it are deleted.
    :param steps: training steps; default: those of the preset.
    :param console: where to print; default: the terminal.
    :return: the report of the evaluation.
    :raises UsageError: if `out` holds anything but an earlier demo.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the demo LM loads at once
    console = console or Console(highlight=False)
    preset = json.loads(PRESET.read_text())
    model_file = str(_empty_folder(out) / 'model')
    given = {'model_file': model_file, 'seed': seed}
    if steps:
        given |= {'max_train_steps': steps, 'log_every_n_steps': max(steps // 10, 1)}

    console.rule('[bold]1. train')
    _show_command(console, 'train_model', '-o', _path_to_type(PRESET), *_flags(given))
    _train(console, {**preset, **given, 'loglevel': 'error'})
    console.rule('[bold]2. evaluate')
    test = {
        'model_file': model_file,
        'task': preset['task'],
        'datatype': 'valid',
        'batchsize': preset['eval_batchsize'],
    }
    _show_command(console, 'eval_model', *_flags(test))
    report = _evaluate(console, test)
    console.rule('[bold]3. chat')
    _show_command(console, 'interactive', *_flags({'model_file': model_file}))
    _chat(console, model_file)
    console.rule('[bold]next')
    console.print(
        'Training on ConvAI2 around a real LLM; both are downloaded once:\n'
        '  parlai train_model -t convai2:self -m spt_parlai.agents:SptAgent -mf runs/opt125m/model\n'
        'The presets for larger LLMs are in the folder opt_presets of the repository.\n'
        '`spt data convai2 --from FOLDER` installs your own copy of ConvAI2.',
        soft_wrap=True,
    )
    return report


def _empty_folder(out: Path) -> Path:
    """Make the folder `out`, or delete the files of an earlier demo from it."""
    if out.exists() and not out.is_dir():
        raise UsageError(f'--out {out} is a file: give a folder.')
    files = list(out.iterdir()) if out.exists() else []
    foreign = [f.name for f in files if not f.is_file() or f.name.split('.')[0] != 'model']
    if foreign:
        raise UsageError(f'--out {out} holds {foreign[0]}, which no demo wrote: give another folder.')
    for file in files:
        file.unlink()
    with naming('--out', out):
        check_writable(out / 'model')
    out.mkdir(parents=True, exist_ok=True)
    return out


def _path_to_type(file: Path) -> str:
    """Relative to the working directory if the file is below it."""
    return os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)


def _flags(options: dict) -> list[str]:
    """ParlAI's command-line flags for these options."""
    short = {'model_file': '-mf', 'task': '-t', 'datatype': '-dt', 'batchsize': '-bs'}
    return [
        word for name, value in options.items() for word in (short.get(name, '--' + name.replace('_', '-')), str(value))
    ]


def _show_command(console: Console, *words: str) -> None:
    console.print('$ ' + shlex.join(('parlai', *words)), style='cyan', soft_wrap=True)


def _train(console: Console, options: dict) -> None:
    from parlai.scripts.train_model import TrainLoop, TrainModel
    from parlai.utils import logging

    logging.set_log_level('ERROR')  # ParlAI warns that validation by perplexity writes no replies
    opt = TrainModel.setup_args().parse_kwargs(**options)
    loop = TrainLoop(opt)
    console.print(f'{_size(loop.agent)}; {loop.world.num_examples()} training examples')
    with Progress(console=console) as progress:
        bar = progress.add_task('training', total=opt['max_train_steps'])
        for report in loop.train_steps():
            progress.update(bar, completed=loop._train_steps)
            values = {k: float(report[k]) for k in ('spt_loss', 'ppl', 'selection', 'contrastive')}
            shown = '  '.join(f'{k} {v:.3g}' for k, v in values.items())
            line = f'step {loop._train_steps:>4}  {shown}  prompt usage {_usage(report)}'
            progress.console.print(line, soft_wrap=True)
        progress.update(bar, completed=opt['max_train_steps'])


def _size(agent) -> str:
    trained = sum(p.numel() for p in agent.bare_model.parameters())
    return f'{trained:,} trained parameters around {agent.bare_model.llm.num_parameters:,} frozen ones'


def _usage(report) -> str:
    shares = [float(report[k]) for k in sorted(report) if k.startswith('prompt_usage_') and k[-1].isdigit()]
    return ' '.join(f'{share:.0%}' for share in shares)


def _evaluate(console: Console, options: dict) -> dict:
    from parlai.scripts.eval_model import EvalModel
    from parlai.utils import logging

    logging.disable()  # ParlAI's log and report would come before the table
    with contextlib.redirect_stdout(io.StringIO()):
        report = EvalModel.main(**options)
    logging.enable()
    table = Table('metric', 'value', 'meaning')
    for key, meaning in SHOWN:
        table.add_row(key, f'{float(report[key]):.4g}', meaning)
    table.add_row('prompt_usage_0…', _usage(report), 'share of the contexts that select each prompt')
    entropy = float(report['prompt_usage_entropy'])
    table.add_row('prompt_usage_entropy', f'{entropy:.3f}', '1: even use; 0: one prompt is always selected')
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
        console.print(f'  you:  {question}', soft_wrap=True)
        console.print(f'  SPT:  [bold]{escape(reply["text"])}[/bold]', soft_wrap=True)
        console.print(f'        prompt {reply["selected_prompt"]}; scores {scores}', style='dim')
