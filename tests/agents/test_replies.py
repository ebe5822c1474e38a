"""Every search of ParlAI with every option: the tokens, texts and details of the replies."""

import pytest
import torch
from helpers.runs import evaluate, train, turns
from parlai.core.agents import create_agent_from_model_file

from spt_parlai.agents import SptAgent

SEARCHES = {
    'greedy': {},
    'beam': {'beam_size': 3},
    'topk': {'topk': 5},
    'nucleus': {'topp': 0.3},
    'factual_nucleus': {'topp': 0.9},
    'delayedbeam': {'beam_size': 2, 'topk': 5, 'beam_delay': 2},
    'delayednucleusbeam': {'beam_size': 2, 'topp': 0.5, 'beam_delay': 2},
}
TEXTS = (
    'your persona: i like tea .\nhello ! how are you ?',
    'what do you do ?',
    'do you have any pets ? yes , a dog and two cats .',
)


@pytest.fixture(scope='module')
def model_file(tiny_llms, tmp_path_factory):
    path = tmp_path_factory.mktemp('replies') / 'm'
    train(path, tiny_llms.opt, max_train_steps=4, num_prompts=2)
    return path


@pytest.fixture
def agent(model_file):
    """agent(kind, **options): the trained agent, as another class or with some options changed."""

    def make(kind=SptAgent, **options):
        made = create_agent_from_model_file(str(model_file), {'datatype': 'valid', 'max_new_tokens': 8, **options})
        made.__class__ = kind
        return made

    return make


def replies(agent, texts=TEXTS, seed=0, labels='i am fine .'):
    """The agent's acts after a batch of first messages."""
    torch.manual_seed(seed)
    clones = [agent.clone() for _ in texts]
    observed = [
        c.observe({'text': t, 'eval_labels': [labels], 'episode_done': True})
        for c, t in zip(clones, texts, strict=True)
    ]
    return agent.batch_act(observed)


def tokens(act, agent):
    """The tokens of a reply that its details name, without start and end."""
    return [details[0] for details in act['text_token_info'] if details[0] not in ('__start__', agent.dict.end_token)]


# ---- details --------------------------------------------------------------------------------------------


def test_token_losses_and_logits_are_those_of_the_selected_prompt(agent):
    made = agent(verbose=True, verbose_topk=5)
    llm = made.model.llm
    for act, text in zip(replies(made), TEXTS, strict=True):
        context = made.clone().observe({'text': text, 'episode_done': True})['text_vec'].tolist()
        target = [*made.dict.txt2vec('i am fine .'), made.END_IDX]
        prompt = made.model.soft_prompts.tokens[act['selected_prompt']]
        row = torch.cat([prompt, llm.embed(torch.tensor([*context, *target[:-1]]))])[None]
        logits = llm.lm(inputs_embeds=row).logits[0, -len(target) :]
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(target), reduction='none')
        assert [token for token, _ in act['token_losses']] == [made.dict[t] for t in target]
        assert [loss for _, loss in act['token_losses']] == pytest.approx(nll.tolist(), rel=1e-4)
        best = logits.topk(5)
        assert torch.tensor(act['logit_inds'])[: len(target)].tolist() == best.indices.tolist()
        torch.testing.assert_close(torch.tensor(act['logits'])[: len(target)], best.values, rtol=1e-4, atol=1e-4)


def test_logits_are_computed_only_when_asked_for(agent):
    assert 'token_losses' in replies(agent(verbose=True))[0] and 'logits' not in replies(agent(verbose=True))[0]
    assert not {'token_losses', 'logits', 'text_token_info'} & set(replies(agent())[0])


@pytest.mark.parametrize('inference', SEARCHES)
def test_token_details_spell_the_reply(agent, inference):
    made = agent(verbose=True, inference=inference, **SEARCHES[inference])
    for act in replies(made):
        assert made.dict.vec2txt(made.dict.tokenizer.convert_tokens_to_ids(tokens(act, made))) == act['text']
        assert all(
            details[1]['token_logprob'] <= 1e-6 and details[1]['token_rank'] >= 0
            for details in act['text_token_info'][1:]
        )


# ---- searches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('inference', SEARCHES)
def test_a_batch_replies_as_one_by_one(agent, inference):
    """Searches that sample get a k or p that leaves a single token."""
    certain = {
        'topk': {'topk': 1},
        'nucleus': {'topp': 1e-9},
        'factual_nucleus': {'topp': 1e-9, 'omega_bound': 1e-9},
        'delayedbeam': {'beam_size': 2, 'topk': 1, 'beam_delay': 2},
    }
    certain['delayednucleusbeam'] = {'beam_size': 2, 'topp': 1e-9, 'beam_delay': 2}
    made = agent(inference=inference, **certain.get(inference, SEARCHES[inference]))
    assert [a['text'] for a in replies(made)] == [replies(made, [text])[0]['text'] for text in TEXTS]


