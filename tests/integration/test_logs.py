"""World logs, reports, metrics and model cards of a run, and ParlAI's scripts that read a model file."""

import io
import json
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import warm
from helpers.runs import AGENT, SAMPLE, SMALL, evaluate, train, turns
from parlai.core.agents import create_agent_from_model_file
from parlai.scripts.build_dict import BuildDict
from parlai.scripts.display_model import DisplayModel
from parlai.scripts.eval_wordstat import EvalWordStat
from parlai.scripts.generate_model_card import GenerateModelCard
from parlai.scripts.interactive import Interactive
from parlai.scripts.multiprocessing_eval import MultiProcessEval
from parlai.scripts.profile_train import ProfileTrain
from parlai.scripts.self_chat import SelfChat
from parlai.scripts.train_model import TrainModel
from parlai.scripts.vacuum import Vacuum
from parlai.utils import logging


@pytest.fixture(scope='module')
def model_file(tiny_llms, tmp_path_factory):
    path = tmp_path_factory.mktemp('logs') / 'm'
    train(path, tiny_llms.opt, max_train_steps=4, num_prompts=2)
    return path


# ---- logs and metrics -----------------------------------------------------------------------------------


def test_world_logs_hold_prompt_and_scores_of_every_turn(model_file, tmp_path):
    report = evaluate(
        model_file, world_logs=tmp_path / 'log', report_filename=tmp_path / 'report.json', num_examples=24
    )
    pairs = turns(tmp_path / 'log')
    assert len(pairs) == report['exs'] == 24
    for _, act in pairs:
        assert (
            act['selected_prompt'] == max(range(2), key=act['prompt_scores'].__getitem__)
            and len(act['prompt_scores']) == 2
        )
        assert act['text'] is not None and act['metrics']['ppl'] > 1
    written = json.loads((tmp_path / 'report.json').read_text())['report']
    assert written['ppl'] == pytest.approx(report['ppl']) and written['prompt_usage_0'] == report['prompt_usage_0']
    assert report['prompt_usage_1'] == pytest.approx(sum(act['selected_prompt'] for _, act in pairs) / 24)


def test_world_logs_of_chosen_fields_in_parlais_text_format(model_file, tmp_path):
    evaluate(model_file, world_logs=tmp_path / 'log', save_format='parlai', num_examples=8)
    text = (tmp_path / 'log').read_text()
    assert len(re.findall('\ttext:', text)) == 8 and 'labels:' in text
    evaluate(model_file, world_logs=tmp_path / 'chosen', log_keep_fields='text,selected_prompt', num_examples=8)
    assert all(set(act) <= {'text', 'selected_prompt', 'id'} for _, act in turns(tmp_path / 'chosen'))


def test_world_logs_of_a_training_run(tiny_llms, tmp_path):
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=1, world_logs=tmp_path / 'log.jsonl')
    assert all('selected_prompt' in act for _, act in turns(tmp_path / 'log'))


def test_metrics_are_those_asked_for(model_file):
    everything, some = (evaluate(model_file, num_examples=8, metrics=m) for m in ('all', 'f1,rouge'))
    assert {'bleu-1', 'bleu-4', 'f1', 'accuracy'} <= set(everything)
    assert {'f1', 'ppl'} <= set(some) and 'bleu-4' not in some
    assert find_spec('rouge') is None or {'rouge_1', 'rouge_L'} <= set(some) & set(everything)
    assert some['f1'] == everything['f1']


@pytest.mark.parametrize('micro', [False, True])
def test_several_tasks_are_reported_each_and_together(model_file, micro):
    tasks = (SAMPLE, 'integration_tests:nocandidate')
    report = evaluate(model_file, task=','.join(tasks), aggregate_micro=micro, skip_generation=True)
    exs = [report[f'{task}/exs'] for task in tasks]
    own = [report[f'{task}/nll'] for task in tasks]
    assert exs == [108, 100] and report['exs'] == 208
    wanted = sum(n * e for n, e in zip(own, exs, strict=True)) / sum(exs) if micro else sum(own) / 2
    assert report['nll'] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize('fold', ['valid', 'test', 'valid:stream', 'train:evalmode', 'train:evalmode:stream'])
def test_every_fold_is_evaluated_whole(model_file, fold):
    report = evaluate(model_file, datatype=fold, skip_generation=True, batchsize=64)
    assert report['exs'] == (496 if fold.startswith('train') else 108)


