"""The RAG agents: what stands before a context, which never reveals the gold reply, and the index, which is kept."""

import json
import random

import pytest
import torch
from helpers.runs import AGENTS, SAMPLE, agent_of, evaluate, logged, options, states, train
from parlai.core.agents import create_agent
from parlai.core.worlds import create_task
from parlai.scripts.interactive import Interactive
from parlai.scripts.train_model import TrainModel
from parlai.utils import logging

from spt_parlai.agents.rag import MARKER
from spt_parlai.dialogue.mutator import FIELD
from spt_parlai.errors import UsageError

RUN = {
    'text_truncate': None,  # retrieved dialogues need room
    'batchsize': 2,
    'log_every_n_steps': 1,
    'prompt_length': 2,
    'retrieval_encoder': 'llm',
    'max_train_steps': 4,
    'validation_every_n_steps': 2,
}


@pytest.fixture(scope='module')
def two_sided(tmp_path_factory):
    """A file of ten dialogues, each as both sides see it, and each of these twice."""
    rng = random.Random(0)
    words = 'tea dog ski run cat sea boat night bread jazz snow train rosa nurse city'.split()
    lines = []
    for n in range(10):
        said = [f'{" ".join(rng.choices(words, k=4))} {n} {i} .' for i in range(6)]
        sides = [
            (f'i am left {n}.', said[::2], said[1::2]),
            (f'i am right {n}.', ['__SILENCE__', *said[1::2]][:3], said[::2]),
        ]
        for persona, heard, own in (*sides, *sides):
            turns = [[f'text:{q}', f'labels:{r}'] for q, r in zip(heard, own, strict=True)]
            turns[0][0] = f'text:your persona: {persona}\\n{heard[0]}'
            turns[-1].append('episode_done:True')
            lines += ['\t'.join(turn) for turn in turns]
    path = tmp_path_factory.mktemp('data') / 'two_sided.txt'
    path.write_text('\n'.join(lines) + '\n')
    return str(path)


def told(opt, agent, count=10**9):
    """The context that the agent builds for each training message, and the label of that message."""
    teacher = create_task(opt, agent).agents[0]
    episodes = 0
    while episodes < count and not teacher.epoch_done():
        message = teacher.act()
        heard = agent.observe(message)
        if 'turns' in heard:
            for turn, label in zip(heard['turns'], heard[FIELD], strict=True):
                yield turn.context, label['labels'][0]
        else:
            yield heard['text_vec'].tolist(), message['labels'][0]
        agent.self_observe({'text': 'x', 'episode_done': message['episode_done']})
        episodes += message['episode_done']


@pytest.mark.parametrize('per', ['turn', 'dialogue'])
@pytest.mark.parametrize('more', [{}, {'dialogue_packing': False}, {'history_size': 1}, {'use_reply': 'none'}], ids=str)
def test_no_training_context_tells_its_reply(two_sided, tmp_path, per, more):
    """Not by its own dialogue, nor by a copy, nor by the dialogue as the other side had it."""
    opt = TrainModel.setup_args().parse_kwargs(
        **options(
            'demo',
            'RagAgent',
            task='fromfile:parlaiformat',
            fromfile_datapath=two_sided,
            datatype='train:ordered',
            batchsize=1,
            retrieve_per=per,
            retrieval_encoder='llm',
            retrieval_cache=tmp_path,
            retrieved=2,
            retrieved_length=220,
            **more,
        )
    )
    opt['mutators'] = 'whole_dialogue'
    agent = create_agent(opt)
    seen = 0
    for ids, label in told(opt, agent, 40):
        context = agent.dict.vec2txt(ids)
        assert context.count(MARKER) == 2 and label not in context
        seen += 1
    assert seen == 10 * 4 * 3


def test_what_is_retrieved_stands_before_the_context(tmp_path):
    agent = agent_of(
        'demo',
        'RagAgent',
        retrieval_encoder='llm',
        retrieval_cache=tmp_path,
        datatype='valid',
        retrieved=1,
        retrieved_length=200,
    )
    plain = agent_of('demo', 'PromptTuningAgent', datatype='valid')
    for text in ('your persona: i collect sea glass .\nyour persona: i live on an island .\nhello', 'do you swim ?'):
        heard, alone = (
            a.observe({'text': text, 'eval_labels': ['no .'], 'episode_done': False}) for a in (agent, plain)
        )
        found, own = heard['text_vec'].tolist(), alone['text_vec'].tolist()
        assert (
            found[0] == own[0] == agent.dict.bos and heard['full_text'] == alone['full_text']
        )  # texts are compared without it
        read = agent.dict.vec2txt(found)
        assert read.startswith(f'{MARKER} given persona: i give tours of an old lighthouse.') and read.endswith(
            agent.dict.vec2txt(own)
        )
        for a in (agent, plain):
            a.self_observe({'text': 'x', 'episode_done': False})


