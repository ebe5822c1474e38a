"""The `spt` command, for everything that ParlAI's own commands do not do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from spt_parlai.errors import UsageError

app = typer.Typer(
    help='Selective Prompt Tuning for ParlAI. To train, evaluate and chat use `parlai …`; `spt` does the rest.',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Install data in ParlAI's layout.", no_args_is_help=True)
app.add_typer(data, name='data')

_Host = Annotated[str, typer.Option(help='Address to serve at. Any other than 127.0.0.1 needs a token.')]
_Port = Annotated[int, typer.Option(min=0, max=65535, help='Port to serve at.')]
_Token = Annotated[
    str | None,
    typer.Option(help='Token that clients must send (default: none at 127.0.0.1, else a new one, which is printed).'),
]


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help='Folder for the trained model (default: runs/demo).')] = None,
    steps: Annotated[int | None, typer.Option(min=1, help='Training steps (default: those of the preset).')] = None,
    seed: Annotated[int, typer.Option(help='Seed; the same seed repeats the run exactly.')] = 0,
    llm: Annotated[str, typer.Option(help='smollm2, or demo for the small LM inside the package.')] = 'smollm2',
) -> None:
    """Train SPT on the sample task around SmolLM2, evaluate it, and show three exchanges. No network is needed."""
    from spt_parlai.demo.run import run_demo

    run_demo(out or Path('runs') / 'demo', steps, seed, llm)


@data.command()
def convai2(
    source: Annotated[
        Path, typer.Option('--from', help='Folder with your ConvAI2 files (train_self_original.txt and so on).')
    ],
    datapath: Annotated[
        Path | None, typer.Option(help="ParlAI's datapath to install into (default: the one ParlAI uses).")
    ] = None,
    force: Annotated[bool, typer.Option(help='Replace existing files.')] = False,
) -> None:
    """Install your own copy of ConvAI2 where `-t convai2:self` looks for it, so that ParlAI does not download it."""
    from spt_parlai.tasks.convai2_files import install_convai2

    folder = install_convai2(source, datapath, force)
    print(f'ConvAI2 is installed in {folder}.')
    if datapath is not None:
        print(f'Use it with: parlai train_model -t convai2:self -dp {datapath} …')


@app.command()
def plan(
    llm: Annotated[str, typer.Option(help='LLM: id, folder or name. Only its configuration is read.')],
    gpus: Annotated[int, typer.Option(min=1, help='GPUs of each machine.')] = 1,
    machines: Annotated[int, typer.Option(min=1, help='Machines.')] = 1,
    card: Annotated[str | None, typer.Option(help='Kind of GPU: h100, a100-80, rtx4090 … (default: a100-80).')] = None,
    gpu_memory: Annotated[str | None, typer.Option(help='Memory of a GPU, such as 24GiB (default: of --card).')] = None,
    rate: Annotated[float | None, typer.Option(help='TFLOP/s reached in bfloat16 (default: 35% of --card).')] = None,
    network: Annotated[str, typer.Option(help='nvlink, pcie4, ethernet100, ethernet25, or GB/s.')] = 'pcie4',
    agent: Annotated[str, typer.Option(help='spt, prompt_tuning, lora or full.')] = 'spt',
    num_prompts: Annotated[int, typer.Option(min=1, help='K.')] = 4,
    prompt_length: Annotated[int, typer.Option(min=1, help='L.')] = 8,
    batchsize: Annotated[int, typer.Option(min=1, help='Dialogues of a step and process.')] = 4,
    tokens_at_once: Annotated[int, typer.Option(min=1, help='--tokens-at-once.')] = 8192,
    dialogue_tokens: Annotated[int, typer.Option(min=2, help='Tokens of a dialogue.')] = 320,
    turns: Annotated[int, typer.Option(min=1, help='Replies of a dialogue.')] = 7,
    reply_tokens: Annotated[int, typer.Option(min=1, help='Tokens of a reply.')] = 16,
    eval_batchsize: Annotated[int, typer.Option(min=1, help='Replies that are made at once.')] = 32,
    dtype: Annotated[str, typer.Option(help='float32, bfloat16 or float16.')] = 'bfloat16',
) -> None:
    """Will it fit, and how long will an epoch take? An estimate from the LLM's configuration, without its weights."""
    from spt_parlai.planning import report
    from spt_parlai.planning.estimate import Run

    for option, value, known in (
        ('--agent', agent, ('spt', 'prompt_tuning', 'lora', 'full')),
        ('--dtype', dtype, ('float32', 'bfloat16', 'float16')),
    ):
        if value not in known:
            raise UsageError(f'{option} {value}: give {", ".join(known)}.')
    run = Run(
        agent,
        num_prompts,
        prompt_length,
        batchsize,
        dialogue_tokens,
        turns,
        reply_tokens,
        tokens_at_once,
        eval_batchsize,
    )
    on = report.machine(gpus, machines, card, gpu_memory, rate, network)
    print(*report.report(llm, dtype, run, on), sep='\n')


