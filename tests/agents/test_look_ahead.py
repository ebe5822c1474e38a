"""An evaluation that predicts whole dialogues reports, logs and counts what it does turn by turn."""

import json

import pytest
import torch
from helpers import warm
from helpers.runs import AGENT, SAMPLE, evaluate, turns
from parlai.scripts.multiprocessing_eval import MultiProcessEval
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from spt_parlai.agents import look_ahead
from spt_parlai.model.prompted_lm import PromptedLM

TIMES = ('exps', 'ltps', 'ctps', 'tps', 'gpu_mem')
ALONE = {'text_truncate', 'history_size', 'score_noise', 'rank_candidates'}
# cut contexts, drawn scores, dialogues of one turn


@pytest.fixture(scope='module')
def wide_llm(tiny_llms, tmp_path_factory):
    """A tiny LLM whose window holds whole dialogues of the sample task."""
    folder = tmp_path_factory.mktemp('wide')
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(tiny_llms.opt, max_position_embeddings=900)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llms.opt).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    'more',
    [
        {},
        {'text_truncate': 60},
        {'history_size': 3},
        {'dynamic_batching': 'full', 'text_truncate': 200},
        {'num_examples': 9},
        {'task': 'integration_tests:candidate', 'rank_candidates': True, 'num_examples': 8},
        {'datatype': 'train:evalmode', 'num_examples': 12},
        {'model': 'spt_parlai.agents:TextPromptAgent', 'prompt_text': 'a chat .'},
        {'model': 'spt_parlai.agents:PromptTuningAgent', 'prompt_length': 2},
        {'model': 'spt_parlai.agents:LoraAgent', 'lora_targets': 'q_proj,v_proj'},
        {'model': 'spt_parlai.agents:SptLoraAgent'},
        {'force_prompt': 1},
        {'prompt_assignment': 'wta'},
        {'prompt_assignment': 'mixture'},
        {'score_noise': 0.5},
        {'prompt_chunk': 2},
        {'tokens_at_once': 400},
        {'contrastive_text': 'persona', 'contrastive_pairs': 'across'},
        {'metrics': 'all', 'skip_generation': False, 'max_new_tokens': 4, 'num_examples': 8},
        {'skip_generation': False, 'max_new_tokens': 12, 'num_examples': 12},
        {
            'skip_generation': False,
            'max_new_tokens': 12,
            'beam_block_ngram': 1,
            'text_truncate': 60,
            'tokens_at_once': 400,
        },
        {'skip_generation': False, 'max_new_tokens': 6, 'beam_context_block_ngram': 1, 'num_examples': 12},
        {'skip_generation': False, 'max_new_tokens': 6, 'inference': 'topk', 'num_examples': 12},
        {'skip_generation': False, 'max_new_tokens': 6, 'inference': 'beam', 'beam_size': 2, 'num_examples': 8},
        {'skip_generation': False, 'max_new_tokens': 4, 'dynamic_batching': 'full', 'num_examples': 12},
    ],
    ids=str,
)
def test_same_report_and_log(wide_llm, tmp_path, monkeypatch, more):
    spt = {'num_prompts': 3, 'prompt_length': 2}
    forward, rows = PromptedLM.forward, []

    def counted(self, contexts, *args, **kwargs):
        rows.append(len(contexts))
        return forward(self, contexts, *args, **kwargs)

    monkeypatch.setattr(PromptedLM, 'forward', counted)
    reports, logs, seen = [], [], []
    for packing in (True, False):
        rows.clear()
        log = tmp_path / f'{packing}.jsonl'
        settings = {
            'model': AGENT, 'llm': wide_llm, 'label_truncate': 24, 'seed': 7, 'skip_generation': True,
            'task': SAMPLE, 'num_examples': 40, 'world_logs': str(log), **({} if 'model' in more else spt), **more,
        }  # fmt: skip
        reports.append(evaluate(dialogue_packing=packing, **settings))
        logs.append(turns(log))
        seen.append(sum(rows))
    ahead, alone = ({k: v for k, v in report.items() if k not in TIMES} for report in reports)
    assert ahead == pytest.approx(alone, rel=1e-5, abs=1e-6)
    _assert_same_turns(*logs)
    if not ALONE & {*more, more.get('model')}:
        assert seen[0] <= seen[1] / 2


def test_same_report_and_logs_of_two_processes(wide_llm, tmp_path, monkeypatch):
    warm.patch_workers(monkeypatch)
    reports, logs = [], []
    for packing in (True, False):
        folder = tmp_path / str(packing)
        folder.mkdir()
        file = folder / 'report.json'
        MultiProcessEval.main(
            model=AGENT, llm=wide_llm, num_prompts=3, prompt_length=2, label_truncate=24, seed=7, max_new_tokens=4,
            task=SAMPLE, datatype='valid', batchsize=4, num_examples=24, distributed_world_size=2,
            dialogue_packing=packing, report_filename=str(file), world_logs=str(folder / 'log.jsonl'),
        )  # fmt: skip
        reports.append(json.loads(file.read_text())['report'])
        logs.append([turn for log in sorted(folder.glob('log*.jsonl')) for turn in turns(log)])
        assert len(list(folder.glob('log*.jsonl'))) == 2
    ahead, alone = ({k: v for k, v in report.items() if k not in TIMES} for report in reports)
    assert ahead == pytest.approx(alone, rel=1e-5, abs=1e-6)
    _assert_same_turns(*logs)


def _assert_same_turns(ahead, alone):
    """The same texts and fields, and the same numbers up to rounding."""
    assert [[m.get('text') for m in turn] for turn in ahead] == [[m.get('text') for m in turn] for turn in alone]
    assert [[set(m) for m in turn] for turn in ahead] == [[set(m) for m in turn] for turn in alone]
    assert [_numbers(turn) for turn in ahead] == [pytest.approx(_numbers(turn), rel=1e-4, abs=1e-5) for turn in alone]
    assert ahead and all(map(_numbers, ahead))


def test_one_prefill_for_all_replies_of_a_dialogue(wide_llm, monkeypatch):
    """Greedy replies begin from the pass that predicts the dialogue; drawn ones keep their order of draws."""
    prefilled, encoder = [], PromptedLM.encoder

    def counted(self, contexts, *args, **kwargs):
        prefilled.append(len(contexts))
        return encoder(self, contexts, *args, **kwargs)

    monkeypatch.setattr(PromptedLM, 'encoder', counted)
    settings = {'model': AGENT, 'llm': wide_llm, 'label_truncate': 24, 'seed': 7, 'max_new_tokens': 4}
    assert evaluate(**settings, num_examples=8)['f1'] >= 0
    assert not prefilled
    evaluate(**settings, num_examples=8, inference='topk')
    assert sum(prefilled) == 8


def test_what_was_not_foreseen_is_predicted_by_itself(wide_llm, monkeypatch):
    settings = {'model': AGENT, 'llm': wide_llm, 'label_truncate': 24, 'seed': 7, 'skip_generation': True}
    key = look_ahead._key
    expected = evaluate(**settings, num_examples=8)
    count = iter(range(10**6))
    monkeypatch.setattr(look_ahead, '_key', lambda *of: (*key(*of), next(count)))
    assert evaluate(**settings, num_examples=8)['spt_loss'] == pytest.approx(expected['spt_loss'], rel=1e-5)


def _numbers(turn) -> dict[str, float]:
    """The metrics that a world log keeps of a turn."""
    kept = {}
    for number, message in enumerate(turn):
        for name, value in message.get('metrics', {}).items():
            kept[f'{number} {name}'] = float(value['value'] if isinstance(value, dict) else value)
    return kept
