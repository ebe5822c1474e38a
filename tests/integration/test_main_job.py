"""Training, evaluation and chat with ParlAI's own scripts, on the sample task around tiny LLMs."""

import io
import json
import sys

import pytest
import torch
from helpers.runs import AGENT, SAMPLE, SMALL, evaluate, train
from parlai.core.agents import create_agent, create_agent_from_model_file
from parlai.scripts.display_model import DisplayModel
from parlai.scripts.interactive import Interactive
from parlai.scripts.self_chat import SelfChat
from parlai.scripts.train_model import TrainModel

LOSSES = ('nll', 'selection', 'contrastive', 'fusion', 'spt_loss', 'ppl', 'token_acc')
USAGE = ('prompt_usage_0', 'prompt_usage_1', 'prompt_usage_2', 'prompt_usage_entropy')


@pytest.fixture(scope='module', params=['opt', 'llama'])
def trained(request, tiny_llms, tmp_path_factory):
    """(model file, validation report) after 12 steps around a tiny OPT or Llama."""
    model_file = tmp_path_factory.mktemp(request.param) / 'model'
    valid, _ = train(
        model_file,
        getattr(tiny_llms, request.param),
        max_train_steps=12,
        log_every_n_steps=2,
        validation_every_n_steps=6,
        prompt_init='embedding-scale',
    )
    return model_file, valid


def test_every_loss_and_every_prompt_is_in_the_logs(trained):
    model_file, valid = trained
    stats = json.loads((model_file.parent / 'model.trainstats').read_text())
    for report in (*stats['train_reports'], *stats['valid_reports'], valid):
        assert set(LOSSES + USAGE) <= set(report)
        usage = [float(report[f'prompt_usage_{k}']) for k in range(3)]
        assert sum(usage) == pytest.approx(1)
        assert 0 <= float(report['prompt_usage_entropy']) <= 1


def test_training_lowers_perplexity(tmp_path):
    """On unseen dialogues, around an LM that knows English; prompts could not improve a random one."""
    options = {'prompt_init': 'embedding-scale', 'num_prompts': 2, 'batchsize': 2, 'validation_max_exs': 1}
    train(tmp_path / 'model', 'demo', max_train_steps=10, learningrate=0.03, load_from_checkpoint=False, **options)
    train(tmp_path / 'start', 'demo', max_train_steps=1, learningrate=0.0, **options)
    trained, start = (evaluate(tmp_path / name, skip_generation=True, num_examples=24) for name in ('model', 'start'))
    assert trained['ppl'] < 0.95 * start['ppl']


def test_checkpoint_holds_what_trains_and_nothing_of_the_llm(trained):
    states = torch.load(trained[0], weights_only=True)
    assert set(states['model']) == {
        'soft_prompts.tokens',
        'retriever.lin_context.weight',
        'retriever.lin_context.bias',
        'retriever.lin_prompt.weight',
        'retriever.lin_prompt.bias',
    }
    assert all(t.dtype == torch.float32 for t in states['model'].values())
    assert states['spt']['seed'] == 7 and states['spt']['fingerprint']['hidden_size'] == 16
    assert trained[0].stat().st_size < 100_000


def test_files_written_are_these(trained):
    names = {p.name for p in trained[0].parent.iterdir()}
    whole = {'model', 'model.opt', 'model.dict', 'model.trainstats', 'model.valid', 'model.test', 'model.metrics.jsonl'}
    assert names == whole | {f'model.checkpoint{s}' for s in ('', '.opt', '.dict', '.trainstats')}


def test_eval_equals_the_validation_of_training(trained):
    model_file, valid = trained
    report = evaluate(model_file, num_examples=8, batchsize=4, skip_generation=True)
    assert report['ppl'] == pytest.approx(float(valid['ppl']), rel=1e-5)
    assert report['spt_loss'] == pytest.approx(float(valid['spt_loss']), rel=1e-5)


def test_eval_generates_with_f1_and_bleu(trained):
    report = evaluate(trained[0], num_examples=8)
    assert {'f1', 'bleu-4', 'gen_n_toks'} <= set(report)


