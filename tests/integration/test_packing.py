"""Packed dialogues give the same result, term by term, as their turns one by one."""

import json
import os
from itertools import islice
from pathlib import Path

import pytest
import torch
from helpers.runs import AGENT, SAMPLE, SMALL, evaluate, logged, train
from parlai.core.agents import create_agent
from parlai.core.worlds import create_task
from parlai.scripts.train_model import TrainModel


@pytest.fixture(scope='module')
def wide_llms(tiny_llms, tmp_path_factory):
    """Tiny LLMs with a window large enough for the dialogues of the sample task."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp('wide')
    for name in ('opt', 'llama'):
        source = getattr(tiny_llms, name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(source, max_position_embeddings=900)
            ).save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder / name)
    return folder


SHARED = os.environ.get('SPT_SHARED_DATA')
CLOSE = dict(rtol=1e-5, atol=1e-5)


def options(llm, **more):
    opt = TrainModel.setup_args().parse_kwargs(
        **{
            **SMALL,
            'model': AGENT,
            'task': SAMPLE,
            'datatype': 'train:ordered',
            'llm': llm,
            'batchsize': 1,
            **more,
        }
    )
    opt['mutators'] = 'whole_dialogue'
    return opt


def observations(llm, count, **more):
    """The agent, and its observations of the first `count` dialogues: packed, one each; and turn by turn."""
    packed_opt, turn_opt = options(llm, **more), options(llm, **more, dialogue_packing=False)
    agent = create_agent(packed_opt)
    seen = {}
    for name, opt in (('packed', packed_opt), ('turns', turn_opt)):
        teacher = create_task(opt, agent).agents[0]
        seen[name], done = [], 0
        while done < count:
            message = teacher.act()
            seen[name].append(agent.observe(message))
            agent.self_observe(agent.observation | {'text': '', 'episode_done': message['episode_done']})
            done += message['episode_done']
    return agent, seen['packed'], seen['turns']


def step(agent, seen):
    """Batch, loss, prediction and gradients of one training step."""
    batch = agent.batchify(seen)
    agent._local_metrics.clear()
    agent.zero_grad()
    loss, (_, prediction) = agent.compute_loss(batch, return_output=True)
    loss.backward()
    return batch, loss.detach(), prediction, {n: p.grad.clone() for n, p in agent.model.named_parameters()}


def assert_same_step(agent, packed, turns, shares=True):
    batch, loss, prediction, gradients = step(agent, packed)
    metrics = {k: _sum(v) for k, v in agent._local_metrics.items()}
    batch1, loss1, prediction1, gradients1 = step(agent, turns)
    metrics1 = {k: _sum(v) for k, v in agent._local_metrics.items()}
    assert len(batch.text_vec) < len(batch1.text_vec) or not shares  # rows were shared
    assert batch.batchsize == batch1.batchsize == len(turns)
    assert batch.texts == batch1.texts
    for name in ('log_probs', 'scores'):
        torch.testing.assert_close(getattr(prediction, name), getattr(prediction1, name), **CLOSE)
    for name in ('selected', 'example', 'targets', 'greedy'):
        assert torch.equal(getattr(prediction, name), getattr(prediction1, name)), name
    torch.testing.assert_close(loss, loss1, **CLOSE)
    for name in gradients:
        scale = float(gradients1[name].abs().max())
        torch.testing.assert_close(gradients[name], gradients1[name], rtol=1e-4, atol=1e-5 * scale)
    for name in metrics1:
        assert metrics[name] == pytest.approx(metrics1[name], rel=1e-5, abs=1e-6), name
    return batch


def _sum(metrics):
    total = None
    for metric in metrics:
        total = metric if total is None else metric + total
    return float(total.value())


@pytest.mark.parametrize(
    'more',
    [
        {},
        {'contrastive_text': 'persona'},
        {'label_truncate': 6},
        {'prompt_chunk': 1},
        {'checkpoint_activations': True},
        {'text_truncate': 250},
        {'history_size': 5},
    ],
    ids=str,
)
@pytest.mark.parametrize('llm', ['opt', 'llama'])
def test_a_packed_batch_is_its_turns(wide_llms, llm, more):
    agent, packed, turns = observations(str(wide_llms / llm), 4, **more)
    assert len(packed) == 4 and len(turns) > 10
    batch = assert_same_step(agent, packed, turns)
    assert (len(batch.text_vec) > 4) == (
        'text_truncate' in more or 'history_size' in more
    )  # whole dialogues, or pieces of them


@pytest.mark.parametrize('per', ['turn', 'dialogue'])
def test_a_packed_batch_with_retrieved_dialogues_is_its_turns(wide_llms, tmp_path, per):
    """With new retrieval for every turn no context continues another; with one for the dialogue it is one row again."""
    agent, packed, turns = observations(
        str(wide_llms / 'opt'),
        2,
        model='spt_parlai.agents:SptRagAgent',
        retrieval_encoder='llm',
        retrieval_cache=str(tmp_path),
        retrieve_per=per,
        retrieved_length=60,
    )
    batch = assert_same_step(agent, packed, turns, shares=per == 'dialogue')
    assert (len(batch.text_vec) == 2) == (per == 'dialogue')


@pytest.mark.parametrize('more', [{'use_reply': 'none'}, {'text_truncate': 30}, {'history_size': 1}], ids=str)
def test_turns_that_share_nothing_stay_apart(wide_llms, more):
    """If no context continues the one before it, every turn has its own row."""
    agent, packed, turns = observations(str(wide_llms / 'opt'), 2, **more)
    batch, batch1 = agent.batchify(packed), agent.batchify(turns)
    assert torch.equal(batch.text_vec, batch1.text_vec) and torch.equal(batch.label_vec, batch1.label_vec)


@pytest.mark.skipif(not SHARED, reason='SPT_SHARED_DATA, the folder with ConvAI2, is not set')
@pytest.mark.parametrize('llm', ['chat-opt-7m', 'stories260K'])
def test_real_dialogues(llm, tmp_path):
    (tmp_path / 'ConvAI2').mkdir()
    for file in (Path(SHARED) / 'parlai_data' / 'ConvAI2').iterdir():  # its first dialogues, which are read at once
        with file.open() as whole, (tmp_path / 'ConvAI2' / file.name).open('w') as beginning:
            beginning.writelines(islice(whole, 200))
    agent, packed, turns = observations(
        str(Path(SHARED) / 'models' / llm),
        3,
        task='convai2:self',
        datapath=str(tmp_path),
        label_truncate=40,
        num_prompts=4,
    )
    batch = assert_same_step(agent, packed, turns)
    assert batch.text_vec.numel() < sum(len(t['text_vec']) for t in turns)


def test_mixed_with_messages_that_are_turns(wide_llms):
    """A batch of a packed dialogue and another dialogue's turns, as from two tasks with different mutators."""
    agent, packed, turns = observations(str(wide_llms / 'opt'), 2)
    first = len(packed[0]['turns'])
    assert_same_step(agent, [packed[0], *turns[first:]], turns)


