"""`spt judge` with a server that plays the judge: pairs, both orders, ties, agreement, and what it refuses."""

import itertools
import json
import re

import numpy as np
import pytest
from helpers.chat_server import Answer, chat_server
from typer.testing import CliRunner

from spt_parlai import judge
from spt_parlai.cli import app
from spt_parlai.judge import Judgement, Pair

PERSONA = 'your persona: i ski .\nyour persona: i bake .\n'


def write(path, replies, order=None, task=''):
    """A world log of dialogues with two turns each. replies: of dialogue d at turn n."""
    lines = []
    for d in order or range(len(replies)):
        dialogue = [
            [
                {'text': f'{PERSONA if n == 0 else ""}{task}message {d} {n}', 'eval_labels': [f'gold {d} {n}']},
                {'text': reply},
            ]
            for n, reply in enumerate(replies[d])
        ]
        lines.append(json.dumps({'dialog': dialogue}) + '\n')
    path.write_text(''.join(lines))
    return path


@pytest.fixture
def logs(tmp_path):
    """Two logs of twelve dialogues in different orders; the last two have the same replies in both."""
    ours = [[f'good {d} 0', f'good {d} 1'] for d in range(12)]
    theirs = [[f'bad {d} 0', f'bad {d} 1'] if d < 10 else list(ours[d]) for d in range(12)]
    return write(tmp_path / 'a.jsonl', ours), write(tmp_path / 'b.jsonl', theirs, order=[*range(11, -1, -1)])


@pytest.fixture
def server():
    with chat_server() as server:
        server.reply = lambda request: prefers('good')(replies_of(request))
        yield server


def replies_of(request):
    """What stands in the first and in the second place of a question."""
    return re.findall(r'reply [12]: (.*)', request['messages'][-1]['content'])


def prefers(word):
    """A judge that chooses the reply with this word, wherever it stands."""
    return lambda replies: '1' if word in replies[0] else '2' if word in replies[1] else 'tie'


def run(logs, server, *words):
    words = ['judge', *map(str, logs), '--url', server.base, '--model', 'wise', *map(str, words)]
    result = CliRunner().invoke(app, words)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def summary(choices):
    pairs = [Pair(d, (), (), ('x', 'y')) for d in range(len(choices))]
    return judge.summarize(list(map(Judgement, pairs, choices)))


# ---- the command ---------------------------------------------------------------------------------------------


def test_a_judge_that_knows_the_better_reply_says_so_in_both_orders(logs, server, tmp_path):
    out = tmp_path / 'new' / 'judged.jsonl'
    shown = run(logs, server, '--pairs', 0, '--out', out).output
    assert '24 messages in common, 4 with the same reply; 20 pairs, each in both orders.' in shown
    assert 'A 20, B 0, tie 0 of 20; A has 100.0% with half of the ties, p = 0.00195' in shown  # 2 / 2¹⁰ dialogues
    assert 'Both orders agree in 100% (κ 1.00); the reply in the first place is chosen in 50%' in shown
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 20 and {line['winner'] for line in lines} == {'A'}
    assert all(line['A'].replace('good', 'bad') == line['B'] for line in lines)
    assert run(logs[::-1], server, '--pairs', 0).output.count('A 0, B 20, tie 0 of 20') == 1


def test_the_judge_sees_persona_chat_and_both_replies_and_nothing_of_the_models(logs, server):
    run(logs, server, '--pairs', 0, '--max-new-tokens', 5, '--api-parameters', '{"top_p": 0.5}')
    assert len(server.requests) == 40
    wanted = (
        'Facts about the speaker who replies:\n- i ski .\n- i bake .\n\n'
        'The chat so far:\nOther: message 3 0\nSpeaker: gold 3 0\nOther: message 3 1\n\n'
        "The speaker's reply 1: {}\nThe speaker's reply 2: {}\n\n" + judge.QUESTION
    )
    asked = [request['messages'][1]['content'] for request in server.requests]
    assert wanted.format('good 3 1', 'bad 3 1') in asked and wanted.format('bad 3 1', 'good 3 1') in asked
    request = server.requests[0]
    assert (request['model'], request['temperature'], request['max_tokens'], request['top_p']) == ('wise', 0, 5, 0.5)
    assert request['messages'][0] == {'role': 'system', 'content': judge.INSTRUCTION}


def test_a_judge_that_prefers_a_place_gives_ties_and_is_told(logs, server):
    server.reply = lambda request: '1'
    shown = run(logs, server, '--pairs', 0).output
    assert 'A 0, B 0, tie 20 of 20; A has 50.0% with half of the ties, p = 1\n' in shown
    assert 'Both orders agree in 0%' in shown and 'the reply in the first place is chosen in 100%' in shown


def test_the_same_seed_draws_the_same_pairs_from_different_dialogues(logs, server):
    asked = []
    for seed in (1, 1, 2):
        server.requests.clear()
        assert 'of 6;' in run(logs, server, '--pairs', 6, '--seed', seed).output
        asked.append({request['messages'][1]['content'] for request in server.requests})
        assert len({re.search(r'Other: message (\d+)', text)[1] for text in asked[-1]}) == 6
    assert asked[0] == asked[1] != asked[2]