def contexts(model_file, tmp_path, **options):
    """The contexts that the agent sees at the turns of the first dialogues."""
    from spt_parlai.agents import SptAgent

    seen = []
    observe = SptAgent.observe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SptAgent, 'observe', lambda self, message: seen.append(observe(self, message)) or seen[-1])
        evaluate(model_file, task='integration_tests:multiturn_nocandidate', num_examples=3, batchsize=1, **options)
    return [o['full_text'] for o in seen]


def test_history_remembers_what_it_is_told_to(model_file, tmp_path):
    label, model, none = (contexts(model_file, tmp_path, use_reply=which) for which in ('label', 'model', 'none'))
    assert label[0] == model[0] == none[0] and len({label[1], model[1], none[1]}) == 3
    assert none[1].count(' R: ') == 0 and none[1].count(' Q: ') == 2
    short = contexts(model_file, tmp_path, history_size=1)
    assert short[2].count(' Q: ') + short[2].count(' R: ') == 1 < label[2].count(' Q: ')


def test_hidden_labels_leave_no_loss(model_file):
    report = evaluate(model_file, num_examples=4, hide_labels=True)
    assert report['exs'] == 4 and 'ppl' not in report and report['gen_n_toks'] > 1


# ---- scripts --------------------------------------------------------------------------------------------


def test_a_vacuumed_model_evaluates_the_same_and_can_be_trained_from(model_file, tiny_llms, tmp_path):
    for suffix in ('', '.opt', '.dict'):
        (tmp_path / f'm{suffix}').write_bytes(model_file.with_name(f'm{suffix}').read_bytes())
    before = evaluate(tmp_path / 'm', num_examples=16)
    Vacuum.main(model_file=str(tmp_path / 'm'), no_backup=True)
    assert (tmp_path / 'm').stat().st_size < model_file.stat().st_size
    assert 'optimizer' not in torch.load(tmp_path / 'm', weights_only=True)
    after = evaluate(tmp_path / 'm', num_examples=16)
    timed = {'exps', 'ltps', 'ctps', 'tps', 'gpu_mem', 'total_train_updates', 'lr'}
    assert {k: v for k, v in after.items() if k not in timed} == {k: v for k, v in before.items() if k not in timed}
    train(tmp_path / 'new', tiny_llms.opt, init_model=tmp_path / 'm', max_train_steps=1, num_prompts=2)


def test_a_model_card_is_generated(model_file, tmp_path):
    for mode in ('gen:data_stats:eval:sample', 'final'):
        GenerateModelCard.main(
            model_file=str(model_file),
            folder_to_save=str(tmp_path),
            mode=mode,
            evaltask=SAMPLE,
            num_examples=4,
            datatype='train:ordered',
        )
    card = (tmp_path / 'model_card.md').read_text()
    assert SAMPLE in card and json.loads((tmp_path / 'eval_results.json').read_text())['report']['ppl'] > 1


@pytest.mark.parametrize('options, shown', [({}, 'cumulative'), ({'torch': True}, 'CPU total')])
def test_a_training_run_is_profiled(tiny_llms, tmp_path, capsys, options, shown):
    ProfileTrain.main(
        **{**SMALL, 'llm': tiny_llms.opt, 'model_file': str(tmp_path / 'm'), 'max_train_steps': 2, **options}
    )
    assert shown in capsys.readouterr().out and (tmp_path / 'm').exists()


def test_a_script_keeps_its_own_defaults(tiny_llms):
    """Ours take the place of ParlAI's, and not of those that a script sets."""
    assert ProfileTrain.setup_args().parse_kwargs(model=SMALL['model'])['num_epochs'] == 1
    assert TrainModel.setup_args().parse_kwargs(model=SMALL['model'])['num_epochs'] == 15


def test_the_options_of_a_model_file_name_nothing_of_one_command_or_machine(model_file):
    stored = json.loads(Path(f'{model_file}.opt').read_text())
    removed = {'override', 'batchindex', 'datapath', 'download_path', 'verbose', 'interactive_mode'}
    assert stored['model'] == SMALL['model'] and not removed & set(stored)


def test_words_are_counted_with_an_external_dictionary(model_file, tmp_path, capsys):
    BuildDict.main(task=SAMPLE, dict_file=str(tmp_path / 'words.dict'))
    EvalWordStat.main(
        model_file=str(model_file),
        task=SAMPLE,
        num_examples=8,
        datatype='valid',
        external_dict=str(tmp_path / 'words.dict'),
    )
    assert 'Total unique tokens' in capsys.readouterr().out


