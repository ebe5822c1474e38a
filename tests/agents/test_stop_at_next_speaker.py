"""Replies end before the next speaker's mark as they are generated: the whole reply, cut at the first mark."""

import pytest
import torch
from helpers.runs import AGENTS, SAMPLE
from parlai.core.agents import create_agent
from parlai.core.message import Message
from parlai.core.params import ParlaiParser
from parlai.scripts.display_model import DisplayModel
from parlai.scripts.eval_model import EvalModel
from parlai.scripts.self_chat import SelfChat

from spt_parlai.agents.base import LLMAgent
from spt_parlai.dialogue.instruction import END_OF_TURN
from spt_parlai.errors import UsageError

TEXTS = ('hello ! how are you ?', 'what do you do ?', 'do you have any pets ?', 'i like tea .', 'bye')
SEARCHES = {
    'greedy': {},
    'long': {'inference': 'topk', 'topk': 1, 'beam_min_length': 12},
    'beam': {'inference': 'beam', 'beam_size': 3},
    'beam of one': {'inference': 'beam', 'beam_min_length': 12},
    'topk': {'inference': 'topk', 'topk': 5},
    'nucleus': {'inference': 'nucleus', 'topp': 0.9},
}


def build(llm, agent='TextPromptAgent', **options):
    """An agent around an LLM with weights large enough for varied replies."""
    agent = create_agent(
        ParlaiParser(True, True).parse_kwargs(
            model=AGENTS + agent, llm=llm, label_truncate=24, seed=7, datatype='valid', max_new_tokens=12, **options
        )
    )
    agent.model.eval()
    with torch.no_grad():
        for weight in agent.bare_model.llm.lm.parameters():
            if weight.ndim > 1:
                weight.mul_(8)
    return agent


def reply(agent, text, stops, seed=3):
    """One reply: (text, tokens, the score of each, how often the LLM ran after the prefill)"""
    agent.opt['stop_at_next_speaker'] = stops
    agent.reset()
    runs, decode = [], agent.bare_model.llm.decode
    agent.bare_model.llm.decode = lambda *given: (runs.append(1), decode(*given))[1]
    torch.manual_seed(seed)
    with torch.no_grad():
        batch = agent.batchify([agent.observe(Message({'text': text, 'episode_done': True}))])
        batch['selection'] = None
        best, _ = agent._generate(batch, agent.beam_size, 12)
    agent.bare_model.llm.decode = decode
    return agent._v2t(best[0][0]), best[0][0].tolist(), len(runs)


def spans(text):
    """Parts of a text, as marks: within a token, over several of them, and what the whole ends in."""
    parts = {text[at : at + size] for size in (1, 2, 3, 5) for at in range(1, len(text) - size + 1)} - {' '}
    return sorted(part for part in parts if part.isascii())


@pytest.mark.parametrize('kind', SEARCHES)
def test_the_whole_reply_is_cut_at_the_first_mark(tiny_llms, kind):
    agent = build(tiny_llms.llama, **SEARCHES[kind])
    cut = 0
    for text in TEXTS:
        whole, tokens, _ = reply(agent, text, 'false')
        for mark in spans(whole)[::7]:
            agent.marks = (mark, 'never said')
            said, kept, runs = reply(agent, text, 'true')
            if kind == 'beam':  # hypotheses that end at a mark compete
                assert mark not in said
                continue
            assert said == whole.partition(mark)[0].strip()
            assert tokens[: len(kept) - 1] == kept[:-1] and kept[-1] == agent.END_IDX
            needed = next(n for n in range(len(kept)) if mark in agent.dict.decode(kept[1 : n + 1]).lstrip())
            assert len(kept) == min(needed + 2, 13)
            assert runs <= needed - (kind != 'beam of one'), 'a token was computed beyond the mark'
            cut += said != whole
    assert cut > 10 or kind == 'beam'


def test_rows_of_a_batch_end_each_at_its_own_mark(tiny_llms):
    agent = build(tiny_llms.llama)
    wholes = [reply(agent, text, 'false')[0] for text in TEXTS]
    agent.marks = tuple(part for whole in wholes for part in spans(whole)[5:6])
    assert len(agent.marks) > 2
    clones = [agent.clone() for _ in TEXTS]
    observed = [c.observe(Message({'text': t, 'episode_done': True})) for c, t in zip(clones, TEXTS, strict=True)]
    for clone in clones:
        clone.marks = agent.marks
    agent.opt['stop_at_next_speaker'] = 'true'
    said = [act['text'] for act in agent.batch_act(observed)]
    assert said == [min((w.partition(mark)[0] for mark in agent.marks), key=len).strip() for w in wholes]
    assert said != wholes