def test_certain_sampling_is_greedy(agent):
    greedy = [a['text'] for a in replies(agent())]
    for options in (
        {'inference': 'topk', 'topk': 1},
        {'inference': 'nucleus', 'topp': 1e-9},
        {'inference': 'beam', 'beam_size': 1},
        {'inference': 'topk', 'topk': 300, 'temperature': 1e-4},
    ):
        assert [a['text'] for a in replies(agent(**options))] == greedy


def test_sampling_follows_its_options(agent):
    def ranks(**options):
        made = agent(verbose=True, **options)
        return [
            d[1]['token_rank']
            for seed in range(5)
            for act in replies(made, seed=seed)
            for d in act['text_token_info'][1:]
        ]

    assert max(ranks(inference='topk', topk=3)) < 3 <= max(ranks(inference='topk', topk=50))
    narrow, wide = ranks(inference='nucleus', topp=0.01), ranks(inference='nucleus', topp=0.9)
    assert sum(narrow) / len(narrow) < sum(wide) / len(wide)
    decayed = ranks(inference='factual_nucleus', topp=0.9, lambda_decay=1e-6, omega_bound=1e-6)
    kept = ranks(inference='factual_nucleus', topp=0.9, lambda_decay=1.0, omega_bound=0.9, p_reset=False)
    assert sum(decayed) / len(decayed) < sum(kept) / len(kept)
    delayed = agent(verbose=True, inference='delayedbeam', beam_size=2, topk=1, beam_delay=8)
    assert all(d[1]['token_rank'] == 0 for act in replies(delayed) for d in act['text_token_info'][1:])


def test_a_beam_finds_what_is_likelier_than_greedy(agent):
    def total(act):
        return sum(d[1]['token_logprob'] for d in act['text_token_info'][1:])

    options = {'beam_min_length': 8, 'beam_length_penalty': 0.0, 'beam_size': 8, 'inference': 'beam'}
    for wide, greedy in zip(replies(agent(verbose=True, **options)), replies(agent(verbose=True)), strict=True):
        if len(wide['text_token_info']) == len(greedy['text_token_info']):
            assert total(wide) >= total(greedy) - 1e-4


def favour_end(amount):
    """An agent class whose LLM is likely to end its reply."""

    class Eager(SptAgent):
        def _generation_activation(self, score):
            score[..., self.END_IDX] += amount
            return super()._generation_activation(score)

    return Eager


def test_min_length_holds_off_the_end(agent):
    for length in (1, 3, 6):
        made = agent(favour_end(1000.0), inference='beam', beam_size=2, beam_min_length=length, verbose=True)
        assert all(len(tokens(act, made)) == length for act in replies(made))


def test_length_penalty_ranks_the_hypotheses(agent):
    """A hypothesis of t steps has its log-probability divided by ((1 + t) / 6) ** penalty."""

    def scores(penalty):
        made = agent(favour_end(4.0), inference='beam', beam_size=6, beam_length_penalty=penalty, max_new_tokens=12)
        return [act['beam_texts'] for act in replies(made)]

    compared = 0
    for plain, penalised in zip(scores(0.0), scores(2.0), strict=True):
        assert len(plain) == 6 and [s for _, s in penalised] == sorted((s for _, s in penalised), reverse=True)
        for text, score in penalised:
            if dict(plain).get(text):
                steps = 6 * (dict(plain)[text] / score) ** 0.5 - 1
                assert steps == pytest.approx(round(steps), abs=0.1) and steps >= 1
                compared += 1
    assert compared > 3


def ngrams(items, n):
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


@pytest.mark.parametrize('inference', SEARCHES)
def test_blocked_ngrams_do_not_repeat(agent, inference):
    made = agent(verbose=True, inference=inference, beam_block_ngram=1, max_new_tokens=12, **SEARCHES[inference])
    for act in replies(made):
        assert len(set(tokens(act, made))) == len(tokens(act, made))


def prefer_context():
    """An agent class whose LLM is likely to copy its context."""

    class Parrot(SptAgent):
        def _generate(self, batch, *args, **kwargs):
            self.parroted = batch.text_vec
            return super()._generate(batch, *args, **kwargs)

        def _generation_activation(self, score):
            for row, vec in enumerate(self.parroted.tolist()):
                score[row, :, [i for i in vec if i >= 0]] += 50.0
            return super()._generation_activation(score)

    return Parrot