@app.command()
def info(
    model_file: Annotated[str, typer.Argument(help='A model file of this package, or the name of one inside it.')],
) -> None:
    """Show what a model file is: its size, task and results, its LLM, the trained tensors, the progress of training."""
    from spt_parlai import trained_models
    from spt_parlai.checkpoints.summary import facts, read_summary

    path = trained_models.resolve(model_file)
    description, tensors, progress = read_summary(path)
    rows = {
        **facts(path),
        **description,
        **{name: f'{list(tensor.shape)} {tensor.dtype}' for name, tensor in tensors.items()},
        **{key: f'{number:.5g}' for key, number in progress.items()},
    }
    width = max(map(len, rows))
    for name, value in rows.items():  # whole lines: a terminal may wrap them, a pipe must not cut them
        print(f'{name:{width}} {value}')


@app.command()
def dashboard(
    runs: Annotated[list[Path], typer.Argument(help='Model files of training runs, or folders that hold some.')],
    export: Annotated[
        Path | None, typer.Option(help='Write the page into this HTML file, which needs no server and no network.')
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help='Port of the page on this machine.')] = 8010,
) -> None:
    """Show the curves, the use of the prompts and the replies of training runs, live while they train."""
    from spt_parlai.dashboard.runs import find_runs

    model_files = find_runs(runs)
    if export is not None:
        from spt_parlai.checkpoints.files import write_atomically
        from spt_parlai.dashboard.page import page

        text = page(model_files, live=False)
        write_atomically(export, lambda part: part.write_text(text, encoding='utf-8'))
        print(f'Wrote {export} ({len(model_files)} run{"s" * (len(model_files) > 1)}).')
        return
    try:
        from spt_parlai.dashboard.server import serve
    except ModuleNotFoundError as error:
        raise UsageError(
            f"a live page needs {error.name}: pip install 'spt_parlai[chat]', or write a file with --export FILE.html."
        ) from error
    serve(model_files, port)


@app.command()
def chat(
    model_file: Annotated[str, typer.Argument(help='A model file of this package, or the name of one inside it.')],
    compare: Annotated[str | None, typer.Option(help='A second model, which answers beside the first one.')] = None,
    host: _Host = '127.0.0.1',
    port: _Port = 8020,
    token: _Token = None,
    personas: Annotated[
        Path | None, typer.Option(help="Personas to shuffle: a file in ConvAI2's format (default: the sample task's).")
    ] = None,
    ratings: Annotated[Path, typer.Option(help='JSONL file that the ratings of replies are appended to.')] = Path(
        'ratings.jsonl'
    ),
) -> None:
    """Talk to a model on a page: its persona, its prompts and their scores. OpenAI's protocol is served, too."""
    files = [model_file] if compare is None else [model_file, compare]
    _server('chat')(files, host, port, token, True, personas, ratings)


@app.command()
def serve(
    model_file: Annotated[str, typer.Argument(help='A model file of this package, or the name of one inside it.')],
    host: _Host = '127.0.0.1',
    port: _Port = 8020,
    token: _Token = None,
) -> None:
    """Serve a model to programs that speak OpenAI's chat protocol."""
    _server('serve')([model_file], host, port, token, False)


def _server(command: str) -> Callable[..., None]:
    try:
        from spt_parlai.server.run import serve as run
    except ModuleNotFoundError as error:
        raise UsageError(f"spt {command} needs {error.name}: pip install 'spt_parlai[chat]'.") from error
    return run


