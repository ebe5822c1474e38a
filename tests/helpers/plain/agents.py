"""An agent that does not use this package, and a task with the unusual messages that tasks may have."""

from parlai.core.agents import Agent
from parlai.core.teachers import DialogTeacher


class PlainAgent(Agent):
    """Repeats the message and begins the next turn: `-m helpers.plain.agents:PlainAgent`."""

    def __init__(self, opt, shared=None):
        super().__init__(opt, shared)
        self.id = 'plain'

    def act(self):
        heard = self.observation.get('text', '').split('\n')[-1]
        return {'id': self.id, 'text': f'{heard} R: and so on', 'episode_done': False}


EPISODES = [
    [
        ('your persona: i sing.\nyour persona: i cook.\nhello there you', ['hello you', 'there is a Hello']),
        ('do you sing', ['i sing .']),
    ],
    [('no persona here', ['none at all']), ('your persona: i came late.\nnot yet', ['not yet'])],
    [('a silent one', None), ('and another', ['and more'])],
]


class DefaultTeacher(DialogTeacher):
    """Messages with several labels, with none, and with a persona in mid-dialogue: `-t helpers.plain.agents`."""

    def __init__(self, opt, shared=None):
        super().__init__({**opt, 'datafile': 'none'}, shared)

    def setup_data(self, datafile):
        for episode in EPISODES:
            for i, (text, labels) in enumerate(episode):
                yield ({'text': text, 'labels': labels} if labels else {'text': text}), i == 0