@pytest.mark.parametrize('inference', ['greedy', 'beam', 'nucleus'])
def test_ngrams_of_the_context_are_blocked(agent, inference):
    options = {'inference': inference, 'verbose': True, **SEARCHES[inference]}
    free, blocked = agent(prefer_context(), **options), agent(prefer_context(), beam_context_block_ngram=1, **options)
    for text, said, held in zip(TEXTS, replies(free), replies(blocked), strict=True):
        context = {
            free.dict[i] for i in free.clone().observe({'text': text, 'episode_done': True})['text_vec'].tolist()
        }
        assert set(tokens(said, free)) <= context and not set(tokens(held, blocked)) & context


def test_context_blocking_reaches_what_was_truncated_away(agent):
    def contexts(full):
        made = agent(beam_context_block_ngram=2, beam_block_full_context=full, text_truncate=20)
        seen = made.observe({'text': 'many words ' * 20, 'episode_done': True})
        return made._get_batch_context(made.batchify([seen]))

    assert contexts(True).shape[1] > contexts(False).shape[1] == 20


def test_a_block_list_is_never_said(agent, tmp_path):
    said = {word for act in replies(agent(max_new_tokens=12)) for word in act['text'].split()}
    free = agent(verbose=True, max_new_tokens=12)
    phrases = [
        free.dict.tokenizer.convert_tokens_to_string([t]).strip() for act in replies(free) for t in tokens(act, free)
    ]
    phrases = [p for p in phrases if p.isascii() and p.isprintable() and len(free.dict.txt2vec(p)) == 1]
    (tmp_path / 'list.txt').write_text('\n'.join(phrases or sorted(said)) + '\n')
    blocked = agent(verbose=True, max_new_tokens=12, beam_block_list_filename=str(tmp_path / 'list.txt'))
    assert blocked.beam_block_list
    never = {tuple(ngram) for _, group in blocked.beam_block_list.items() for ngram in group}
    for act in replies(blocked):
        ids = blocked.dict.tokenizer.convert_tokens_to_ids(tokens(act, blocked))
        assert not any(tuple(ngram) in never for n in (1, 2, 3) for ngram in ngrams(ids, n))


# ---- prefixes -------------------------------------------------------------------------------------------


PREFIXES = ('i am', 'no', 'yes , a dog')


class Prefixed(SptAgent):
    def get_prefix_tokens(self, batch):
        own = {text.split('\n')[-1].split()[0]: prefix for text, prefix in zip(TEXTS, PREFIXES, strict=True)}
        wanted = [
            next(p for word, p in own.items() if f'Q: {word}' in self.dict.vec2txt(vec)) for vec in batch.text_vec
        ]
        return self._pad_tensor([self.dict.txt2vec(p) for p in wanted])[0]


@pytest.mark.parametrize('inference', SEARCHES)
def test_every_reply_begins_with_its_own_prefix(agent, inference):
    made = agent(Prefixed, inference=inference, verbose=True, max_new_tokens=12, **SEARCHES[inference])
    for act, prefix in zip(replies(made), PREFIXES, strict=True):
        forced = [made.dict[i] for i in made.dict.txt2vec(prefix)]
        assert tokens(act, made)[: len(forced)] == forced and len(tokens(act, made)) > len(forced)


def test_a_prefix_of_one_reply_leaves_the_other_searches_alone(agent):
    made = agent(Prefixed)
    replies(made)
    assert [a['text'] for a in replies(agent())] != [a['text'] for a in replies(made)]
    made.__class__ = SptAgent
    assert [a['text'] for a in replies(made)] == [a['text'] for a in replies(agent())]


# ---- shared agents --------------------------------------------------------------------------------------


def test_clones_share_the_model_and_keep_their_dialogues(agent):
    first = agent()
    second = first.clone()
    assert second.model is first.model and second.dict is first.dict and second.beam_block_list is first.beam_block_list
    first.observe({'text': 'hello', 'episode_done': False})
    second.observe({'text': 'what do you do ?', 'episode_done': False})
    first_reply, second_reply = first.act(), second.act()
    assert [t.text for t in first.history.dialogue.turns][0] == 'hello' and [
        t.text for t in second.history.dialogue.turns
    ][0] == 'what do you do ?'
    assert first_reply['selected_prompt'] in (0, 1) and len(second_reply['prompt_scores']) == 2


def test_skip_generation_leaves_the_reply_out(model_file, tmp_path):
    report = evaluate(model_file, num_examples=4, skip_generation=True, world_logs=tmp_path / 'log')
    assert 'f1' not in report or report['f1'] == 0
    assert all('text' not in pair[1] and 'selected_prompt' in pair[1] for pair in turns(tmp_path / 'log'))