def test_answers_that_cannot_be_read_are_told(logs, server):
    answers = itertools.cycle(['1', 'neither of them'])
    server.reply = lambda request: next(answers)
    assert '20 of 40 answers could not be read' in run(logs, server, '--pairs', 0, '--api-concurrency', 1).output
    server.reply = lambda request: 'hmm'
    result = run(logs, server)
    assert result.exit_code == 1 and '--model wise: none of its answers contains 1, 2 or tie' in result.output


def test_another_instruction_reaches_the_judge(logs, server):
    run(logs, server, '--pairs', 1, '--instruction', 'Which speaker skis?')
    assert {request['messages'][0]['content'] for request in server.requests} == {'Which speaker skis?'}


def test_what_the_server_refuses_is_one_sentence(logs, server):
    server.script = [Answer(401, {'error': {'message': 'no key'}})]
    result = run(logs, server, '--pairs', 1, '--api-concurrency', 1)
    assert result.exit_code == 1 and f'--api-base {server.base}: it does not accept the key' in result.output


def test_logs_that_cannot_be_compared_are_refused_before_any_request(logs, server, tmp_path):
    other = write(tmp_path / 'other.jsonl', [['x']], task='of another task: ')
    missing, broken = tmp_path / 'missing.jsonl', tmp_path / 'broken.jsonl'
    broken.write_text('{}\n')
    for second, told in (
        (other, 'have no message in common; evaluate both models on the same task.'),
        (missing, f'{missing}: No such file or directory.'),
        (broken, f'{broken}, line 1 is no dialogue of a world log'),
        (logs[0], 'have the same replies; there is nothing to judge.'),
    ):
        result = run((logs[0], second), server)
        assert result.exit_code == 1 and told in result.output, result.output
    result = CliRunner().invoke(app, ['judge', *map(str, logs), '--url', 'localhost:1', '--model', 'm'])
    assert '--api-base localhost:1: give a URL that begins with http:// or https://' in result.output
    assert not server.requests


# ---- its parts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'answer, said',
    [
        ('1', 'A'),
        (' **2** ', 'B'),
        ('Reply 1.', 'A'),
        ('TIE', 'tie'),
        ('<think>1 is dull, 2 is not</think>\n2', 'B'),
        ('Reply 1 is polite, reply 2 is not.\nAnswer: 1', 'A'),
        ('Reply 1 is better than reply 2.', None),
        ('10 of 10', None),
        ('', None),
    ],
)
def test_what_an_answer_says(answer, said):
    assert judge.choice(answer, swapped=False) == said
    assert judge.choice(answer, swapped=True) == {'A': 'B', 'B': 'A'}.get(said, said)


def test_a_reply_wins_only_if_both_orders_choose_it():
    choices = [('A', 'A'), ('A', 'B'), ('B', 'B'), ('A', 'tie'), ('tie', 'tie'), (None, 'A'), ('A', 'A')]
    told = summary(choices)
    assert (told['A'], told['B'], told['tie'], told['unreadable']) == (2, 1, 4, 1)
    assert told['share of A'] == pytest.approx((2 + 4 / 2) / 7) and told['agreement'] == pytest.approx(4 / 6)
    assert told['first place'] == 6 / 10  # A is first in the one order and B in the other


def test_kappa_is_cohens():
    from sklearn.metrics import cohen_kappa_score

    draw = np.random.default_rng(0)
    choices = [tuple(draw.choice(['A', 'B', 'tie'], 2, p=[0.5, 0.3, 0.2])) for _ in range(50)]
    assert summary(choices)['kappa'] == pytest.approx(cohen_kappa_score(*zip(*choices, strict=True)))
    assert summary([('A', 'A')] * 3)['kappa'] == 1 and summary([(None, 'A')])['kappa'] == 0


def test_the_turns_of_a_dialogue_are_one_observation():
    pairs = [Pair(n // 4, (), (), ('x', 'y')) for n in range(12)]
    told = judge.summarize([Judgement(pair, ('A', 'A')) for pair in pairs])
    assert told['p'] == pytest.approx(2 / 2**3)
    assert summary([('A', 'A')])['p'] == 1


def test_a_message_that_stands_twice_has_its_own_replies(tmp_path):
    first, second = tmp_path / 'a', tmp_path / 'b'
    for path, letters in ((first, 'ab'), (second, 'xy')):
        turns = [{'dialog': [[{'text': 'hi', 'eval_labels': ['ho']}, {'text': letter}]]} for letter in letters]
        path.write_text(''.join(json.dumps(turn) + '\n' for turn in turns))
    assert [pair.replies for pair in judge.read_pairs(first, second, False)] == [('a', 'x'), ('b', 'y')]


def test_replies_are_cut_if_asked(logs, server, tmp_path):
    cut = write(tmp_path / 'cut.jsonl', [['one\ntwo', 'x']])
    assert [pair.replies[0] for pair in judge.read_pairs(cut, logs[0], True)] == ['one', 'x']
    assert judge.read_pairs(cut, logs[0], False)[0].replies[0] == 'one\ntwo'
