"""Multi-Session Chat through ParlAI's own teachers, over files in its format: sessions of two pairs."""

import json

import pytest
from helpers.runs import SAMPLE, agent_of, evaluate, train
from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.core.worlds import create_task

MSC = 'msc:SessionBaseMsc'
PERSONAS = [
    [['i have two dogs.', 'i paint houses.'], ['i am a nurse.', 'i play the cello.']],
    [['i grow tomatoes.'], ['i live by the sea.', 'my name is mia.']],
]
EARLIER = ['hello, how are you?', 'fine, i just came from work.']
SESSIONS = [
    ['did the concert go well?', 'yes! the cello stayed in tune.', 'great.', 'and how are the dogs?', 'loud.', 'ha!'],
    ['are the tomatoes ripe?', 'not yet, but soon.', 'i can bring fish.', 'that would be lovely.'],
]
OWN = {'previous_persona_type': 'init_both'}


def spoken(texts, personas):
    return {
        'dialog': [{'id': f'Speaker {i % 2 + 1}', 'text': text} for i, text in enumerate(texts)],
        'personas': personas,
    }


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A datapath with what ParlAI would have downloaded."""
    folder = tmp_path_factory.mktemp('data')
    sessions = [folder / f'msc/msc/msc_dialogue/session_{number}' for number in (2, 3, 4)]
    lines = [
        {
            **spoken(texts, personas),
            'init_personas': personas,
            'previous_dialogs': [{**spoken(EARLIER, personas), 'time_num': 2, 'time_unit': 'days'}],
            'metadata': {'initial_data_id': f'sample_{i}', 'session_id': 1},
        }
        for i, (texts, personas) in enumerate(zip(SESSIONS, PERSONAS, strict=True))
    ]
    for session in sessions:
        session.mkdir(parents=True)
        for fold in ('train', 'valid', 'test'):
            (session / f'{fold}.txt').write_text('\n'.join(json.dumps(line) for line in lines))
    (folder / 'msc/.built').write_text('today\nv0.1')
    plain = folder / 'dialogue_lines/topical_chat'
    plain.mkdir(parents=True)
    for fold in ('train', 'valid'):
        (plain / f'{fold}.txt').write_text('do you like jazz? __eou__ i do. __eou__ me too. __eou__ good !\n')
    return str(folder)


def heard(llm, data, **options):
    """What an agent has heard before each reply, one by one: (the persona, the context's text)."""
    agent = agent_of(llm, task=MSC, datapath=data, batchsize=1, **options)
    world, found = create_task(Opt({**agent.opt, 'datatype': 'valid', 'mutators': None}), agent), []
    teacher = world.agents[0]
    while not teacher.epoch_done():
        texts = agent.batchify([agent.observe(teacher.act())]).texts
        agent.self_observe(Message(text='', episode_done=False))
        found.append((texts['persona'][0], texts['context'][0]))
    return found


def test_the_personas_of_the_speaker_who_replies(tiny_llms, data):
    found = heard(tiny_llms.opt, data, **OWN)
    # Both speakers of a dialogue reply, the first one ("their") also to nothing.
    assert [persona for persona, _ in found] == [
        *[' '.join(PERSONAS[0][0])] * 3,
        *[' '.join(PERSONAS[0][1])] * 3,
        *[' '.join(PERSONAS[1][0])] * 2,
        *[' '.join(PERSONAS[1][1])] * 2,
    ]
    assert all('SILENCE' not in context and 'partner' not in context for _, context in found)
    assert 'Did the concert go well?' in found[4][1] and 'Great.' in found[4][1] and 'work' not in found[4][1]


def test_earlier_sessions_are_heard_before_the_first_message(tiny_llms, data):
    found = heard(tiny_llms.opt, data)  # MSC's default is the history of the earlier sessions without personas
    assert all(persona == '' for persona, _ in found)
    context = found[3][1]
    assert 0 < context.index(EARLIER[0]) < context.index(EARLIER[1]) < context.index('Did the concert go well?')


def test_several_tasks_with_and_without_personas_in_one_run(tiny_llms, data, tmp_path):
    tasks = [f'{MSC}:previous_persona_type=init_both', SAMPLE, 'spt_parlai.tasks.dialogue_lines:TopicalChatTeacher']
    run = {'task': ','.join(tasks), 'datapath': data}
    train(tmp_path / 'model', tiny_llms.opt, multitask_weights='2,1,1', max_train_steps=4, **run)
    whole = evaluate(tmp_path / 'model', **run, num_examples=30)
    singly = evaluate(tmp_path / 'model', **run, num_examples=30, dialogue_packing=False)
    for report in (whole, singly):
        assert [report[f'{task}/exs'] for task in (tasks[0], tasks[2])] == [10, 2]
        assert report[f'{tasks[0]}/persona_f1'] >= 0 and f'{tasks[2]}/persona_f1' not in report
    rates = {name for name in whole if name.rpartition('/')[2] in ('exps', 'tps', 'ltps', 'ctps', 'gpu_mem')}
    assert {n: whole[n] for n in whole.keys() - rates} == pytest.approx(
        {n: singly[n] for n in singly.keys() - rates}, rel=1e-4, abs=1e-6
    )


def test_all_sessions_as_one_task(tiny_llms, data, tmp_path):
    run = {'task': 'msc', 'include_session1': False, 'datapath': data, **OWN}
    train(tmp_path / 'model', tiny_llms.opt, max_train_steps=2, **run)
    report = evaluate(tmp_path / 'model', **run)
    assert report['exs'] == 30
    for session in ('msc_dialogue_2', 'msc_dialogue_3', 'msc_dialogue_4'):
        assert report[f'{session}/exs'] == 10 and f'{session}/persona_f1' in report
