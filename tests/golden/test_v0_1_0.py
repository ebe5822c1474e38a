"""Model files of version 0.1.0 still load, and give the same numbers.

Version 0.1.0 wrote the files in `v0_1_0/` with the options in `OPTIONS`, around the OPT of helpers/tiny.py:

- `whole/`: `parlai train_model`, left alone until its twelve updates were done;
- `stopped/`: the same command, stopped by SIGINT in its 15th batch, the first of the two batches of update 8;
- `expected.json`: `curve`, the training losses of `whole/`, step by step; `continued`, those of `stopped/` after
  version 0.1.0 had continued it (the log of update 8 covers its second batch alone); `report`, what
  `parlai eval_model` reported of `whole/model` with `--num-examples 40 --batchsize 4` on the sample task's valid fold.

Afterwards `tiny-opt` replaced the LLM's path in the option files and model files, and the option files lost all other
paths and `starttime`. Nothing else was changed.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import tiny
from helpers.runs import AGENT, SAMPLE, evaluate, logged, states
from parlai.scripts.train_model import TrainModel

FILES = Path(__file__).with_name('v0_1_0')
EXPECTED = json.loads((FILES / 'expected.json').read_text())
OPTIONS = {
    'task': SAMPLE,
    'model': AGENT,
    'num_prompts': 3,
    'prompt_length': 2,
    'prompt_init': 'embedding-scale',
    'label_truncate': 24,
    'max_new_tokens': 6,
    'batchsize': 2,
    'max_train_steps': 12,
    'log_every_n_steps': 1,
    'validation_every_n_epochs': -1,
    'validation_every_n_steps': 5,
    'validation_max_exs': 16,
    'short_final_eval': True,
    'seed': 3,
    'save_every_n_secs': -1,
    'optimizer': 'adam',
    'learningrate': 0.05,
    'lr_scheduler': 'linear',
    'warmup_updates': 3,
    'update_freq': 2,
    'gold_noise': 0.01,
    'no_cuda': True,
}


@pytest.fixture(scope='module')
def llm(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp('llms') / 'tiny-opt')
    tiny.write_llm('opt', folder)
    return folder


def copied(run: str, to: Path) -> Path:
    """The model file of a copy of a run's folder, so that nothing is written beside the original."""
    return Path(shutil.copytree(FILES / run, to / run)) / 'model'


def test_evaluation_gives_the_same_report(llm, tmp_path):
    report = evaluate(copied('whole', tmp_path), llm=llm, num_examples=40)
    measured = {'exps', 'tps', 'ltps', 'ctps', 'gpu_mem'}  # speed and memory differ from run to run
    expected = {name: value for name, value in EXPECTED['report'].items() if name not in measured}
    assert EXPECTED['report'].keys() <= report.keys()
    # The KL, a small difference of float32 logarithms, is rounded differently by another processor.
    assert report['selection'] == pytest.approx(expected.pop('selection'), rel=1e-5, abs=5e-8)
    assert {name: report[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_a_stopped_run_continues_to_the_same_losses(llm, tmp_path):
    model_file = copied('stopped', tmp_path)
    assert max(logged(f'{model_file}.checkpoint')) == 7
    TrainModel.main(**OPTIONS, llm=llm, model_file=str(model_file))
    whole, continued = ({int(step): loss for step, loss in EXPECTED[run].items()} for run in ('curve', 'continued'))
    found = logged(model_file)
    assert found == pytest.approx(continued, rel=1e-5)
    assert found.pop(8) and found == pytest.approx({step: whole[step] for step in whole if step != 8}, rel=1e-5)
    for name, tensor in states(FILES / 'whole' / 'model')['model'].items():
        torch.testing.assert_close(states(model_file)['model'][name], tensor, rtol=1e-5, atol=1e-6)
