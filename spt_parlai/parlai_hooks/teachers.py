"""The paper's metrics in the report of every evaluation, whichever agent is evaluated.

In ParlAI a task's teacher sees its own message, the labels and the agent's reply, and keeps the metrics. The paper's
metrics are therefore added there, after ParlAI's own, in evaluation only and unless `--paper-metrics false` is given.
A reply without text (`--skip-generation true`) gets only the perplexities, which cost nothing.

What the agent said is never changed: with `--trim-responses true` these metrics see the trimmed reply; ParlAI's own
metrics, the log and the dialogue history see the whole one.
"""

from __future__ import annotations

from parlai.core.metrics import METRICS_DISPLAY_DATA, AverageMetric, MetricDisplayData, Metrics
from parlai.core.teachers import FixedDialogTeacher, Teacher
from parlai.utils.misc import warn_once

from spt_parlai.dialogue.episode import Episode
from spt_parlai.dialogue.messages import split_message, well_formed
from spt_parlai.errors import naming
from spt_parlai.metrics.bertscore import BertModel, scorer
from spt_parlai.metrics.languages import meaningless_for
from spt_parlai.metrics.perplexity import nll_of, perplexities
from spt_parlai.metrics.registry import DEFINITIONS, response_metrics
from spt_parlai.metrics.reply import trim
from spt_parlai.options.groups import METRICS
from spt_parlai.options.validate import chosen_bert


def describe_metrics() -> None:
    """Give ParlAI the titles and definitions of the paper's metrics.

    Breaks: nothing; a model card names the paper's metrics without explaining them.
    Where: ``METRICS_DISPLAY_DATA``, ``parlai/core/metrics.py:55``.
    Safe: only names that ParlAI does not have are added.
    Goes: when ParlAI lets a metric bring its own description.
    """
    METRICS_DISPLAY_DATA.update({name: MetricDisplayData(name, text) for name, text in DEFINITIONS.items()})


def add_metric_options() -> None:
    """Offer the options of the paper's metrics with every task.

    Breaks: ``--paper-metrics``, ``--trim-responses`` and ``--bertscore`` are unknown where another agent is evaluated.
    Where: ``Teacher.add_cmdline_args``, ``parlai/core/teachers.py:163``.
    Safe: options are only added, after ParlAI's own.
    Goes: when ParlAI lets a package add options to every task.
    """
    parlai_add_cmdline_args = Teacher.__dict__['add_cmdline_args'].__func__

    def add_cmdline_args(cls, parser, partial_opt=None):
        parlai_add_cmdline_args(cls, parser, partial_opt)
        METRICS.add_to(parser)
        return parser

    Teacher.add_cmdline_args = classmethod(add_cmdline_args)


def report_paper_metrics() -> None:
    """Report the paper's metrics of every reply in an evaluation, whichever agent gives it.

    A ``--bertscore`` that cannot work is refused here, before the first reply.

    Breaks: nothing; without this the metrics exist only for agents of this package.
    Where: ``FixedDialogTeacher.__init__``, ``parlai/core/teachers.py:314``.
    Safe: the teachers of training stay as they are, and ParlAI's own metrics are computed first.
    Goes: when ParlAI lets a package add metrics to every task.
    """
    parlai_init = FixedDialogTeacher.__init__

    def init(self, opt, shared=None):
        bert = chosen_bert(opt)
        parlai_init(self, opt, shared)
        if not self.training and opt.get('paper_metrics', True):
            if bert:
                with naming('--bertscore', opt['bertscore']):
                    scorer(bert)  # loads the encoder, which the report could not do without
            _report(self, opt.get('trim_responses', False), bert)

    FixedDialogTeacher.__init__ = init


def show_episode() -> None:
    """Let every message of an evaluation carry its whole episode, as an attribute that no log shows.

    Breaks: nothing; every turn of a dialogue would be predicted by itself, although one pass predicts them all.
    Where: ``FixedDialogTeacher.act``, ``parlai/core/teachers.py:567``.
    Safe: the message is ParlAI's own, and no field of it changes. A teacher that streams its data has no whole episode.
    Goes: when ParlAI lets an agent see the episode.
    """
    parlai_act = FixedDialogTeacher.act

    def act(self):
        message = parlai_act(self)
        entry = getattr(self, 'entry_idx', None)  # a teacher that streams has none
        if entry is not None and hasattr(self, 'episode_buffer') and not self.training and not message.is_padding():
            if entry == 0:
                self.episode = Episode(self.episode_buffer)
            message.episode = self.episode
        return message

    FixedDialogTeacher.act = act


def _report(teacher, trims: bool, bert: BertModel | None) -> None:
    """Let one teacher remember the persona of its episode, and add the metrics of each reply to its report."""
    process_action, observe = teacher.process_action, teacher.observe
    persona: list[str] = []  # it stands in an episode's first message, and a teacher keeps only its last

    def remember_persona(action):
        last = getattr(teacher, 'last_act', None)
        if last is None or last.get('episode_done', False):
            persona.clear()
        if isinstance(action.get('text'), str):
            persona.extend(split_message(action['text'])[0])
        return process_action(action)

    def add_metrics(observation):
        labels = getattr(teacher, 'lastY', None)  # ParlAI forgets them
        observation = observe(observation)
        if labels:
            reply = well_formed(observation.get('text'))
            if trims and isinstance(reply, str):
                reply = trim(reply)
            _add_metrics(
                teacher.metrics, observation.get('metrics', {}), reply, well_formed(list(labels)), persona, bert
            )
        return observation

    teacher.process_action, teacher.observe = remember_persona, add_metrics


def _add_metrics(
    report: Metrics, logged: dict, reply: str | None, labels: list[str], persona: list[str], bert: BertModel | None
) -> None:
    """Add the metrics of one reply to the report, and those that are means over replies to the log."""
    nll = nll_of(logged, labels)
    named = [] if nll is None else [*perplexities(nll, labels[0])]
    if isinstance(reply, str):
        for sentence in {*map(meaningless_for, labels)} - {None}:
            warn_once(sentence)
        named += response_metrics(reply, labels, ' '.join(persona), bert)
    for name, metric in named:
        report.add(name, metric)
        if isinstance(metric, AverageMetric):
            logged[name] = metric
