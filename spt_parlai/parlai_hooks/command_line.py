"""What a user is told when a command line cannot be read, or names something that does not exist."""

from __future__ import annotations

import difflib
import json
import pickle
import sys
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from spt_parlai.errors import UsageError, explained


def explain_wrong_options() -> None:
    """Print the error of a command line alone, with the option that was probably meant.

    Breaks: the help, hundreds of lines, comes before the error.
    Where: ``ParlaiParser.error``, ``parlai/core/params.py:1395``.
    Safe: the message and the exit status are ParlAI's; ``--help`` prints the help.
    Goes: when ParlAI prints the error alone.
    """
    from parlai.core.params import ParlaiParser

    def error(self, message):
        known = getattr(self, '_help_subparser', None) or self  # the command's parser, if there are several commands
        sys.stderr.write(f'Parse Error: {message}{_suggestion(message, known._option_string_actions)}\n')
        sys.exit(2)

    ParlaiParser.error = error


def show_own_options_first() -> None:
    """Begin ``--help`` of an agent of this package with its own options, below one line of usage.

    Breaks: nothing; they come after 120 lines of usage and 270 of ParlAI's options.
    Where: ``argparse``'s ``format_help``, which ``ParlaiParser`` inherits.
    Safe: the same groups with the same options are shown, and those of other agents in ParlAI's order.
    Goes: when ParlAI shows an agent's options first.
    """
    from parlai.core.params import ParlaiParser

    parlai_format_help = ParlaiParser.format_help

    def format_help(self):
        groups, usage = self._action_groups, self.usage
        own = [group for group in groups if hasattr(group, 'of_this_package')]
        if own:
            self._action_groups = [*own, *(group for group in groups if group not in own)]
            self.usage = '%(prog)s [options]'
        try:
            return parlai_format_help(self)
        finally:
            self._action_groups, self.usage = groups, usage

    ParlaiParser.format_help = format_help


def _suggestion(message: str, names) -> str:
    """`; did you mean --X?` if the message is of unknown options, and known ones are much like them."""
    _, _, unknown = message.partition('unrecognized arguments: ')
    options = [word.partition('=')[0] for word in unknown.split() if word.startswith('--')]
    meant = [match for option in options for match in difflib.get_close_matches(option, names, n=1, cutoff=0.8)]
    return f'; did you mean {", ".join(meant)}?' if meant else ''


def explain_unknown_names() -> None:
    """Say in one sentence that there is no such agent, task or preset, with the nearest name that there is.

    Breaks: ``ModuleNotFoundError``, ``AttributeError`` or ``FileNotFoundError`` with a traceback.
    Where: ``ParlaiParser.add_extra_args``, ``parlai/core/params.py:917``.
    Safe: only where the name itself is at fault; what a module fails with when it is imported is raised as it is.
    Goes: when ParlAI looks names up before it uses them.
    """
    from parlai.core.params import ParlaiParser

    parlai_add_extra_args = ParlaiParser.add_extra_args

    def add_extra_args(self, args=None):
        try:
            parlai_add_extra_args(self, args)
        except (ModuleNotFoundError, AttributeError, FileNotFoundError) as error:
            sentence = _unknown(vars(self.parse_known_args(args, nohelp=True)[0]), error)
            if sentence is None:
                raise
            raise UsageError(sentence) from error

    ParlaiParser.add_extra_args = add_extra_args


def explain_missing_model_file() -> None:
    """Say in one sentence that there is no such model file, with the nearest one beside it.

    Breaks: ``RuntimeError`` with a traceback.
    Where: ``create_agent``, ``parlai/core/agents.py:462``; every script is run by ``ParlaiScript``.
    Safe: it stays a ``RuntimeError``.
    Goes: when ParlAI ends with a message there.
    """
    from parlai.core.script import ParlaiScript

    parlai_run = ParlaiScript.__dict__['_run_from_parser_and_opt'].__func__

    def run(cls, opt, parser):
        try:
            return parlai_run(cls, opt, parser)
        except RuntimeError as error:
            if not str(error).startswith('WARNING: Model file does not exist'):
                raise
            path = str(opt['model_file'])
            others = [str(file.with_suffix('')) for file in Path(path).parent.glob('*.opt')]
            raise explained(RuntimeError, _sentence('-mf', path, 'model file', others)) from error

    ParlaiScript._run_from_parser_and_opt = classmethod(run)


_NEEDS_A_TASK = (
    *('TrainModel', 'EvalModel', 'DisplayModel'),
    *('MultiProcessTrain', 'MultiProcessEval', 'DistributedTrain', 'DistributedEval'),
)