def test_is_as_long_as_it_may_be_and_the_window_holds(tiny_llms, tmp_path):
    """Whole turns of the best dialogue first; what is cut is counted."""
    lengths = {}
    for length in (20, -1, 89):
        agent = agent_of(
            tiny_llms.opt,
            'RagAgent',
            prompt_length=2,
            retrieval_encoder='llm',
            retrieval_cache=tmp_path,
            retrieved_length=length,
            datatype='valid',
            retrieved=2,
        )
        room = agent.text_truncate // 3 if length < 0 else length
        agent.observe(
            {'text': 'your persona: i ski.\n' + 'how are you ? ' * 9, 'eval_labels': ['no .'], 'episode_done': False}
        )
        ids = agent.observation['text_vec'].tolist()
        own = agent.dict.piece('given persona: i ski.; context:', False)
        start = next(i for i in range(len(ids)) if tuple(ids[i : i + len(own)]) == own)
        report = agent.report()
        lengths[length] = start - 1
        assert 0 < start - 1 <= room and len(ids) <= agent.text_truncate
        assert float(report['rlen'].value()) == start - 1 and float(report['rtrunc'].value()) == 1
    assert lengths[20] <= lengths[-1] <= lengths[89]


@pytest.fixture(scope='module')
def trained(tiny_llms, tmp_path_factory):
    folder = tmp_path_factory.mktemp('rag')
    reports = train(folder / 'm', tiny_llms.opt, 'SptRagAgent', **RUN, num_prompts=3, retrieval_cache=folder / 'cache')
    return folder, reports


def test_trains_evaluates_and_tells_how_much_was_retrieved(trained):
    folder, _ = trained
    report = evaluate(folder / 'm', num_examples=8)
    assert (
        report['exs'] == 8 and report['rlen'] > 0 and {'ppl', 'unigram_f1', 'prompt_usage_0', 'rtrunc'} <= report.keys()
    )
    assert states(folder / 'm')['spt']['agent'] == 'SptRagAgent'
    stored = json.loads((folder / 'm.opt').read_text())
    assert stored['training_task'] == SAMPLE and stored['task'] == SAMPLE
    with pytest.raises(UsageError, match='m is of SptRagAgent, not of RagAgent'):
        evaluate(folder / 'm', model=AGENTS + 'RagAgent')


def test_the_same_run_reads_the_index_and_is_the_same(trained, tiny_llms, tmp_path):
    folder, reports = trained
    (index,) = (folder / 'cache').iterdir()
    made = index.stat().st_mtime_ns
    again = train(tmp_path / 'm', tiny_llms.opt, 'SptRagAgent', **RUN, num_prompts=3, retrieval_cache=folder / 'cache')
    assert index.stat().st_mtime_ns == made and logged(tmp_path / 'm') == logged(folder / 'm')
    assert [float(r['ppl']) for r in again] == [float(r['ppl']) for r in reports]
    anew = train(tmp_path / 'n', tiny_llms.opt, 'SptRagAgent', **RUN, num_prompts=3, retrieval_cache=tmp_path / 'cache')
    assert [float(r['ppl']) for r in anew] == [float(r['ppl']) for r in reports]
    for name, tensor in states(tmp_path / 'n')['model'].items():
        assert torch.equal(tensor, states(folder / 'm')['model'][name])


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(trained, tiny_llms, tmp_path):
    folder, _ = trained
    for steps in (2, 4):
        train(
            tmp_path / 'm',
            tiny_llms.opt,
            'SptRagAgent',
            **{**RUN, 'max_train_steps': steps},
            num_prompts=3,
            retrieval_cache=folder / 'cache',
        )
    for name, tensor in states(tmp_path / 'm.checkpoint')['model'].items():
        assert torch.equal(tensor, states(folder / 'm.checkpoint')['model'][name])


