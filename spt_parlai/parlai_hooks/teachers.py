"""The paper's metrics in the report of every evaluation, whichever agent is evaluated.

In ParlAI a task's teacher sees its own message, the labels and the agent's reply, and keeps the metrics. The paper's
metrics are therefore added there, after ParlAI's own, in evaluation only and unless `--paper-metrics false` is given.
A reply without text (`--skip-generation true`) gets only the perplexities, which cost nothing.

What the agent said is never changed: with `--trim-responses true` these metrics see the trimmed reply; ParlAI's own
metrics, the log and the dialogue history see the whole one.
"""

from __future__ import annotations

from parlai.core.metrics import METRICS_DISPLAY_DATA, AverageMetric, MetricDisplayData
from parlai.core.teachers import FixedDialogTeacher, Teacher

from spt_parlai.dialogue.messages import split_message
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


def check_metric_options() -> None:
    """Refuse a ``--bertscore`` that cannot work when the teacher is built.

    Breaks: an unknown model or a missing library is noticed only after the first reply has been generated.
    Where: ``FixedDialogTeacher.__init__``, ``parlai/core/teachers.py:314``.
    Safe: the check changes nothing; ParlAI's own constructor follows.
    Goes: with :func:`report_paper_metrics`.
    """
    parlai_init = FixedDialogTeacher.__init__

    def init(self, opt, shared=None):
        chosen_bert(opt)
        parlai_init(self, opt, shared)

    FixedDialogTeacher.__init__ = init


def remember_persona() -> None:
    """Keep the episode's ``your persona:`` lines for the metrics that compare a reply with the persona.

    Breaks: these metrics have no persona: it stands in an episode's first message, and a teacher keeps only its last.
    Where: ``FixedDialogTeacher.process_action``, ``parlai/core/teachers.py:610``.
    Safe: the message itself is not changed.
    Goes: with :func:`report_paper_metrics`.
    """
    parlai_process_action = FixedDialogTeacher.process_action

    def process_action(self, action):
        last = getattr(self, 'last_act', None)
        if last is None or last.get('episode_done', False):
            self._persona = []
        if isinstance(action.get('text'), str) and not self.training:
            self._persona = [*getattr(self, '_persona', ()), *split_message(action['text'])[0]]
        return parlai_process_action(self, action)

    FixedDialogTeacher.process_action = process_action


def report_paper_metrics() -> None:
    """Add the paper's metrics of a reply to the report of an evaluation.

    Breaks: nothing; without this the metrics exist only for agents of this package.
    Where: ``FixedDialogTeacher.observe``, ``parlai/core/teachers.py:536``.
    Safe: ParlAI's own metrics are computed first and stay as they are; training is not touched.
    Goes: when ParlAI lets a package add metrics to every task.
    """
    parlai_observe = FixedDialogTeacher.observe

    def observe(self, observation):
        labels = getattr(self, 'lastY', None)  # ParlAI forgets them
        observation = parlai_observe(self, observation)
        if labels and not self.training and self.opt.get('paper_metrics', True):
            _add_metrics(self, observation, list(labels))
        return observation

    FixedDialogTeacher.observe = observe


def _add_metrics(teacher, observation, labels: list[str]) -> None:
    """Add the metrics of one reply to the teacher's report, and those that are means over replies to the log."""
    reply, logged = observation.get('text'), observation.get('metrics', {})
    nll = nll_of(logged, labels)
    named = [] if nll is None else [*perplexities(nll, labels[0])]
    if isinstance(reply, str):
        reply = trim(reply) if teacher.opt.get('trim_responses') else reply
        named += response_metrics(reply, labels, ' '.join(getattr(teacher, '_persona', ())), chosen_bert(teacher.opt))
    for name, metric in named:
        teacher.metrics.add(name, metric)
        if isinstance(metric, AverageMetric):
            logged[name] = metric
