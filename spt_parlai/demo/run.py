"""`spt demo`: train, evaluate and chat in minutes on a CPU, with ParlAI's own training loop, evaluation and agent."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spt_parlai import hub
from spt_parlai.checkpoints.files import check_writable
from spt_parlai.errors import UsageError, naming

PRESETS = {llm: Path(__file__).with_name(f'{llm}.opt') for llm in ('smollm2', 'demo')}
PERSONA = 'i am a nurse.|i have two cats.|i love to play the guitar.|i live near the sea.'
QUESTIONS = ('hello ! how are you today ?', 'what do you do for a living ?', 'do you have any hobbies or pets ?')
QUALITY = (
    ('ppl', 'perplexity of a token'),
    ('ppl_word', 'perplexity of a word'),
    ('token_acc', 'share of the tokens that are the most probable ones'),
    ('unigram_f1', "words that a reply shares with the person's, F1 in percent"),
    ('rougeL', 'longest common subsequence with it, ROUGE-L in percent'),
)
OBJECTIVE = (
    ('nll', 'prompt NLL, summed over the prompts'),
    ('selection', 'selection KL'),
    ('contrastive', 'context-prompt contrast'),
    ('fusion', 'fusion NLL'),
)


def run_demo(
    out: Path, steps: int | None = None, seed: int = 0, llm: str = 'smollm2', console: Console | None = None
) -> dict:
    """Train, evaluate and chat.

    :param out: folder for the model; files of an earlier demo in it are deleted.
    :param steps: training steps; default: those of the preset.
    :param llm: `smollm2`, or `demo` for the small LM inside the package.
    :param console: where to print; default: the terminal.
    :return: the report of the evaluation.
    :raises UsageError: if `out` holds anything but an earlier demo, or there is no such LLM.
    """
    from transformers.utils.logging import disable_progress_bar

    if llm not in PRESETS:
        raise UsageError(f'--llm {llm}: the demo runs around {" or ".join(PRESETS)}; give one of them.')
    hub.resolve(llm)  # dequantizes the LLM at its first use, with a bar of its own
    disable_progress_bar()
    console = console or Console(highlight=False)
    preset = json.loads(PRESETS[llm].read_text())
    model_file = str(_empty_folder(out) / 'model')
    given = {'model_file': model_file, 'seed': seed}
    if steps:
        given |= {'max_train_steps': steps, 'log_every_n_steps': max(steps // 10, 1)}

    console.rule('[bold]1. train')
    _show_command(console, 'train_model', '-o', _path_to_type(PRESETS[llm]), *_flags(given))
    _train({**preset, **given})
    console.rule('[bold]2. evaluate, before and after')
    test = {'task': preset['task'], 'datatype': 'valid', 'batchsize': preset['eval_batchsize']}
    alone = {'model': 'spt_parlai.agents:TextPromptAgent', 'llm': llm}
    alone |= {name: preset[name] for name in ('llm_dtype',) if name in preset}
    _show_command(console, 'eval_model', *_flags({**alone, **test}))
    before = _evaluate({**alone, **test})
    _show_command(console, 'eval_model', *_flags({'model_file': model_file, **test}))
    report = _evaluate({'model_file': model_file, **test})
    _compare(console, before, report)
    console.rule('[bold]3. chat')
    speaker = 'spt:smollm2' if llm == 'smollm2' else model_file
    if speaker != model_file:
        console.print('With the model inside the package, which was trained on ConvAI2:')
    _show_command(console, 'interactive', *_flags({'model_file': speaker, 'persona': PERSONA}))
    _chat(console, speaker)
    console.rule('[bold]next')
    console.print(
        'Talk to it yourself:\n'
        '  parlai interactive -mf spt:smollm2 --persona "i like cats.|i am a nurse."\n'
        'Train on ConvAI2, which is downloaded once:\n'
        '  parlai train_model -o opt_presets/smollm2.opt -mf runs/smollm2/model\n'
        '`spt data convai2 --from FOLDER` installs your own copy of ConvAI2. `spt llms` lists other LLMs.',
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
    short = {'model_file': '-mf', 'model': '-m', 'task': '-t', 'datatype': '-dt', 'batchsize': '-bs'}
    return [
        word for name, value in options.items() for word in (short.get(name, '--' + name.replace('_', '-')), str(value))
    ]


def _show_command(console: Console, *words: str) -> None:
    console.print('$ ' + shlex.join(('parlai', *words)), style='cyan', soft_wrap=True)


def _train(options: dict) -> None:
    from parlai.scripts.train_model import TrainLoop, TrainModel
    from parlai.utils import logging

    logging.set_log_level('INFO')
    for _report in TrainLoop(TrainModel.setup_args().parse_kwargs(**options)).train_steps():
        pass


def _evaluate(options: dict) -> dict:
    from parlai.scripts.eval_model import EvalModel
    from parlai.utils import logging

    with contextlib.redirect_stdout(io.StringIO()):  # the report would come before the table
        report = EvalModel.main(**options, loglevel='error')
    logging.set_log_level('INFO')
    return report


def _compare(console: Console, before: dict, after: dict) -> None:
    from spt_parlai.metrics.report_table import usage

    table = Table('metric', 'the LLM alone', 'SPT', 'meaning')
    for key, meaning in QUALITY:
        table.add_row(key, f'{float(before[key]):.4g}', f'{float(after[key]):.4g}', meaning)
    table.add_section()
    for key, meaning in OBJECTIVE:
        table.add_row(key, '', f'{float(after[key]):.4g}', meaning)
    table.add_row(
        'prompt_usage_0…',
        '',
        ' '.join(f'{share:.0%}' for share in usage(after)),
        'share of the contexts that select each prompt',
    )
    entropy = f'{float(after["prompt_usage_entropy"]):.3f}'
    table.add_row('prompt_usage_entropy', '', entropy, '1: even use; 0: one prompt is always selected')
    console.print(table)


def _chat(console: Console, model_file: str) -> None:
    from parlai.core.agents import create_agent_from_model_file
    from parlai.utils import logging

    from spt_parlai.agents.chat_commands import shares_of

    logging.disable()
    chat = {'interactive_mode': True, 'task': 'interactive', 'persona': PERSONA}
    agent = create_agent_from_model_file(model_file, chat)
    logging.enable()
    for question in QUESTIONS:
        agent.observe({'id': 'you', 'text': question, 'episode_done': False})
        reply = agent.act()
        console.print(f'  you:  {question}', soft_wrap=True)
        console.print(f'  SPT:  [bold]{escape(reply["text"])}[/bold]', soft_wrap=True)
        for k, share in enumerate(shares_of(reply['prompt_scores'])):
            bar = '█' * round(24 * share)
            style = 'cyan' if k == reply['selected_prompt'] else 'dim'
            console.print(f'        prompt {k} {bar:24} {share:4.0%}', style=style)