@pytest.mark.parametrize('pairs', ['all', 'across'])
def test_contrast_of_a_packed_batch(wide_llms, pairs):
    """`across` leaves out pairs within a dialogue: one dialogue has no contrast, two have that of their cross pairs."""
    agent, packed, _ = observations(str(wide_llms / 'opt'), 2, contrastive_pairs=pairs)
    step(agent, packed[:1])
    assert ('contrastive' in agent._local_metrics) == (pairs == 'all')
    step(agent, packed)
    sizes = [len(o['turns']) for o in packed]
    counted = sum(m._denom for m in agent._local_metrics['contrastive'])
    assert counted == (sizes[0] * sizes[1] if pairs == 'across' else sum(sizes) * (sum(sizes) - 1) / 2)


# ---- ParlAI's accounting ------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def epoch(tiny_llms, tmp_path_factory):
    model_file = tmp_path_factory.mktemp('packed') / 'model'
    train(
        model_file,
        tiny_llms.opt,
        max_train_steps=None,
        num_epochs=1.0,
        log_every_n_steps=1,
        batchsize=8,
        datatype='train:ordered',
    )
    return model_file


def test_an_epoch_is_one_pass(epoch):
    stats = json.loads(Path(f'{epoch}.trainstats').read_text())
    reports = stats['train_reports']
    assert stats['train_steps'] == 10  # 74 dialogues in batches of 8
    assert sum(r['exs'] for r in reports) == pytest.approx(496, abs=60)  # the 80 dialogues of ten whole batches
    assert reports[-1]['total_epochs'] == pytest.approx(80 / 74)
    assert stats['total_epochs'] == pytest.approx(80 / 74)


def test_metrics_count_turns(epoch):
    reports = json.loads(Path(f'{epoch}.trainstats').read_text())['train_reports']
    for report in reports:
        assert report['exs'] > 30 and 20 < report['llen'] < 80
        assert sum(report[f'prompt_usage_{k}'] for k in range(3)) == pytest.approx(1)


def test_evaluation_sees_every_turn(epoch):
    assert evaluate(epoch, skip_generation=True)['exs'] == 108


def test_turn_by_turn_on_demand(tiny_llms, tmp_path):
    train(tmp_path / 'model', tiny_llms.opt, dialogue_packing=False, max_train_steps=3, log_every_n_steps=1)
    reports = json.loads(Path(f'{tmp_path / "model"}.trainstats').read_text())['train_reports']
    assert [r['exs'] for r in reports] == [4, 4]


def test_a_packed_run_continues_exactly(tiny_llms, tmp_path):
    settings = {'max_train_steps': 8, 'log_every_n_steps': 1, 'batchsize': 2, 'validation_every_n_steps': 4}
    train(tmp_path / 'whole', tiny_llms.opt, **settings)
    train(tmp_path / 'parts', tiny_llms.opt, **{**settings, 'max_train_steps': 4})
    train(tmp_path / 'parts', tiny_llms.opt, **settings)
    whole, parts = logged(tmp_path / 'whole'), logged(tmp_path / 'parts')
    assert [parts[i] for i in (5, 6, 7)] == [whole[i] for i in (5, 6, 7)]
