"""The embedded demo: the LM the package carries, and `spt demo` from its first to its last line."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from spt_parlai.cli import app
from spt_parlai.demo.run import PRESETS, run_demo
from spt_parlai.errors import UsageError
from spt_parlai.hub import DEMO_FOLDER, load_causal_lm, load_tokenizer

ROOT = Path(__file__).parents[2]


def test_the_demo_lm_is_small_and_in_half_precision():
    lm = load_causal_lm('demo')
    assert sum(p.numel() for p in lm.parameters()) <= 8_000_000
    assert next(lm.parameters()).dtype == torch.float16
    assert sum(f.stat().st_size for f in DEMO_FOLDER.iterdir()) < 16_000_000
    assert len(load_tokenizer('demo')) == lm.config.vocab_size


def test_the_demo_lm_knows_english_better_than_chance():
    """Its loss on a plain sentence is far below ln V = 9.0 nats, so the weights and the tokenizer belong together."""
    lm, tokenizer = load_causal_lm('demo', dtype=torch.float32), load_tokenizer('demo')
    ids = torch.tensor(
        [[tokenizer.bos_token_id, *tokenizer.encode('i like to play the guitar . what do you like to do ?')]]
    )
    with torch.no_grad():
        assert lm(input_ids=ids, labels=ids).loss < 5


def test_the_demo_runs_to_its_end(tmp_path, capsys):
    report = run_demo(tmp_path / 'demo', steps=3, seed=0, llm='demo')
    shown = capsys.readouterr().out
    for heading in ('1. train', '2. evaluate, before and after', '3. chat', 'next'):
        assert heading in shown
    assert shown.count('SPT:') == 3 and 'persona' in shown and 'prompt_usage_0…' in shown
    assert 0 < float(report['ppl']) and (tmp_path / 'demo' / 'model').exists()
    check_commands(re.findall(r'^\$ (parlai .*)$', shown, flags=re.MULTILINE), tmp_path / 'demo' / 'model')


def check_commands(commands, model_file):
    """The three commands that the demo prints do what the demo does."""
    from parlai.core.script import SCRIPT_REGISTRY, setup_script_registry

    setup_script_registry()
    parsed = {}
    for _, script, *arguments in map(shlex.split, commands):
        parsed[script] = SCRIPT_REGISTRY[script].klass.setup_args().parse_args(arguments)
        assert parsed[script]['model_file'] in (str(model_file), None)  # None: the LLM alone
    assert [command.split()[1] for command in commands] == ['train_model', 'eval_model', 'eval_model', 'interactive']
    preset = json.loads(PRESETS['demo'].read_text())
    wanted = {**preset, 'max_train_steps': 3, 'log_every_n_steps': 1, 'seed': 0}
    assert {k: parsed['train_model'][k] for k in wanted} == wanted
    assert parsed['eval_model']['task'] == preset['task']
    assert parsed['eval_model']['batchsize'] == preset['eval_batchsize']


def test_the_demo_keeps_what_is_not_its_own(tmp_path):
    """A folder with other files in it is refused, not emptied."""
    (tmp_path / 'thesis.tex').write_text('…')
    with pytest.raises(UsageError, match='--out'):
        run_demo(tmp_path, steps=1, llm='demo')
    assert (tmp_path / 'thesis.tex').exists()


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UsageError, match=f'^--out {tmp_path}/file/demo: {tmp_path}/file is a file'):
        run_demo(tmp_path / 'file' / 'demo', steps=1, llm='demo')


def test_presets_are_options_that_parlai_knows():
    from parlai.scripts.train_model import TrainModel

    for preset in [*PRESETS.values(), *sorted((ROOT / 'opt_presets').glob('*.opt'))]:
        values = json.loads(preset.read_text())
        opt = TrainModel.setup_args().parse_args(['-o', str(preset), '-mf', '/nowhere/model'])
        assert {k: opt[k] for k in values} == values, preset.name


def test_the_command_lists_its_subcommands():
    from typer.testing import CliRunner

    shown = CliRunner().invoke(app, ['--help']).output
    assert all(name in shown for name in ('demo', 'data', 'info'))