@pytest.mark.parametrize(
    'inference', [{}, {'inference': 'beam', 'beam_size': 3, 'beam_block_ngram': 2, 'beam_context_block_ngram': 2}]
)
def test_batch_size_changes_neither_ppl_nor_replies(trained, tmp_path, inference):
    """The same ppl and the same text for every example at -bs 1 and -bs 16."""
    replies, ppl = [], []
    for batchsize in (1, 16):
        log = tmp_path / f'log{batchsize}'
        ppl.append(evaluate(trained[0], batchsize=batchsize, world_logs=str(log), **inference)['ppl'])
        episodes = [json.loads(line) for line in (tmp_path / f'log{batchsize}.jsonl').read_text().splitlines()]
        turns = [turn for episode in episodes for turn in episode['dialog']]
        replies.append({(t[0]['text'], t[0]['eval_labels'][0]): (t[1]['text'], t[1]['selected_prompt']) for t in turns})
    assert len(replies[0]) == 108  # every example of the fold
    assert replies[0] == replies[1]
    assert ppl[0] == pytest.approx(ppl[1], rel=1e-5)


@pytest.mark.parametrize(
    'inference',
    [
        {'inference': 'greedy'},
        {'inference': 'beam', 'beam_size': 2},
        {'inference': 'topk', 'beam_size': 2, 'topk': 5},
        {'inference': 'nucleus', 'beam_size': 2, 'topp': 0.8},
        {'inference': 'factual_nucleus', 'beam_size': 2},
        {'inference': 'delayedbeam', 'beam_size': 2, 'topk': 5, 'beam_delay': 3},
        {'inference': 'delayednucleusbeam', 'beam_size': 2, 'topp': 0.8, 'beam_delay': 3},
    ],
    ids=lambda options: options['inference'],
)
def test_every_search_of_parlai_generates(trained, inference):
    agent = create_agent_from_model_file(str(trained[0]), {**inference, 'interactive_mode': True, 'persona': ''})
    agent.observe({'text': 'hello there', 'episode_done': False})
    assert isinstance(agent.act()['text'], str)


def test_the_bare_command_ends_validates_and_has_pairs_to_contrast():
    opt = TrainModel.setup_args().parse_args(['-t', SAMPLE, '-m', AGENT, '-mf', 'nowhere/model'])
    wanted = {
        'num_epochs': 15,
        'validation_every_n_epochs': 1,
        'batchsize': 4,
        'optimizer': 'adam',
        'learningrate': 0.01,
        'validation_metric': 'ppl',
        'validation_metric_mode': 'min',
        'num_prompts': 4,
        'prompt_length': 8,
    }
    assert {name: opt[name] for name in wanted} == wanted
    assert SelfChat.setup_args().parse_args(['-m', AGENT])['batchsize'] == 1


def test_the_same_seed_gives_the_same_run_and_another_does_not(tiny_llms, tmp_path):
    reports = [
        train(tmp_path / f'm{i}', tiny_llms.opt, seed=seed, max_train_steps=3)[0] for i, seed in enumerate((1, 1, 2))
    ]
    losses = [float(r['spt_loss']) for r in reports]
    assert losses[0] == losses[1] != losses[2]


def test_sampled_replies_repeat_with_the_seed(trained):
    def replies(seed):
        agent = create_agent_from_model_file(
            str(trained[0]),
            {'inference': 'nucleus', 'topp': 0.99, 'interactive_mode': True, 'task': 'interactive', 'seed': seed},
        )
        agent.observe({'text': 'hello', 'episode_done': False})
        return agent.history.dialogue.persona, agent.act()['text']

    assert replies(3) == replies(3) != replies(5)


def test_lambda_zero_takes_its_term_out_of_the_log(tiny_llms, tmp_path):
    valid, _ = train(
        tmp_path / 'm',
        tiny_llms.opt,
        max_train_steps=2,
        lambda_selection=0,
        lambda_contrastive=0,
        lambda_fusion=0,
        num_prompts=1,
    )
    assert not {'selection', 'contrastive', 'fusion'} & set(valid)
    assert float(valid['spt_loss']) == pytest.approx(float(valid['nll']))


