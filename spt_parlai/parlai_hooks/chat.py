"""A chat on the command line ends, or begins anew, without a traceback in every task."""

from __future__ import annotations


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


def _begin_anew_after(world, parley):
    def parley_or_begin_anew():
        try:
            parley()
        except StopIteration:
            world.reset()
            print('CHAT DONE')

    return parley_or_begin_anew
