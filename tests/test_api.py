"""The Python API replies as the agent does in a chat."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.runs import train
from parlai.core.agents import create_agent_from_model_file

import spt_parlai
from spt_parlai.dialogue.messages import Turn
from spt_parlai.errors import UsageError

ROOT = Path(__file__).parents[1]
PERSONA = ['i ski.', 'i bake.']
MESSAGES = ('hello ! how are you ?', 'what do you do ?', 'do you have any pets ?')


@pytest.fixture(scope='module')
def model_file(tiny_llms, tmp_path_factory):
    path = tmp_path_factory.mktemp('api') / 'm'
    train(path, tiny_llms.opt, max_train_steps=1, max_new_tokens=12, learningrate=1.0)
    return str(path)


@pytest.fixture(scope='module')
def model(model_file):
    with spt_parlai.load(model_file) as model:
        model._engine.marks = ()  # random weights write whatever they like
        yield model


def test_a_dialogue_has_the_replies_of_a_chat(model, model_file):
    agent = create_agent_from_model_file(
        model_file, {'interactive_mode': True, 'persona': '|'.join(PERSONA), 'stop_at_next_speaker': 'false'}
    )
    dialogue = model.dialogue(PERSONA)
    for message in MESSAGES:
        agent.observe({'text': message, 'episode_done': False})
        expected, reply = agent.act(), dialogue.say(message)
        assert reply.text == expected['text'] and reply.prompt == reply.selected == expected['selected_prompt']
        assert reply.scores == pytest.approx(expected['prompt_scores'], rel=1e-3)
    assert dialogue.turns == agent.history.dialogue.turns and dialogue.persona == PERSONA


def test_a_message_with_its_history_is_replied_to_as_in_a_dialogue(model):
    dialogue = model.dialogue('i ski.| i bake.')
    first = dialogue.say(MESSAGES[0])
    second = dialogue.say(MESSAGES[1])
    assert model.chat(MESSAGES[0], PERSONA) == first
    assert model.chat(MESSAGES[1], PERSONA, [MESSAGES[0], first.text]) == second
    dialogue.undo()
    assert dialogue.say(MESSAGES[1]) == second
    for _ in range(3):
        dialogue.undo()
    assert dialogue.turns == []


def test_every_prompt_replies(model):
    dialogue = model.dialogue(PERSONA)
    replies = dialogue.all_prompts(MESSAGES[0])
    assert [reply.prompt for reply in replies] == list(range(model.num_prompts)) == [0, 1, 2] and dialogue.turns == []
    assert replies == [model.chat(MESSAGES[0], PERSONA, prompt=k) for k in range(3)]
    assert replies[replies[0].selected] == dialogue.say(MESSAGES[0])


def test_a_stream_is_the_reply_in_pieces(model):
    told = model.dialogue(PERSONA)
    expected = told.say(MESSAGES[0])
    dialogue = model.dialogue(PERSONA)
    pieces = list(dialogue.stream(MESSAGES[0]))
    assert ''.join(pieces) == expected.text and len(pieces) > 1 and dialogue.turns == told.turns


def test_a_stream_that_is_left_keeps_what_was_said(model):
    dialogue = model.dialogue()
    stream = dialogue.stream(MESSAGES[0])
    piece = next(stream)
    stream.close()
    assert dialogue.turns == [Turn(MESSAGES[0], own=False), Turn(piece.strip(), own=True)]
    assert dialogue.say('hi').text is not None


def test_dialogues_in_one_batch_are_replied_to_as_alone(model):
    dialogues = [model.dialogue(persona) for persona in ('', PERSONA, 'i have a dog.')]
    for _ in range(2):
        alone = [model.chat(m, d.persona, [t.text for t in d.turns]) for m, d in zip(MESSAGES, dialogues, strict=True)]
        together = model.say(dialogues, MESSAGES)
        assert [replace(reply, scores=()) for reply in together] == [replace(reply, scores=()) for reply in alone]
        for found, expected in zip(together, alone, strict=True):  # some processors round them by the number of rows
            assert found.scores == pytest.approx(expected.scores, rel=1e-6)
    assert [len(dialogue.turns) for dialogue in dialogues] == [4, 4, 4]


def test_sampled_replies_differ(model):
    dialogues = [model.dialogue() for _ in range(8)]
    assert len({reply.text for reply in model.say(dialogues, ['hi'] * 8, temperature=1.5)}) > 1
    assert len({reply.text for reply in model.say(dialogues[:1], ['hi'], max_tokens=2)}) == 1


@pytest.mark.parametrize(
    'how, told',
    [
        ({'prompt': 3}, r'^prompt=3: .*has the prompts 0 to 2\.$'),
        ({'temperature': -1}, '^temperature=-1: give 0'),
        ({'temperature': float('nan')}, '^temperature=nan: give 0'),
        ({'top_p': 0}, '^top_p=0: give a number above 0'),
        ({'max_tokens': 0}, '^max_tokens=0: give a number from 1 to '),
    ],
)
def test_values_that_cannot_be_used(model, how, told):
    dialogue = model.dialogue()
    for ask in (dialogue.say, dialogue.all_prompts, lambda *a, **k: list(dialogue.stream(*a, **k))):
        with pytest.raises(UsageError, match=told):
            ask('hi', **how)
    assert dialogue.turns == []


def test_a_message_for_every_dialogue(model):
    with pytest.raises(UsageError, match='^1 dialogues and 2 messages'):
        model.say([model.dialogue()], ['hi', 'ho'])


def test_options_of_the_model_file_can_be_replaced(model_file):
    with spt_parlai.load(model_file, max_new_tokens=3) as short:
        short._engine.marks = ()
        assert short._engine.usual_tokens == 2
    with pytest.raises(UsageError, match=r'max_new_token=3: .*did you mean max_new_tokens\?$'):
        spt_parlai.load(model_file, max_new_token=3)


def test_a_model_that_does_not_exist(tmp_path):
    with pytest.raises(UsageError, match='there is no such model file'):
        spt_parlai.load(str(tmp_path / 'no'))
    with pytest.raises(UsageError, match='did you mean spt:smollm2'):
        spt_parlai.load('spt:smolm2')


def test_a_closed_model_says_so(model_file):
    model = spt_parlai.load(model_file)
    model.close()
    with pytest.raises(RuntimeError, match='shutting down'):
        model.chat('hi')


@pytest.mark.parametrize('page', ['README.md', 'spt_parlai/server/README.md'])
def test_the_examples_of_the_readmes_run(page, model_file, capsys):
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(encoding='utf-8'), flags=re.DOTALL)
    (code,) = [block for block in blocks if 'spt_parlai.load' in block]
    exec(code.replace('spt:smollm2', model_file), {})
    assert capsys.readouterr().out