@app.command()
def llms() -> None:
    """List the names that `--llm` takes, besides Hugging Face ids, folders and GGUF files."""
    from rich.console import Console
    from rich.table import Table

    from spt_parlai import hub

    table = Table(box=None)
    for column in ('--llm', 'the same LLM at the hub', 'file', 'licence', 'at hand'):
        table.add_column(column, overflow='fold')
    for row in hub.named_llms():
        table.add_row(*row)
    Console().print(table)


@app.command()
def models() -> None:
    """List the trained models inside the package, which `-mf`, `--init-model` and `spt` take by their names."""
    from rich.console import Console
    from rich.table import Table

    from spt_parlai import trained_models
    from spt_parlai.checkpoints.summary import read_summary

    table = Table(box=None)
    for column in ('-mf', 'agent', '--llm', 'prompts', 'card'):
        table.add_column(column, overflow='fold')
    for name in trained_models.names():
        model_file = Path(trained_models.resolve(name))
        about = read_summary(model_file).description
        prompts = f'{about["num_prompts"]} of {about["prompt_length"]} tokens'
        table.add_row(name, about['agent'], about['llm'], prompts, str(model_file.with_name('README.md')))
    Console().print(table)


@app.command()
def strip(
    model_file: Annotated[str, typer.Argument(help='A model file of this package.')],
    out: Annotated[Path, typer.Option(help='Model file to write.')],
    llm: Annotated[str | None, typer.Option(help='Another name of the same LLM, for the copy.')] = None,
    force: Annotated[bool, typer.Option(help='Replace an existing model file.')] = False,
) -> None:
    """Copy a model file without the optimizer and the paths of its run: what evaluation and chats need."""
    from spt_parlai import trained_models
    from spt_parlai.checkpoints.strip import strip as run

    size = run(trained_models.resolve(model_file), out, llm, force)
    print(f'Wrote {out}: {size / 1e6:.2f} MB.')


@app.command()
def push(
    model_file: Annotated[str, typer.Argument(help='A model file of this package.')],
    repo: Annotated[
        str | None, typer.Argument(help='OWNER/NAME of a repository of the Hugging Face hub, which is made if need be.')
    ] = None,
    folder: Annotated[Path | None, typer.Option(help='Write this folder instead.')] = None,
    report: Annotated[Path | None, typer.Option(help='A file of eval_model --report-filename, for the card.')] = None,
    private: Annotated[bool, typer.Option(help='Make the repository a private one.')] = False,
    force: Annotated[bool, typer.Option(help='Replace the model in the folder.')] = False,
) -> None:
    """Share a model file, without what only training needs and with a card; others load it with -mf hf:OWNER/NAME."""
    from spt_parlai import trained_models
    from spt_parlai.checkpoints.push import push as run
    from spt_parlai.checkpoints.push import write_folder

    if (repo is None) == (folder is None):
        raise UsageError('give a repository, OWNER/NAME, or --folder FOLDER.')
    path = trained_models.resolve(model_file)
    if folder is not None:
        write_folder(path, folder, None, report, force)
        print(f'Wrote {folder}; load it with -mf {folder / "model"}.')
    elif repo is not None:
        print(f'Wrote {run(path, repo, report, private)}; load it with -mf hf:{repo}.')


@app.command('import-authors')
def import_authors(
    source: Annotated[
        Path, typer.Argument(help='Their checkpoint: a DeepSpeed folder, or one .pt, .bin or .safetensors file.')
    ],
    llm: Annotated[str, typer.Option(help='The LLM of the checkpoint: a Hugging Face id or a local folder.')],
    out: Annotated[Path, typer.Option(help='Model file to write.')],
    llm_revision: Annotated[str | None, typer.Option(help='Revision of the Hugging Face id.')] = None,
    llm_dtype: Annotated[
        str, typer.Option(help='As --llm-dtype in training: auto, float32, bfloat16 or float16.')
    ] = 'auto',
    force: Annotated[bool, typer.Option(help='Replace an existing model file.')] = False,
) -> None:
    """Convert a checkpoint of the paper's authors to a model file of SptAgent."""
    from parlai.utils import logging

    from spt_parlai.agents.import_authors import import_authors as run

    logging.set_log_level('WARN')
    K, L, D = run(source, llm, out, llm_revision, llm_dtype, force).prompts.shape
    print(f'Wrote {out}: {K} soft prompts of {L} tokens (hidden size {D}) and their retriever, for --llm {llm}.')
    print(f'Use it with: parlai interactive -mf {out}   or: parlai eval_model -mf {out} -t convai2:self')


