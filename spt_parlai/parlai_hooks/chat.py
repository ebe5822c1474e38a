"""A chat on the command line ends, or begins anew, without a traceback in every task."""

from __future__ import annotations

from pathlib import Path

from spt_parlai.dialogue.messages import OWN_PERSONA, personas_of
from spt_parlai.text_files import read_lines


def leave_at_the_prompt() -> None:
    """Let Ctrl-C and Ctrl-D at the prompt end a chat as ``[EXIT]`` does.

    Breaks: Ctrl-C ends in a traceback, and after Ctrl-D the agent is given a message without text, which some worlds
    and agents refuse.
    Where: ``LocalHumanAgent.act``, ``parlai/agents/local_human/local_human.py:71``.
    Safe: what is typed is ParlAI's; both keys ended the chat before.
    Goes: when ParlAI handles both keys.
    """
    from parlai.agents.local_human.local_human import LocalHumanAgent

    parlai_act = LocalHumanAgent.act

    def act(self):
        try:
            reply = parlai_act(self)
        except KeyboardInterrupt:
            self.finished = True
        if self.finished:
            print()  # the prompt is an unfinished line
            raise StopIteration
        return reply

    LocalHumanAgent.act = act


def begin_anew_in_every_world() -> None:
    """Begin a new chat after ``[DONE]``, and end it after ``[EXIT]``, in tasks without an interactive world.

    Breaks: ``StopIteration`` with a traceback, as in ``parlai interactive -t convai2:self``.
    Where: ``DialogPartnerWorld.parley``, ``parlai/core/worlds.py:364``, where a person at the prompt is first.
    Safe: all other worlds, such as those of training, keep ParlAI's method; ParlAI's interactive worlds do the same.
    Goes: when the world handles ``StopIteration``.
    """
    from parlai.agents.local_human.local_human import LocalHumanAgent
    from parlai.core.worlds import DialogPartnerWorld

    parlai_init = DialogPartnerWorld.__init__

    def init(self, opt, agents=None, shared=None):
        parlai_init(self, opt, agents, shared)
        if isinstance(self.agents[0], LocalHumanAgent) and type(self).parley is DialogPartnerWorld.parley:
            self.parley = _begin_anew_after(self, self.parley)

    DialogPartnerWorld.__init__ = init


def leave_while_a_reply_is_written() -> None:
    """Let Ctrl-C end a chat while the agent writes its reply, as it does at the prompt.

    Breaks: ``KeyboardInterrupt`` with a traceback, and ``--outfile`` is not written.
    Where: ``interactive``, ``parlai/scripts/interactive.py:93``, which asks the world for the next exchange.
    Safe: the key ended the chat before.
    Goes: when ParlAI handles the key.
    """
    from parlai.scripts import interactive

    parlai_create_task = interactive.create_task

    def create_task(opt, user_agents, default_world=None):
        world = parlai_create_task(opt, user_agents, default_world)
        parley = world.parley

        def parley_or_leave():
            try:
                parley()
            except KeyboardInterrupt:
                user_agents[0].finished = True  # the person's
                print()  # a word may have been begun

        world.parley = parley_or_leave
        return world

    interactive.create_task = create_task


def end_replies_that_are_shown() -> None:
    """Tell an agent that ``display_model`` shows its replies to a person, as a chat does.

    Breaks: nothing; the replies run on to turns of the next speaker, as in an evaluation.
    Where: ``display_model``, ``parlai/scripts/display_model.py:65``, whose options are those of an evaluation.
    Safe: only ``--stop-at-next-speaker auto`` reads the entry.
    Goes: when ParlAI's options name the command.
    """
    from parlai.scripts import display_model

    parlai_display_model = display_model.display_model

    def shown(opt):
        opt['shows_replies'] = True
        parlai_display_model(opt)

    display_model.display_model = shown


def draw_personas_of_one_side() -> None:
    """Draw the personas of a chat about ConvAI2 from its files of one speaker's, where the files of both are missing.

    Breaks: ``interactive -t convai2`` and ``self_chat -t convai2`` need ``FOLD_both_original.txt``, which not every
    copy of the data has, and from which they read personas only.
    Where: ``_load_personas``, ``parlai/tasks/convai2/worlds.py:24``.
    Safe: where ParlAI's file exists, ParlAI reads it.
    Goes: when ParlAI reads another file there.
    """
    from parlai.tasks.convai2 import worlds

    parlai_load_personas = worlds._load_personas

    def load_personas(opt):
        fold = 'train' if opt['datatype'].startswith('train') else 'valid'
        folder = Path(opt['datapath'], 'ConvAI2')
        own = folder / f'{fold}_self_original.txt'
        if (folder / f'{fold}_both_original.txt').exists() or not own.exists():
            return parlai_load_personas(opt)
        texts = {'\n'.join(f'{OWN_PERSONA} {s}' for s in persona) for persona in personas_of(read_lines(own))}
        print(f'[ loaded {len(texts)} personas ]')
        return sorted(texts)

    worlds._load_personas = load_personas


def take_commands() -> None:
    """Let a person type ``/persona``, ``/prompt``, ``/all``, ``/undo`` and ``/help`` in a chat with one of our agents.

    Breaks: nothing; another persona or prompt needs another command line, and what was mistyped stays in the dialogue.
    Where: ``interactive``, ``parlai/scripts/interactive.py:89``, which asks ``LocalHumanAgent`` for a message.
    Safe: a line that does not begin with ``/`` is a message as before, and all lines are in a chat with other agents.
    Goes: when ParlAI's chats have commands.
    """
    from parlai.agents.local_human.local_human import LocalHumanAgent
    from parlai.scripts import interactive

    parlai_act, parlai_create_task = LocalHumanAgent.act, interactive.create_task

    def act(self):
        while True:
            message = parlai_act(self)
            obey = getattr(self, 'obey', None)
            answer = obey(message.get('text') or '') if obey is not None else None
            if answer is None:
                return message
            print(answer)

    def create_task(opt, user_agents, default_world=None):
        person, agent = user_agents
        if hasattr(agent, 'chat_command'):
            person.obey = agent.chat_command
            print('/help lists what you can type besides messages.')
        return parlai_create_task(opt, user_agents, default_world)

    LocalHumanAgent.act, interactive.create_task = act, create_task


def name_the_speakers_of_a_self_chat() -> None:
    """Print the personas of a self-chat when its two speakers have their names.

    Breaks: nothing; both personas are announced as those of one speaker.
    Where: ``self_chat``, ``parlai/scripts/self_chat.py:139``.
    Safe: it only prints; a task that sends personas shows them itself.
    Goes: when ParlAI names the speakers before it builds them.
    """
    from parlai.scripts import self_chat

    parlai_create_task = self_chat.create_task

    def create_task(opt, user_agents, default_world=None):
        for agent in user_agents:
            if hasattr(agent, 'announce_persona'):
                agent.announce_persona()
        return parlai_create_task(opt, user_agents, default_world)

    self_chat.create_task = create_task


def _begin_anew_after(world, parley):
    def parley_or_begin_anew():
        try:
            parley()
        except StopIteration:
            world.reset()
            print('CHAT DONE')

    return parley_or_begin_anew
