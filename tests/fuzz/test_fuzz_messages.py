"""The agent turns any ParlAI message into a context and a target that fit, or says what is wrong with it."""

import pytest
from helpers.fuzz_settings import fuzz
from hypothesis import given
from hypothesis import strategies as st
from parlai.core.agents import create_agent
from parlai.core.message import Message
from parlai.scripts.train_model import TrainModel

from spt_parlai.dialogue.messages import OWN_PERSONA, PARTNER_PERSONA, SILENCE
from spt_parlai.errors import UsageError

CHARACTERS = st.characters() | st.characters(categories=['Cs', 'Cc', 'Cf', 'Zs', 'Zl', 'Zp', 'Mn', 'Co'])
PARTS = st.one_of(
    st.text(CHARACTERS, max_size=30),
    st.sampled_from(
        [
            OWN_PERSONA,
            PARTNER_PERSONA,
            OWN_PERSONA.upper(),
            'your persona :',
            SILENCE,
            '\n',
            '\r\n',
            '\\n',
            '\x85',
            '\u2028',
            '\x00',
            '\t',
            ' ',
            '</s>',
            '<s>',
            '<pad>',
            '<unk>',
            '<0x0A>',
            '▁',
            'Ġ',
            'Q:',
            'R:',
            'given persona:',
            '; context:',
            '\ud83d',
            '\ude00',
            '\udcff',
            '\ufeff',
            '\u202e',
            '😀',
            'a\u0301' * 9,
            '__null__',
            '__start__',
            '[DONE]',
            'hello there , how are you ?',
            '%s {0} {}',
            '١٢',
        ]
    ),
    st.builds(lambda text, times: text * times, st.text(CHARACTERS, min_size=1, max_size=4), st.integers(1, 3000)),
)
TEXTS = st.lists(PARTS, max_size=6).map(''.join) | st.lists(
    st.tuples(st.sampled_from([OWN_PERSONA, PARTNER_PERSONA, '']), PARTS), max_size=5
).map(lambda lines: '\n'.join(map(''.join, lines)))
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.binary(max_size=9),
    st.lists(TEXTS, max_size=2),
    st.dictionaries(TEXTS, TEXTS, max_size=1),
)
LABELS = st.one_of(
    st.lists(TEXTS, max_size=3),
    st.lists(TEXTS, min_size=1, max_size=2).map(tuple),
    st.lists(JUNK | TEXTS, max_size=2),
    JUNK,
    TEXTS,
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        'id': st.just('partner') | JUNK,
        'text': TEXTS | TEXTS | TEXTS | JUNK,
        'labels': LABELS,
        'eval_labels': LABELS,
        'label_candidates': LABELS,
        'episode_done': st.booleans(),
        'reward': JUNK,
        'image': JUNK,
    },
)


@pytest.fixture(scope='module', params=['opt', 'llama'])
def agent(request, tiny_llms):
    return create_agent(
        TrainModel.setup_args().parse_kwargs(
            task='spt_parlai.tasks.sample',
            model='spt_parlai.agents:SptAgent',
            llm=getattr(tiny_llms, request.param),
            num_prompts=2,
            prompt_length=2,
            text_truncate=40,
            label_truncate=12,
            max_new_tokens=4,
            no_cuda=True,
            rank_candidates=True,
            loglevel='error',
        )
    )


@fuzz
@given(episode=st.lists(MESSAGES, min_size=1, max_size=3), size=st.sampled_from([-1, -1, 0, 1, 2]), reply=TEXTS)
def test_any_message(agent, episode, size, reply):
    ear = agent.clone()
    ear.history.size = size
    special = set(agent.dict.tokenizer.all_special_ids)
    for message in episode:
        try:
            heard = ear.observe(Message(message))
        except UsageError as error:
            assert '\n' not in str(error) and str(error).endswith('.')
            str(error).encode()  # it can be printed
            return
        context = heard['text_vec'].tolist()
        assert 0 < len(context) <= agent.text_truncate and context[0] == agent.dict.bos
        assert not special & set(context[1:]) and max(context) < len(agent.dict)
        kind = next((k for k in ('labels', 'eval_labels') if k in heard), None)
        if kind:
            target = heard[f'{kind}_vec'].tolist()
            assert (
                0 < len(target) <= agent.label_truncate
                and target[-1] == agent.END_IDX
                and not special & set(target[:-1])
            )
        batch = ear.batchify([heard])
        assert batch.text_vec.tolist() == [context] and batch.is_training == (kind == 'labels')
        agent.dict.vec2txt(context).encode()
        ear.self_observe(Message({'id': agent.id, 'text': reply, 'episode_done': heard['episode_done']}))
