"""What a person types in a chat instead of a message."""

import pytest
from helpers.runs import agent_of, train
from parlai.scripts.interactive import Interactive
from parlai.scripts.self_chat import SelfChat

from spt_parlai.agents.chat_commands import HELP, PromptScores, obey, shares_of
from spt_parlai.dialogue.messages import Turn


@pytest.fixture(scope='module')
def model_file(tiny_llms, tmp_path_factory):
    path = tmp_path_factory.mktemp('chat') / 'm'
    train(path, tiny_llms.opt, max_train_steps=1)
    return str(path)


@pytest.fixture
def agent(tiny_llms):
    return agent_of(tiny_llms.opt, interactive_mode=True, persona='i ski.')


def say(agent, text):
    agent.observe({'text': text, 'episode_done': False})
    return agent.act()


def test_messages_are_no_commands(agent):
    assert obey(agent, 'hello / you') is obey(agent, '') is None
    assert obey(agent, '/help') == HELP
    assert obey(agent, '/personas i ski.') == 'There is no command /personas; /help lists those that there are.'


def test_another_persona_begins_a_new_dialogue(agent):
    agent.history.given_persona = ['i ski.']
    agent.reset()
    say(agent, 'hello')
    assert obey(agent, '/persona') == '    i ski.'
    assert obey(agent, '/persona i bake.| i run. ') == '    i bake.\n    i run.\nA new dialogue begins.'
    assert agent.history.dialogue.persona == ['i bake.', 'i run.'] and not agent.history.dialogue.turns
    agent.reset()
    assert agent.history.dialogue.persona == ['i bake.', 'i run.']


def test_a_prompt_is_forced_until_the_retriever_selects_again(agent):
    selected = say(agent, 'hello')['selected_prompt']
    forced = (selected + 1) % 3
    assert obey(agent, '/prompt') == 'The retriever selects the prompt.'
    assert obey(agent, f'/prompt {forced}') == f'Prompt {forced} replies.'
    agent.reset()
    assert say(agent, 'hello')['selected_prompt'] == forced
    assert obey(agent, '/prompt auto') == 'The retriever selects the prompt.'
    agent.reset()
    assert say(agent, 'hello')['selected_prompt'] == selected
    assert obey(agent, '/prompt 3') == '/prompt 3: give a number from 0 to 2, or auto.'


def test_every_prompts_reply_to_the_last_message(agent):
    assert obey(agent, '/all') == 'There is no message yet to reply to.'
    reply = say(agent, 'hello')
    lines = obey(agent, '/all').splitlines()
    shares = shares_of(reply['prompt_scores'])
    assert [line[: len('* prompt 0, 100%:')] for line in lines] == [
        f'{"*" if k == reply["selected_prompt"] else " "} prompt {k}, {share:4.0%}:' for k, share in enumerate(shares)
    ]
    assert lines[reply['selected_prompt']].endswith(f': {reply["text"]}')


def test_undo_forgets_the_last_message_and_its_reply(agent):
    assert obey(agent, '/undo') == 'There is nothing to undo.'
    first = say(agent, 'hello')['text']
    turns = [Turn('hello', own=False), *([Turn(first, own=True)] if first else [])]
    say(agent, 'how are you ?')
    assert obey(agent, '/undo') == 'Forgotten: "how are you ?" and the reply.'
    assert agent.history.dialogue.turns == turns
    again = say(agent, 'how are you ?')
    assert again['text'] is not None and agent.history.dialogue.turns[: len(turns)] == turns


def test_an_agent_with_one_prompt_says_so(tiny_llms):
    agent = agent_of(tiny_llms.opt, 'PromptTuningAgent', interactive_mode=True)
    for command in ('/prompt 0', '/all'):
        assert obey(agent, command).endswith('has no prompts to choose from.')


def test_scores_are_displayed_as_shares():
    assert str(PromptScores((0.5, 0.25, 0.25))) == '50% 25% 25%' and str(PromptScores((0.0, 0.0))) == '50% 50%'
    assert PromptScores((0.5, 0.25)) == (0.5, 0.25)


def test_commands_in_a_chat(model_file, monkeypatch, capsys):
    typed = iter(['/persona i bake.', 'hello', '/all', '/undo', '/dance', '[EXIT]'])
    monkeypatch.setattr('builtins.input', lambda prompt: next(typed))
    Interactive.main('-mf', model_file)
    out = capsys.readouterr().out
    for words in ('/help lists', '    i bake.', 'A new dialogue begins.', ' prompt 2,', 'Forgotten: "hello"', '/dance'):
        assert words in out
    assert out.count('[selected_prompt]') == 1 and next(typed, None) is None


def test_a_self_chat_says_whose_persona_is_whose(model_file, capsys, tmp_path):
    SelfChat.main('-mf', model_file, '--selfchat-max-turns', '2', '--outfile', str(tmp_path / 'chat'))
    out = capsys.readouterr().out
    assert out.count('has the persona') == 2 and all(f'[ Spt_{n} has the persona ]' in out for n in (1, 2))
