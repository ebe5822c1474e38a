"""LoRA and full fine-tuning compute what a plain training loop around a Hugging Face model computes."""

import peft
import pytest
import torch
from helpers.real_agents import computed, heard
from helpers.runs import agent_of, training_opt
from parlai.core.agents import create_agent
from transformers import AutoModelForCausalLM

from spt_parlai.errors import UsageError

DIALOGUES = [
    (['i ski.'], ['hi'], 'hello , how are you ?'),
    ([], ['what do you do for a living ?', 'i am a nurse .', 'that sounds hard . do you like it ?'], 'yes .'),
    (['i like tea.', 'i have a dog.'], ['bye'], 'bye .'),
]
SGD = {'optimizer': 'sgd', 'learningrate': 0.5, 'gradient_clip': -1.0}  # Adam would divide rounding by rounding


def plain_lm(folder, agent):
    """A model of transformers and its trained parameters; for LoRA it has peft's wrapper and the agent's matrices."""
    lm = AutoModelForCausalLM.from_pretrained(folder).eval()
    if agent.kind != 'LoraAgent':
        return lm, dict(lm.named_parameters())
    lm = peft.get_peft_model(lm, peft.LoraConfig(r=3, lora_alpha=12, task_type='CAUSAL_LM')).eval()
    trained = {n.removeprefix('base_model.model.'): p for n, p in lm.named_parameters() if p.requires_grad}
    for name, parameter in agent.model.tuned.named_parameters():
        trained[name].data.copy_(parameter.data)
    return lm, trained


def loss_of(lm, batch):
    """Mean over the examples of the mean over each one's target tokens."""
    losses = []
    for context, target in zip(batch.text_vec.tolist(), batch.label_vec.tolist(), strict=True):
        context, target = [i for i in context if i >= 0], [i for i in target if i >= 0]
        ids, labels = torch.tensor([context + target]), torch.tensor([[-100] * len(context) + target])
        losses.append(lm(input_ids=ids, labels=labels, use_cache=False).loss)
    return torch.stack(losses).mean()


def agent_for(name, llm, **more):
    more = {**SGD, **more, **({'lora_rank': 3, 'lora_alpha': 12.0} if name == 'LoraAgent' else {})}
    return agent_of(llm, name, no_cuda=True, **more)


@pytest.mark.parametrize('llm', ['opt', 'llama', 'gpt2'])
@pytest.mark.parametrize('name', ['LoraAgent', 'FullFineTuningAgent'])
def test_steps_equal_a_plain_loop(tiny_llms, name, llm):
    agent = agent_for(name, getattr(tiny_llms, llm))
    lm, trained = plain_lm(getattr(tiny_llms, llm), agent)
    ours = dict(agent.model.tuned.named_parameters())
    assert ours.keys() == trained.keys() and len(list(agent.model.parameters())) == len(ours)
    before = {n: p.detach().clone() for n, p in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=0.5)
    observations = heard(agent, DIALOGUES, labels='labels')
    for _ in range(6):
        batch = agent.batchify(observations)
        loss = loss_of(lm, batch)
        agent.batch_act(observations)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch.testing.assert_close(computed(agent, batch)[0], loss_of(lm, batch), rtol=1e-5, atol=1e-5)
    for n in trained:
        torch.testing.assert_close(ours[n], trained[n], rtol=1e-5, atol=1e-5, msg=n)
    moved = [float((before[n] - p).abs().max()) for n, p in trained.items()]
    assert max(moved) > 0.01 and sum(m > 0 for m in moved) >= len(moved) - 1, moved


