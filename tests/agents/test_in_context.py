"""In-context learning with a local LLM: its contexts and replies, and that nothing is trained."""

import itertools
import json
import shutil

import pytest
import torch
from helpers.runs import AGENTS, SAMPLE, evaluate
from parlai.core.agents import create_agent
from parlai.core.message import Message
from parlai.scripts.eval_model import EvalModel
from parlai.scripts.interactive import Interactive
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from spt_parlai.dialogue.instruction import INSTRUCTION, first_turn_of
from spt_parlai.dialogue.messages import Dialogue
from spt_parlai.dialogue.training_set import instruction_of
from spt_parlai.errors import UsageError

BASIC = {
    'task': SAMPLE,
    'model': AGENTS + 'InContextAgent',
    'max_new_tokens': 6,
    'label_truncate': 24,
    'instruction': 'reply .',
}
CHAT = (
    "{% for m in messages %}{% if loop.index0 and (m['role'] == 'user') != (loop.index0 % 2 == SHIFT) %}"
    "{{ raise_exception('order') }}{% endif %}NO_SYSTEM{{ '</s>' + m['role'][0] + ' ' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '</s>a ' }}{% endif %}"
)
TEMPLATES = {
    'system': CHAT.replace('SHIFT', '1').replace('NO_SYSTEM', ''),
    'no system': CHAT.replace('SHIFT', '0').replace(
        'NO_SYSTEM', "{% if m['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    ),
}


@pytest.fixture(scope='module')
def chat_llms(tiny_llms, tmp_path_factory):
    """The tiny OPT with each chat template."""
    folders = {}
    for name, template in TEMPLATES.items():
        folders[name] = tmp_path_factory.mktemp('chat') / 'opt'
        shutil.copytree(tiny_llms.opt, folders[name])
        tokenizer = AutoTokenizer.from_pretrained(tiny_llms.opt)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope='module')
def wide_llms(tiny_llms, chat_llms, tmp_path_factory):
    """LLMs with a window in which examples have room."""
    folders = {}
    for name, source in (('opt', tiny_llms.opt), ('llama', tiny_llms.llama), *chat_llms.items()):
        folders[name] = str(tmp_path_factory.mktemp('wide') / 'llm')
        shutil.copytree(source, folders[name])
        config = AutoConfig.from_pretrained(source, max_position_embeddings=640)
        AutoModelForCausalLM.from_config(config).save_pretrained(folders[name])
    return folders


def agent_of(llm, **more):
    return create_agent(EvalModel.setup_args().parse_kwargs(**{**BASIC, 'llm': str(llm), **more}))


def hear(agent, *texts, label=None):
    """The observation after these messages, to which the agent gave the labelled replies."""
    for text in texts:
        heard = agent.observe(Message({'text': text, 'eval_labels': (label or 'fine .',), 'episode_done': False}))
        if text != texts[-1]:
            agent.self_observe(Message({'text': 'x'}))
    return heard


def read(agent, heard) -> str:
    return agent.dict.tokenizer.decode(heard['text_vec'])


def test_reads_the_instruction_and_the_dialogue(tiny_llms):
    agent = agent_of(tiny_llms.opt)
    heard = hear(agent, 'your persona: i ski.\nhello', 'bye')
    assert read(agent, heard) == '</s>reply . given persona: i ski.; context: Q: hello R: fine . Q: bye R:'
    assert not list(agent.model.parameters()) and not agent.model.state_dict() and not hasattr(agent, 'optimizer')


@pytest.mark.parametrize(
    'name, begins',
    [
        ('system', '</s>s reply .\n\nYour persona: i ski.</s>u hello'),
        ('no system', '</s>u reply .\n\nYour persona: i ski.\n\nhello'),
    ],
)
def test_speaks_as_the_llms_chats_do(chat_llms, name, begins):
    agent = agent_of(chat_llms[name])
    heard = hear(agent, 'your persona: i ski.\nhello', 'bye')
    assert read(agent, heard) == f'{begins}</s>a fine .</s>u bye</s>a '
    assert agent.dict.tokenizer.decode(heard['eval_labels_vec']) == 'fine .</s>'
    plain = agent_of(chat_llms[name], chat_template='false')
    assert read(plain, hear(plain, 'hello')) == '</s>reply . context: Q: hello R:'