def type_in(monkeypatch, *lines):
    monkeypatch.setattr(sys, 'stdin', io.StringIO(''.join(line + '\n' for line in lines)))


def test_interactive_shows_persona_prompt_and_scores(trained, monkeypatch, capsys):
    type_in(monkeypatch, 'hello', 'what do you do ?', '[DONE]', 'hi again', '[EXIT]')
    Interactive.main(model_file=str(trained[0]), persona='i like cats.|i am a nurse.', seed=1)
    shown = capsys.readouterr().out
    assert 'i like cats.' in shown and 'i am a nurse.' in shown
    assert shown.count('selected_prompt') == 3 and shown.count('prompt_scores') == 3


def test_interactive_draws_a_persona_where_none_is_given(trained, monkeypatch, capsys):
    type_in(monkeypatch, '[EXIT]')
    Interactive.main(model_file=str(trained[0]), seed=1)
    shown = capsys.readouterr().out
    assert 'has the persona' in shown and '(none)' not in shown


def test_self_chat_runs_without_data_and_each_side_has_a_persona(trained, tmp_path, capsys):
    SelfChat.main(model_file=str(trained[0]), num_self_chats=1, selfchat_max_turns=3, outfile=str(tmp_path / 'chat'))
    shown = capsys.readouterr().out
    assert shown.count('has the persona') == 2 and '(none)' not in shown
    assert (tmp_path / 'chat.jsonl').exists()


def test_display_model_shows_replies(trained, capsys):
    DisplayModel.main(model_file=str(trained[0]), task=SAMPLE, num_examples=2)
    assert capsys.readouterr().out.count('[Spt]') == 2


def test_history_grows_over_the_turns_and_reset_forgets_them(trained):
    agent = create_agent_from_model_file(str(trained[0]), {'interactive_mode': True, 'persona': 'i like tea.'})
    seen = []
    for text in ('hello', 'really ?'):
        seen.append(agent.observe({'text': text, 'episode_done': False})['full_text'])
        agent.act()
    middle = f' R: {reply_of(agent)} ' if reply_of(agent) else ' '
    assert seen[0] == 'given persona: i like tea.; context: Q: hello R:'
    assert seen[1] == f'given persona: i like tea.; context: Q: hello{middle}Q: really ? R:'
    agent.reset()
    assert (
        agent.observe({'text': 'hi', 'episode_done': False})['full_text']
        == 'given persona: i like tea.; context: Q: hi R:'
    )


def reply_of(agent):
    """The agent's first reply, as its history holds it."""
    return next((t.text for t in agent.history.dialogue.turns if t.own), '')


def test_candidates_are_ranked_by_their_likelihood(trained, tmp_path):
    data = tmp_path / 'data.txt'
    data.write_text(
        'text:hello\tlabels:i am fine .\tlabel_candidates:i am fine .|no|the sea is blue today .\tepisode_done:True\n'
    )
    report = evaluate(
        trained[0], task='fromfile:parlaiformat', fromfile_datapath=str(data), rank_candidates=True, batchsize=1
    )
    assert 0 <= report['hits@1'] <= 1 and report['hits@5'] == 1


def test_validation_generates_when_its_metric_needs_replies(tiny_llms, tmp_path):
    valid, _ = train(
        tmp_path / 'm', tiny_llms.opt, max_train_steps=2, validation_metric='f1', validation_metric_mode='max'
    )
    assert 'f1' in valid


@pytest.mark.parametrize('fp16', [True, False])
def test_fp16_neither_grows_the_dictionary_nor_halves_what_trains(tiny_llms, tmp_path, fp16):
    opt = TrainModel.setup_args().parse_kwargs(
        **{**SMALL, 'llm': tiny_llms.opt, 'model_file': str(tmp_path / 'm'), 'fp16': fp16, 'model': AGENT}
    )
    agent = create_agent(opt)
    assert len(agent.dict) == len(agent.dict.tokenizer)
    assert all(p.dtype == torch.float32 for p in agent.model.parameters())