def explain_missing_agent_or_task() -> None:
    """Say in one sentence that ``-m`` or ``-t`` is missing, the latter before the LLM is loaded.

    Breaks: ``RuntimeError`` or ``AttributeError`` with a traceback.
    Where: ``create_agent``, ``parlai/core/agents.py:485``, and ``create_task``, ``parlai/core/worlds.py:1434``; every
    script is run by ``ParlaiScript``.
    Safe: it stays a ``RuntimeError``; a missing task is looked for where an agent of this package runs.
    Goes: when ParlAI's scripts ask for what they need.
    """
    from parlai.core.script import ParlaiScript

    from spt_parlai.training.resume import resumable_class

    parlai_run = ParlaiScript.__dict__['_run_from_parser_and_opt'].__func__

    def run(cls, opt, parser):
        if cls.__name__ in _NEEDS_A_TASK and not opt.get('task') and resumable_class(opt) is not None:
            raise explained(
                RuntimeError, '-t is missing: name a task, such as -t convai2:self or -t spt_parlai.tasks.sample.'
            )
        try:
            return parlai_run(cls, opt, parser)
        except RuntimeError as error:
            if not str(error).startswith('Need to set `model` argument'):
                raise
            raise explained(
                RuntimeError,
                '-m is missing: name an agent, such as -m spt_parlai.agents:SptAgent, or a model file (-mf).',
            ) from error

    ParlaiScript._run_from_parser_and_opt = classmethod(run)


def explain_unreadable_options() -> None:
    """Name the file of options that is no JSON, such as a preset or the ``.opt`` beside a model file.

    Breaks: ``JSONDecodeError``, ``UnpicklingError`` or ``TypeError`` with a traceback, which does not name the file.
    Where: ``Opt.load``, ``parlai/core/opt.py:126``.
    Safe: it stays a ``ValueError``, and files that can be read are read by ParlAI.
    Goes: when ParlAI names the file.
    """
    from parlai.core.opt import Opt

    parlai_load = Opt.load.__func__  # type: ignore[attr-defined]

    def load(cls, optfile):
        try:
            return parlai_load(cls, optfile)
        except (ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
            reason = (
                f'line {error.lineno}: {error.msg}' if isinstance(error, json.JSONDecodeError) else 'no JSON object'
            )
            raise UsageError(f'{optfile} holds no options ({reason}); correct it, or give another file.') from error

    Opt.load = classmethod(load)


def say_that_no_dictionary_is_built() -> None:
    """Say in one sentence that the LLM's tokenizer is the dictionary, and that ``build_dict`` therefore writes nothing.

    Breaks: ``parlai build_dict --dict-file FILE`` ends without the file and without a word.
    Where: ``build_dict``, ``parlai/scripts/build_dict.py:93``.
    Safe: the result is ParlAI's; other dictionaries are built as before.
    Goes: when ParlAI says that a dictionary is prebuilt.
    """
    from parlai.scripts.build_dict import BuildDict
    from parlai.utils import logging

    from spt_parlai.dialogue.dictionary import TokenizerDictionary

    parlai_run = BuildDict.run

    def run(self):
        dictionary = parlai_run(self)
        if isinstance(dictionary, TokenizerDictionary):
            logging.warning(
                f'--dict-file {self.opt["dict_file"]}: nothing is written; {dictionary} is the dictionary, and '
                'training needs no other.'
            )
        return dictionary

    BuildDict.run = run


def _unknown(parsed: dict, error: Exception) -> str | None:
    """The sentence about the name that `error` is about; None if no name of the command line is at fault."""
    import parlai.agents
    import parlai.tasks
    from parlai.core.loader import load_agent_module, load_teacher_module

    if isinstance(error, FileNotFoundError):
        if not str(error).startswith('Could not find filename'):
            return None
        path = str(parsed['init_opt'])
        return _sentence('-o', path, 'file or preset', [str(file) for file in Path(path).parent.glob('*.opt')])
    agents, tasks = ([module.name for module in iter_modules(p.__path__)] for p in (parlai.agents, parlai.tasks))
    names: list[tuple] = [('-m', 'agent', parsed.get('model'), load_agent_module, 'Agent', agents)]
    for task in (str(parsed.get('task') or '')).split(','):
        names.append(('-t', 'task', task, load_teacher_module, 'Teacher', [*tasks, 'spt_parlai.tasks.sample']))
    for option, what, name, load, suffix, known in names:
        try:
            if name:
                load(name)
        except (ModuleNotFoundError, AttributeError) as again:
            if str(again) != str(error):
                continue
            module, _, inside = name.partition(':')
            if isinstance(again, ModuleNotFoundError):
                missing = again.name or ''
                if not missing.startswith('parlai.') and not f'{module}.'.startswith(f'{missing}.'):
                    return None  # of what the module imports
                return _sentence(option, name, what, [*known, f'spt_parlai.agents:{inside}'])
            if not isinstance(again.obj, ModuleType):
                return None
            inner = [n if '.' in module else n.removesuffix(suffix) for n in dir(again.obj) if n.endswith(suffix)]
            return _sentence(option, name, what, [f'{module}:{n}' for n in inner])
    return None


def _sentence(option: str, name: str, what: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f'{option} {name}: there is no such {what}' + (f'; did you mean {nearest[0]}?' if nearest else '.')