@pytest.mark.parametrize('which', ['opt', 'llama', 'system', 'no system'])
def test_scores_and_replies_are_the_llms_own(tiny_llms, chat_llms, which):
    """Loss and greedy reply of a batch equal those of the transformers LLM on each row alone."""
    folder = str(chat_llms[which]) if which in chat_llms else getattr(tiny_llms, which)
    agent, lm = agent_of(folder, shots=1, seed=5), AutoModelForCausalLM.from_pretrained(folder)
    heard = [
        hear(agent.clone(), *texts, label=label)
        for texts, label in (
            (('your persona: i have a dog.\nhello',), 'hello , how are you ?'),
            (('hi', 'what do you do ?'), 'i am a nurse .'),
        )
    ]
    for row, reply in zip(heard, agent.batch_act(heard), strict=True):
        context, target = row['text_vec'], row['eval_labels_vec']
        with torch.no_grad():
            logits = lm(input_ids=torch.cat([context, target])[None]).logits[0, len(context) - 1 : -1]
        nll = torch.nn.functional.cross_entropy(logits, target, reduction='sum')
        assert float(reply['metrics']['loss'].value()) == pytest.approx(float(nll) / len(target), rel=1e-5)
        everything = torch.ones_like(context)[None]
        ids = lm.generate(
            context[None], max_new_tokens=5, do_sample=False, attention_mask=everything, pad_token_id=0
        )  # ParlAI counts EOS, too
        said = agent.dict.vec2txt([i for i in ids[0, len(context) :].tolist() if i != agent.END_IDX])
        assert reply['text'] == (' '.join(said.split()) if which in chat_llms else first_turn_of(said))


@pytest.mark.parametrize('which', ['opt', 'llama', 'system', 'no system'])
def test_the_window_keeps_instruction_persona_and_the_newest_turn(wide_llms, which):
    agent = agent_of(wide_llms[which], shots=2)
    for words in (1, 80, 400):
        heard = hear(
            agent.clone(), 'your persona: i ski.\nhello', 'what do you do ?', *['how are you ? ' * words + 'bye']
        )
        text = read(agent, heard)
        assert len(heard['text_vec']) <= agent.text_truncate
        assert (
            'reply .' in text
            and 'bye' in text.removesuffix('</s>a ').removesuffix(' R:')[-4:]
            and ('ski' in text or words == 400)
        )
        assert bool(heard['context_truncate_rate']) == (
            words > 1
        )  # first one example is left out, then both and older turns


def test_an_instruction_that_fills_the_window_is_refused(tiny_llms, chat_llms):
    for llm in (tiny_llms.opt, chat_llms['system']):
        with pytest.raises(UsageError, match="--instruction: it takes .* of the context's 136 tokens"):
            agent_of(llm, instruction='how are you ? ' * 80)


def test_evaluates_batches_and_logs(wide_llms, tmp_path):
    """An evaluation needs no model file, and its numbers do not depend on the batch size."""
    reports = []
    for batchsize in (1, 5):
        reports.append(
            evaluate(
                **{**BASIC, 'llm': wide_llms['opt'], 'num_examples': 20, 'batchsize': batchsize, 'shots': 1, 'seed': 2}
            )
        )
    evaluate(
        **{
            **BASIC,
            'llm': wide_llms['opt'],
            'num_examples': 20,
            'world_logs': str(tmp_path / 'log'),
            'instruction': INSTRUCTION,
        }
    )
    assert json.loads((tmp_path / 'log.jsonl').read_text().splitlines()[0])['dialog'][0][1]['id'] == 'InContext'
    assert (
        reports[0]['exs'] == 20 <= reports[1]['exs']
        and {'ppl', 'ppl_word', 'unigram_f1', 'ctrunc'} <= reports[0].keys()
    )


def test_a_chat_in_which_it_has_examples(wide_llms, monkeypatch, capsys):
    lines = iter(['hello', '[EXIT]'])
    monkeypatch.setattr('builtins.input', lambda _prompt='': next(lines))
    given = {**{k: v for k, v in BASIC.items() if k != 'task'}, 'llm': wide_llms['opt'], 'persona': 'i ski.'}
    Interactive.main(**given, shots=1, training_task=SAMPLE)
    assert '[InContext]' in capsys.readouterr().out
    with pytest.raises(UsageError, match='--training-task'):
        Interactive.main(**given, shots=1)