def randomise(module):
    """Give every parameter random values: LoRA's B is zero at first, so that A has no gradient."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


TURNS = [
    {'text': 'your persona: i ski.\nhi', 'labels': ['hello !']},
    {'text': 'what do you do ?', 'labels': ['i ski . you ?']},
    {'text': 'i have two cats .', 'labels': ['nice .']},
]


@pytest.mark.parametrize('name', ['LoraAgent', 'FullFineTuningAgent'])
def test_packed_dialogues_and_recomputed_layers_give_the_same_gradients(tiny_llms, name):
    def gradients(packed, **more):
        agent = agent_for(name, tiny_llms.opt, **more)
        if name == 'LoraAgent':
            randomise(agent.model.tuned)
        if packed:
            observed = [agent.observe({**TURNS[0], 'whole_dialogue': TURNS, 'episode_done': True})]
        else:
            observed = []
            for i, turn in enumerate(TURNS):
                observed.append(agent.observe({**turn, 'episode_done': i == 2}))
                agent.self_observe({'text': '', 'episode_done': i == 2})
        batch = agent.batchify(observed)
        assert (len(batch.text_vec), len(batch.label_vec)) == (1 if packed else 3, 3)
        loss = computed(agent, batch)[0]
        loss.backward()
        return [loss.detach(), *(p.grad for p in agent.model.parameters())]

    turns = gradients(packed=False)
    assert all(gradient.any() for gradient in turns)
    for more in ({}, {'checkpoint_activations': True}):
        torch.testing.assert_close(gradients(packed=True, **more), turns, rtol=1e-4, atol=1e-6)


def test_dropout_is_of_training_alone_and_recomputed_alike(tiny_llms):
    agent = agent_for('LoraAgent', tiny_llms.opt, lora_dropout=0.5, checkpoint_activations=True)
    randomise(agent.model.tuned)
    batch = agent.batchify(heard(agent, DIALOGUES, labels='labels'))
    agent.model.train()

    def loss_and_gradients():
        torch.manual_seed(1)
        agent.zero_grad()
        loss = computed(agent, batch)[0]
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in agent.model.parameters())]

    recomputed = loss_and_gradients()
    agent.model.llm.recomputed_layers = []
    torch.testing.assert_close(recomputed, loss_and_gradients(), rtol=1e-5, atol=1e-7)
    losses = {float(computed(agent, batch)[0]) for _ in range(3)}
    agent.model.eval()
    assert not any(module.training for module in agent.model.llm.lm.modules())
    assert len(losses) == 3 and float(computed(agent, batch)[0]) not in losses
    assert float(computed(agent, batch)[0]) == float(computed(agent, batch)[0])


@pytest.mark.parametrize('llm', ['opt', 'llama'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_untrained_lora_is_the_plain_llm(tiny_llms, llm, dtype):
    agent = agent_of(getattr(tiny_llms, llm), 'LoraAgent', llm_dtype=dtype, no_cuda=True)
    batch = agent.batchify(heard(agent, DIALOGUES, labels='labels'))
    assert all(p.dtype == torch.float32 for p in agent.model.parameters())
    with torch.no_grad():
        lm = AutoModelForCausalLM.from_pretrained(getattr(tiny_llms, llm), dtype=getattr(torch, dtype)).eval()
        close = 1e-6 if dtype == 'float32' else 1e-2
        torch.testing.assert_close(computed(agent, batch)[0], loss_of(lm, batch).float(), rtol=close, atol=close)
        encoded = agent.model.encoder(batch.text_vec[:1])
        plain = lm(input_ids=batch.text_vec[:1][batch.text_vec[:1] >= 0][None]).logits[0, -1]
        torch.testing.assert_close(encoded.logits[0], plain, rtol=close, atol=close)


@pytest.mark.parametrize(
    'options, rank, values',
    [
        ({'match_spt': '4,8'}, 8, 8 * 128),
        ({'match_spt': '1,1'}, 4, 4 * 128),
        ({'match_spt': '1,1', 'lora_targets': 'fc1,fc2'}, 3, 3 * 192),
        ({'match_spt': '99,9', 'lora_targets': 'all-linear'}, 33, 33 * 448),
        ({'lora_rank': 5, 'lora_targets': 'k_proj'}, 5, 5 * 64),
    ],
)
def test_rank_that_matches_spt(tiny_llms, options, rank, values):
    """With D = 16, SPT trains K·L·16 + 544 values; each rank of an adapted layer 16 → 16 has 32, of 16 → 32 has 48."""
    agent = agent_of(tiny_llms.opt, 'LoraAgent', no_cuda=True, **options)
    assert sum(p.numel() for p in agent.model.parameters()) == values
    assert agent.persistence.description['tuning'] == {
        '--lora-rank': rank,
        '--lora-alpha': str(2 * rank),
        '--lora-targets': options.get('lora_targets', 'q_proj,v_proj'),
    }
    if 'match_spt' in options:
        K, L = map(int, options['match_spt'].split(','))
        trained = K * L * 16 + 544
        assert abs(values - trained) <= values / rank / 2
        spt = agent_of(tiny_llms.opt, 'SptAgent', num_prompts=K, prompt_length=L, no_cuda=True) if L < 9 else None
        assert spt is None or sum(p.numel() for p in spt.model.parameters()) == trained


@pytest.mark.parametrize(
    'options, sentence',
    [
        ({'lora_rank': 4, 'match_spt': '4,8'}, '^--lora-rank and --match-spt were both given: give one of them.$'),
        ({'lora_rank': 0}, '^--lora-rank 0: give a whole number of at least 1.$'),
        ({'lora_alpha': -1.0}, '^--lora-alpha -1.0: give a number above 0'),
        ({'lora_dropout': 1.0}, '^--lora-dropout 1.0: .* below 1.$'),
        ({'match_spt': '4x8'}, "^--match-spt '4x8': give K,L"),
        ({'match_spt': '0,8'}, "^--match-spt '0,8': give K,L"),
        (
            {'lora_targets': 'query'},
            '^--lora-targets query: LoRA cannot adapt these; '
            'give some of fc1, fc2, k_proj, out_proj, q_proj, v_proj, or',
        ),
        ({'lora_targets': 'q_proj,query'}, '^--lora-targets q_proj,query: no layer is named query; give some of fc1'),
        (
            {'lora_targets': 'q_proj,lm_head'},
            '^--lora-targets q_proj,lm_head: word embeddings and output projection stay',
        ),
        (
            {'lora_targets': 'self_attn_layer_norm'},
            '^--lora-targets self_attn_layer_norm: LoRA cannot adapt these; give some of fc1',
        ),
    ],
)
def test_lora_that_cannot_be_is_refused(tiny_llms, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        agent_of(tiny_llms.opt, 'LoraAgent', no_cuda=True, **options)


def test_without_peft_the_extra_is_named(tiny_llms, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *rest: None if name == 'peft' else find(name, *rest))
    with pytest.raises(
        UsageError, match=r"^-m spt_parlai.agents:LoraAgent: LoRA needs peft: pip install 'spt_parlai\[peft\]'.$"
    ):
        agent_of(tiny_llms.opt, 'LoraAgent')


@pytest.mark.parametrize('options', [{'llm_dtype': 'bfloat16'}, {'llm_quantization': '8bit'}, {'fp16': True}])
def test_full_fine_tuning_is_float32(tiny_llms, options):
    with pytest.raises(
        UsageError,
        match='^--(llm-dtype|llm-quantization|fp16) .*: all weights train, and do so in float32; leave it out',
    ):
        agent_of(tiny_llms.opt, 'FullFineTuningAgent', **options)


def test_shares_of_matrices_do_not_suit_every_optimizer(tiny_llms, monkeypatch):
    monkeypatch.setattr('spt_parlai.agents.full_fine_tuning.is_distributed', lambda: True)
    opt = training_opt(tiny_llms.opt, 'FullFineTuningAgent', optimizer='adafactor')
    opt['llm_sharding'] = 'hybrid'
    with pytest.raises(UsageError, match='^--llm-sharding hybrid: adafactor looks at whole matrices.*--optimizer adam'):
        create_agent(opt)


def test_a_tied_embedding_and_an_input_projection_train_once(tmp_path, tiny_llms):
    """OPT-350M's shape: words are projected to the body's width."""
    from transformers import AutoConfig, AutoTokenizer

    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_llms.opt, word_embed_proj_dim=8)).save_pretrained(
        tmp_path
    )
    AutoTokenizer.from_pretrained(tiny_llms.opt).save_pretrained(tmp_path)
    agent = agent_for('FullFineTuningAgent', str(tmp_path))
    lm = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert sum(p.numel() for p in agent.model.parameters()) == sum(p.numel() for p in lm.parameters())
    computed(agent, agent.batchify(heard(agent, DIALOGUES, labels='labels')))[0].backward()
    for name in ('project_in.weight', 'model.decoder.project_out.weight', 'model.decoder.embed_tokens.weight'):
        assert agent.model.tuned.get_parameter(name).grad.any()
