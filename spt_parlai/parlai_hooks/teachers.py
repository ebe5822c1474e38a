"""The paper's metrics in the report of every evaluation, whatever agent is evaluated.

In ParlAI a task's teacher sees its own message, the labels and the agent's reply, and keeps the metrics. So that is where the
paper's are added: after ParlAI's own, for every teacher with a label, where `--paper-metrics` is not false, in evaluation alone.
A reply without text (`--skip-generation`) gets none but the perplexities, which cost nothing.

What the agent said is never changed: with `--trim-responses true` the metrics here see the reply cut, ParlAI's own, the log and
the dialogue's history see it whole.
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


def install() -> None:
    """Give ParlAI's teachers the methods below; safe to call twice."""
    if getattr(FixedDialogTeacher, '_reports_paper_metrics', False):
        return
    FixedDialogTeacher._reports_paper_metrics = True
    METRICS_DISPLAY_DATA.update({name: MetricDisplayData(name, text) for name, text in DEFINITIONS.items()})
    parlai_args, parlai_init = Teacher.__dict__['add_cmdline_args'].__func__, FixedDialogTeacher.__init__
    parlai_action, parlai_observe = FixedDialogTeacher.process_action, FixedDialogTeacher.observe

    def add_cmdline_args(cls, parser, partial_opt=None):
        parlai_args(cls, parser, partial_opt)
        METRICS.add_to(parser)
        return parser

    def init(self, opt, shared=None):
        chosen_bert(opt)  # what cannot work is told before the first reply
        parlai_init(self, opt, shared)

    def process_action(self, action):
        _remember_persona(self, action)
        return parlai_action(self, action)

    def observe(self, observation):
        labels = getattr(self, 'lastY', None)
        observation = parlai_observe(self, observation)
        if labels and not self.training and self.opt.get('paper_metrics', True):
            _add_metrics(self, observation, list(labels))
        return observation

    Teacher.add_cmdline_args = classmethod(add_cmdline_args)
    FixedDialogTeacher.__init__ = init
    FixedDialogTeacher.process_action = process_action
    FixedDialogTeacher.observe = observe


def _remember_persona(teacher, action) -> None:
    """The persona of the episode so far, from its `your persona:` lines; another episode has another one."""
    last = getattr(teacher, 'last_act', None)
    if last is None or last.get('episode_done', False):
        teacher._persona = []
    if isinstance(action.get('text'), str) and not teacher.training:
        teacher._persona = [*getattr(teacher, '_persona', ()), *split_message(action['text'])[0]]


def _add_metrics(teacher, observation, labels: list[str]) -> None:
    """Add to the report and, where it is a mean over replies, to what the log says of this one."""
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
