"""Agents with given weights, and their observations of given dialogues."""

from __future__ import annotations

import torch
from parlai.core.agents import create_agent
from parlai.core.message import Message
from parlai.scripts.train_model import TrainModel

from spt_parlai.checkpoints import files

AGENT = 'spt_parlai.agents:SptAgent'


def agent_with(tensors: dict[str, torch.Tensor], model_file, **options):
    """An agent that ParlAI builds from options and from a model file that holds `tensors` as the trained ones."""

    def created():
        return create_agent(
            TrainModel.setup_args().parse_kwargs(
                task='spt_parlai.tasks.sample',
                model=AGENT,
                model_file=str(model_file),
                skip_generation=False,
                no_cuda=True,
                **options,
            )
        )

    created().save()
    states = torch.load(model_file, weights_only=True)
    assert states['model'].keys() == tensors.keys()
    states['model'] = tensors
    del states['optimizer']
    files.save_states(states, model_file)
    agent = created()
    for name, tensor in agent.model.state_dict().items():
        assert torch.equal(tensor, tensors[name])
    return agent


def heard(agent, dialogues, labels='eval_labels', **more):
    """The agent's observation of the last message of each dialogue.

    It hears everything as ParlAI tells it: the persona in lines of the first message, its own utterances as labels.

    :param dialogues: tuples (persona, utterances from the partner's first to the partner's last, target).
    :param more: further fields of the last messages, for each a list with one value per dialogue.
    """
    observations = []
    for n, (persona, utterances, target) in enumerate(dialogues):
        ear = agent.clone()
        lines = [f'your persona: {sentence}' for sentence in persona]
        for said, answered in zip(utterances[::2], [*utterances[1::2], target], strict=True):
            last = said is utterances[-1]
            observation = ear.observe(
                Message(
                    {
                        'id': 'partner',
                        'text': '\n'.join([*lines, said]),
                        labels: (answered,),
                        'episode_done': False,
                        **({name: values[n] for name, values in more.items()} if last else {}),
                    }
                )
            )
            lines = []
            if not last:
                ear.self_observe(Message({'id': agent.id, 'text': 'not what the label says', 'episode_done': False}))
        observations.append(observation)
    return observations


def computed(agent, batch):
    """The total loss of a batch and the model's prediction."""
    agent._local_metrics.clear()  # ParlAI does this before every batch of its own
    total, (_, prediction) = agent.compute_loss(batch, return_output=True)
    return total, prediction


def metric(reply, name: str) -> float:
    return float(reply['metrics'][name].value())