@pytest.mark.parametrize('which', ['opt', 'system'])
def test_examples_that_are_too_long_are_shown_from_their_beginning(tiny_llms, wide_llms, which):
    """Otherwise they would never be shown, because a small window has no room for whole dialogues."""
    agent = agent_of(wide_llms[which], shots=1)
    (example,), (whole,) = agent.instruction.examples, instruction_of(agent.opt).examples
    assert 0 < len(example.turns) < len(whole.turns) and example.turns[-1].own
    assert example == Dialogue(whole.persona, whole.turns[: len(example.turns)])
    heard = hear(agent.clone(), 'your persona: i ski.\nhello')
    assert not heard['context_truncate_rate'] and example.turns[-1].text.split()[-2] in read(agent, heard)
    with pytest.raises(UsageError, match='--shots 30: .* give fewer'):
        agent_of(wide_llms[which], shots=30)


@pytest.mark.parametrize('used', ['always', 'by replies', 'never'])
def test_a_template_with_a_token_that_the_llm_does_not_know(tiny_llms, tmp_path, used):
    """As where `<|im_start|>` was added to a tokenizer, but not to the LLM."""
    folder = shutil.copytree(tiny_llms.opt, tmp_path / 'opt')
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({'additional_special_tokens': ['<more>']})
    mark = {'always': '<more>', 'by replies': "{% if m['role'] == 'assistant' %}<more>{% endif %}", 'never': ''}[used]
    tokenizer.chat_template = "{% for m in messages %}MARK{{ m['content'] }} {% endfor %}".replace('MARK', mark)
    tokenizer.save_pretrained(folder)
    if used != 'never':
        with pytest.raises(UsageError, match=f"--llm {folder}: .*'<more>', which the LLM does not know; give --chat-t"):
            agent_of(folder)
    for more in ({'chat_template': 'false'},) if used != 'never' else ({}, {'chat_template': 'false'}):
        agent = agent_of(folder, **more)
        agent.observe(Message(text='hello <more> you', episode_done=True))
        assert agent.act()['text'] is not None


# ---- a turn that does not end in EOS ---------------------------------------------------------------------------


@pytest.fixture(scope='module')
def turn_llm(tiny_llms, tmp_path_factory):
    """A chat LLM like Gemma: only its generation config says that `<turn>` ends a reply. It says `a<turn>bcbcbc…`."""
    folder = shutil.copytree(tiny_llms.llama, tmp_path_factory.mktemp('turn') / 'llm')
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({'additional_special_tokens': ['<turn>', '<model>']})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}<turn>{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    V = len(tokenizer)
    config = AutoConfig.from_pretrained(folder, vocab_size=V, hidden_size=V, num_hidden_layers=1, num_attention_heads=1)
    config.num_key_value_heads, config.head_dim = 1, V + V % 2
    lm = AutoModelForCausalLM.from_config(config)
    turn, begin, b, c = tokenizer.convert_tokens_to_ids(['<turn>', '<model>', 'b', 'c'])
    said = [begin, *tokenizer.encode('a', add_special_tokens=False), turn, b, c, b]
    with torch.no_grad():  # a bigram LM: the next token depends on the last one alone
        for parameter in lm.parameters():
            parameter.zero_() if parameter.ndim > 1 else parameter.fill_(1)
        lm.model.embed_tokens.weight.copy_(torch.eye(V))
        for last, following in itertools.pairwise(said):
            lm.lm_head.weight[following, last] = 10
    lm.generation_config.eos_token_id = [tokenizer.eos_token_id, turn]
    lm.save_pretrained(folder)
    return folder, turn


@pytest.mark.parametrize('loop', ['ours', "ParlAI's", 'beam', 'nucleus'])
def test_a_reply_ends_at_every_end_token(turn_llm, loop):
    folder, _ = turn_llm
    more = {'inference': loop, 'beam_size': 2 if loop == 'beam' else 1} if loop in ('beam', 'nucleus') else {}
    agent = agent_of(folder, max_new_tokens=12, **more)
    agent.searches_batches = loop != "ParlAI's"
    agent.observe(Message(text='hello', episode_done=True))
    assert agent.act()['text'] == 'a'
    assert agent.bare_model.end_temperature == (1 if loop == 'nucleus' else 0)


def test_perplexity_counts_the_end_of_the_turn(turn_llm):
    """The reply that the LLM gives is likely to its end; that of the tokenizer's EOS would not be."""
    folder, turn = turn_llm
    agent = agent_of(folder)
    heard = agent.observe(Message({'text': 'hello', 'eval_labels': ('a',), 'episode_done': True}))
    assert heard['eval_labels_vec'].tolist()[-1] == turn
    assert agent.act()['metrics']['ppl'].value() < 1.5
    assert agent_of(folder, chat_template='false').batcher.end == agent.dict.eos