def test_other_dialogues_than_in_training_are_told(trained, two_sided, monkeypatch):
    folder, _ = trained
    words = []
    monkeypatch.setattr(logging, 'warning', words.append)
    evaluate(folder / 'm', num_examples=1)
    assert not [w for w in words if 'trained with' in w]
    other = 'fromfile:parlaiformat'
    evaluate(folder / 'm', num_examples=1, training_task=other, task=other, fromfile_datapath=two_sided)
    assert [
        w
        for w in words
        if w == 'the dialogues of --training-task fromfile:parlaiformat are not those this model was trained with.'
    ]


def test_a_chat_retrieves_from_the_training_task(trained, monkeypatch, capsys):
    folder, _ = trained
    lines = iter(['hello', 'what do you do ?', '[EXIT]'])
    monkeypatch.setattr('builtins.input', lambda _prompt='': next(lines))
    Interactive.main(model_file=str(folder / 'm'), persona='i ski.')
    assert '[SptRag]' in capsys.readouterr().out


def test_scores_are_of_the_dialogue_alone(tmp_path):
    """Scores equal those of SptAgent with the same tensors, in training (packed), evaluation and generation."""
    seen = {}
    for name, more in (('SptAgent', {}), ('SptRagAgent', {'retrieval_encoder': 'llm', 'retrieval_cache': tmp_path})):
        given = options(
            'demo',
            name,
            num_prompts=3,
            prompt_length=2,
            datatype='train:ordered',
            batchsize=1,
            skip_generation=False,
            **more,
        )
        opt = TrainModel.setup_args().parse_kwargs(**given)
        opt['mutators'] = 'whole_dialogue'
        agent = create_agent(opt)
        agent.model.retriever.lin_context.bias.data.zero_()  # so that scores differ
        teacher = create_task(opt, agent).agents[0]
        observations = [agent.observe(teacher.act()), None]
        agent.self_observe({'text': 'x', 'episode_done': True})
        observations[1] = agent.observe(teacher.act())
        agent.self_observe({'text': 'x', 'episode_done': True})
        batch = agent.batchify(observations)
        with torch.no_grad():
            _, (_, prediction) = agent.compute_loss(batch, return_output=True)
        turn = agent.clone().observe(
            {'text': 'your persona: i ski.\nhello', 'eval_labels': ['hi'], 'episode_done': False}
        )
        reply = agent.batch_act([turn])[0]
        encoded = agent.model.encoder(*agent._encoder_input(agent.batchify([turn])))
        seen[name] = (agent.model.state_dict(), prediction.scores, batch.texts, reply['prompt_scores'], encoded.scores)
    plain, rag = seen.values()
    assert plain[0].keys() == rag[0].keys() and all(torch.equal(plain[0][name], rag[0][name]) for name in plain[0])
    torch.testing.assert_close(rag[1], plain[1], rtol=1e-5, atol=1e-6)
    assert rag[2] == plain[2] and len(plain[2]['context']) > 8  # what the contrast compares
    assert rag[3] == pytest.approx(plain[3], rel=1e-3)
    torch.testing.assert_close(rag[4], plain[4], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    'more, named, way_out',
    [
        ({'retrieved': 0}, '--retrieved 0', 'at least 1'),
        ({'retrieved_length': 0}, '--retrieved-length 0', '-1'),
        ({'retrieved_length': 130}, '--retrieved-length 130', 'may take'),
        ({'retrieval_encoder': '/no/folder'}, '--retrieval-encoder /no/folder', 'no such folder'),
        ({'retrieval_encoder': ''}, '--retrieval-encoder', 'empty'),
        ({'training_task': 'interactive'}, '--training-task', 'name the task'),
        ({'retrieval_cache': f'{__file__}/in'}, '--retrieval-cache', 'another folder'),
    ],
)
def test_what_cannot_work_is_refused(tiny_llms, tmp_path, more, named, way_out):
    with pytest.raises(UsageError) as error:
        agent_of(tiny_llms.opt, 'RagAgent', **{**RUN, 'retrieval_cache': tmp_path, **more})
    sentence = str(error.value)
    assert named in sentence and way_out in sentence and sentence.endswith('.') and '\n' not in sentence


def test_a_datapath_that_cannot_be_written_is_no_obstacle(tiny_llms, monkeypatch, tmp_path):
    words = []
    monkeypatch.setattr(logging, 'warning', words.append)
    (tmp_path / 'spt_retrieval').write_text('a file in its place')
    agent = agent_of(tiny_llms.opt, 'RagAgent', **RUN, datapath=str(tmp_path), datatype='valid')
    assert agent.observe({'text': 'hi', 'episode_done': False})['text_vec'].numel() > 20
    assert [w for w in words if '--retrieval-cache' in w and 'is not kept' in w]