def test_line_breaks_end_a_reply_at_once_and_never_before_its_first_word(tiny_llms):
    agent = build(tiny_llms.opt)
    ids = agent.dict.tokenizer.encode('\n', add_special_tokens=False), agent.dict.piece('hello', True)
    assert agent.marks == END_OF_TURN
    assert not agent._is_past_reply([*ids[0], *ids[1]]) and agent._is_past_reply([*ids[1], *ids[0]])
    agent.opt['stop_at_next_speaker'] = 'true'
    assert agent._v2t([*ids[0], *ids[1], *ids[0], *ids[1]]) == 'hello'


def test_thoughts_have_lines(tiny_llms):
    agent = build(tiny_llms.opt)
    thinking = agent.dict.tokenizer.encode('<think>a\nR: b', add_special_tokens=False)
    spoken = agent.dict.tokenizer.encode('</think>\nhello', add_special_tokens=False)
    more = agent.dict.tokenizer.encode(' R: b', add_special_tokens=False)
    assert not agent._is_past_reply(thinking) and not agent._is_past_reply(thinking + spoken)
    assert agent._is_past_reply(thinking + spoken + more)


def stops_in(script, llm, monkeypatch, **options):
    """Whether the agent of a command ends replies; and what it says and remembers."""
    seen = []
    act = LLMAgent.self_observe

    def self_observe(agent, message):
        seen.append((agent.stops_at_next_speaker, message.get('text')))
        return act(agent, message)

    monkeypatch.setattr(LLMAgent, 'self_observe', self_observe)
    script.main(llm=llm, max_new_tokens=4, label_truncate=24, **options)
    (stops,) = {stops for stops, _ in seen}
    return stops


def test_the_default_depends_on_the_command(tiny_llms, monkeypatch, tmp_path):
    plain = {'model': AGENTS + 'TextPromptAgent'}
    chat = {'num_self_chats': 1, 'selfchat_max_turns': 2, 'outfile': str(tmp_path / 'chat')}
    tasks = {'task': SAMPLE, 'num_examples': 2, 'datatype': 'valid'}
    assert stops_in(SelfChat, tiny_llms.opt, monkeypatch, **plain, **chat)
    assert not stops_in(SelfChat, tiny_llms.opt, monkeypatch, **plain, **chat, stop_at_next_speaker='false')
    assert stops_in(DisplayModel, tiny_llms.opt, monkeypatch, **plain, **tasks)
    assert not stops_in(EvalModel, tiny_llms.opt, monkeypatch, **plain, **tasks)
    assert stops_in(EvalModel, tiny_llms.opt, monkeypatch, **plain, **tasks, stop_at_next_speaker='true')
    assert stops_in(EvalModel, tiny_llms.opt, monkeypatch, model=AGENTS + 'InContextAgent', **tasks)


def test_what_was_cut_is_not_remembered(tiny_llms):
    agent = build(tiny_llms.llama)
    whole, _, _ = reply(agent, TEXTS[0], 'false')
    mark = spans(whole)[4]
    agent = agent.clone()
    agent.marks, agent.opt['stop_at_next_speaker'] = (mark,), 'true'
    agent.observe(Message({'text': TEXTS[0], 'episode_done': False}))
    said = agent.act()['text']
    assert said == whole.partition(mark)[0].strip()
    assert agent.history.dialogue.turns[-1].text == said and len(said) < len(whole)


def test_a_chat_template_has_no_marks(tiny_llms, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(tiny_llms.opt).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llms.opt)
    tokenizer.chat_template = '{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}'
    tokenizer.save_pretrained(tmp_path)
    agent = build(str(tmp_path), 'InContextAgent', interactive_mode=True)
    assert not agent.stops_at_next_speaker and agent.marks == ()
    with pytest.raises(UsageError, match='^--stop-at-next-speaker .true.: .*--chat-template false'):
        build(str(tmp_path), 'InContextAgent', stop_at_next_speaker='true')