def test_the_dictionary_of_the_llm_needs_no_building(tiny_llms, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(logging, 'warning', said.append)
    assert str(
        BuildDict.main(model=AGENT, llm=tiny_llms.opt, task=SAMPLE, dict_file=str(tmp_path / 'm.dict'))
    ).startswith('the tokenizer of')
    assert said[-1].startswith(f'--dict-file {tmp_path}/m.dict: nothing is written; the tokenizer of --llm ')
    BuildDict.main(task=SAMPLE, dict_file=str(tmp_path / 'words.dict'))
    assert len(said) == 1


@pytest.mark.parametrize('datatype', ['train:evalmode', 'valid:stream'])
def test_replies_are_displayed(model_file, capsys, datatype):
    DisplayModel.main(model_file=str(model_file), task=SAMPLE, num_examples=2, datatype=datatype)
    assert capsys.readouterr().out.count('[Spt]') == 2


def test_token_details_are_displayed(model_file, capsys):
    DisplayModel.main(
        model_file=str(model_file), task=SAMPLE, num_examples=1, verbose=True, verbose_topk=2, datatype='valid'
    )
    assert 'selected_prompt' in capsys.readouterr().out


def test_a_single_turn_chat_forgets(model_file, monkeypatch, capsys):
    from spt_parlai.agents import SptAgent

    seen = []
    observe = SptAgent.observe
    monkeypatch.setattr(SptAgent, 'observe', lambda self, message: seen.append(observe(self, message)) or seen[-1])
    monkeypatch.setattr(sys, 'stdin', io.StringIO('hello\nreally ?\n[EXIT]\n'))
    Interactive.main(model_file=str(model_file), persona='i like tea.', single_turn=True, inference='beam', beam_size=2)
    asked = [o['full_text'] for o in seen if o.get('text') in ('hello', 'really ?')]
    assert asked == [f'given persona: i like tea.; context: Q: {text} R:' for text in ('hello', 'really ?')]


def test_a_self_chat_is_saved_in_parlais_text_format(model_file, tmp_path):
    SelfChat.main(
        model_file=str(model_file),
        num_self_chats=2,
        selfchat_max_turns=2,
        outfile=str(tmp_path / 'chat'),
        save_format='parlai',
    )
    assert 'text:' in (tmp_path / 'chat').read_text()


@pytest.mark.parametrize(
    'script', ['interactive_web', 'party', 'safe_interactive', 'flask', 'distributed_train', 'distributed_eval']
)
def test_scripts_that_serve_can_be_imported(script):
    assert import_module(f'parlai.scripts.{script}')


def test_two_processes_evaluate_what_one_does(model_file, tiny_llms, tmp_path, monkeypatch):
    pytest.importorskip('bert_score')
    bert = {'bertscore': tiny_llms.bart, 'bertscore_layer': 1}
    warm.patch_workers(monkeypatch)
    MultiProcessEval.main(
        distributed_world_size=2,
        task=SAMPLE,
        model_file=str(model_file),
        datatype='valid',
        batchsize=4,
        report_filename=str(tmp_path / 'two.json'),
        **bert,
    )
    two, one = json.loads((tmp_path / 'two.json').read_text())['report'], evaluate(model_file, **bert)
    for name in (
        'exs',
        'ppl',
        'nll',
        'selection',
        'fusion',
        'token_acc',
        'prompt_usage_0',
        'prompt_usage_entropy',
        'ppl_word',
        'ppl_byte',
        'f1',
        'unigram_f1',
        'sacrebleu',
        'sacrebleu_1',
        'rouge1',
        'rougeL',
        'dist1',
        'dist2',
        'dist',
        'ent2',
        'self_bleu',
        'persona_f1',
        'persona_bleu_1',
        'bertscore_p',
        'bertscore_r',
        'bertscore_f1',
    ):
        assert two[name] == pytest.approx(one[name], rel=1e-5), name
    assert 0 < two['dist1'] and 0 < two['bertscore_f1'] < 100


def test_an_agent_in_a_program_replies(model_file):
    agent = create_agent_from_model_file(str(model_file), {'interactive_mode': True, 'persona': 'i like tea.'})
    agent.observe({'text': 'hello', 'episode_done': True})
    assert 'text' in agent.act()