@app.command()
def judge(
    first: Annotated[Path, typer.Argument(help='World log of model A: eval_model --world-logs FILE.')],
    second: Annotated[Path, typer.Argument(help='World log of model B, of the same task.')],
    url: Annotated[
        str, typer.Option('--url', '--api-base', help='URL of the judge, such as https://api.openai.com/v1.')
    ],
    model: Annotated[str, typer.Option('--model', '--api-model', help='Name by which the endpoint knows the judge.')],
    pairs: Annotated[int, typer.Option(min=0, help='Pairs of replies to judge (0: all).')] = 100,
    seed: Annotated[int, typer.Option(help='Draws the pairs.')] = 1,
    out: Annotated[Path | None, typer.Option(help='JSONL file for every pair and what the judge chose.')] = None,
    trim_responses: Annotated[bool, typer.Option(help="Cut the replies as eval_model's option does.")] = False,
    instruction: Annotated[str | None, typer.Option(help='What makes a reply the better one, for the judge.')] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help='Longest answer of the judge.')] = 16,
    parameters: Annotated[
        str, typer.Option('--api-parameters', help='Further entries of every request, as a JSON object.')
    ] = '{}',
    key_env: Annotated[
        str, typer.Option('--api-key-env', help='Environment variable that holds the key; none is sent without it.')
    ] = 'OPENAI_API_KEY',
    timeout: Annotated[float, typer.Option('--api-timeout', min=0.001, help='Seconds to wait for an answer.')] = 60.0,
    retries: Annotated[int, typer.Option('--api-retries', min=0, help='How often a request is repeated.')] = 6,
    concurrency: Annotated[int, typer.Option('--api-concurrency', min=1, help='Requests under way at a time.')] = 8,
) -> None:
    """Let an LLM compare the replies of two world logs in both orders: wins, ties, and whether the orders agree."""
    from spt_parlai.agents.in_context_api import chat_endpoint
    from spt_parlai.judge import INSTRUCTION, run

    given = {
        'api_base': url,
        'api_model': model,
        'max_new_tokens': max_new_tokens,
        'api_temperature': 0.0,
        'api_parameters': parameters,
        'api_key_env': key_env,
        'api_timeout': timeout,
        'api_retries': retries,
        'api_concurrency': concurrency,
    }
    run(first, second, chat_endpoint(given), pairs, seed, trim_responses, out, instruction or INSTRUCTION)


@app.command('export-peft')
def export_peft(
    model_file: Annotated[str, typer.Argument(help='A model file of SptAgent, or the name of one inside the package.')],
    out: Annotated[Path, typer.Option(help='Folder to write.')],
    prompt: Annotated[
        int | None, typer.Option(help='Number of the prompt to export (default: all, to OUT/prompt_0 and so on).')
    ] = None,
    force: Annotated[bool, typer.Option(help='Replace existing adapters.')] = False,
) -> None:
    """Export soft prompts as prompt-tuning adapters for Hugging Face PEFT. Needs neither the LLM nor the network."""
    from spt_parlai import trained_models
    from spt_parlai.checkpoints.peft import export_peft as run

    for folder in run(trained_models.resolve(model_file), out, prompt, force):
        print(f'Wrote {folder}; load it with peft.PeftModel.from_pretrained(llm, {str(folder)!r}).')


@app.command(
    'parlai',
    add_help_option=False,
    context_settings={'allow_extra_args': True, 'ignore_unknown_options': True, 'help_option_names': []},
)
def run_parlai(context: typer.Context) -> None:
    """Run one of ParlAI's commands with this package loaded, as `parlai` does where this package installed it."""
    from spt_parlai.parlai_command import main as parlai_main

    sys.argv = ['parlai', *context.args]
    parlai_main()


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option('--version', help='Print the version and exit.')] = False) -> None:
    if show:
        from spt_parlai import __version__

        print(__version__)
        raise typer.Exit


def main() -> None:
    app()
