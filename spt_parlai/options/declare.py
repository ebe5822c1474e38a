"""Options declared once: name, default, help and the values that work. The parser and the checks follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from spt_parlai.errors import flag, refused

Opt = Mapping[str, Any]
"""ParlAI's option dictionary. Its entry 'override' holds what this command was given, by name."""


class Needs(NamedTuple):
    """A condition without which an option has no effect.

    met: whether the options fulfil it; way_out: what to do where they do not.
    """

    met: Callable[[Opt], bool]
    way_out: str


def belongs(to: str, met: Callable[[Opt], bool]) -> Needs:
    """The condition of an option that has an effect only together with others; `to` names these for the message."""
    return Needs(met, f'it belongs to {to}; add that or leave it out')


@dataclass(frozen=True)
class Option:
    """One option: how it is parsed, and which of its values work.

    :param name: as in the option dictionary.
    :param type: as for `argparse`, or one of ParlAI's names ('bool', 'nonestr'). `int` accepts whole numbers only.
    :param at_least, above, at_most, below: limits of a number, which must also be finite.
    :param note: a remark on these limits for the error message, such as what 0 means.
    :param check: further check of the whole option dictionary; returns the way out if this option's value cannot work.
    :param needs: a value other than the default is refused if this command gives it and the condition is not met.

    None is accepted where it is the default.
    """

    name: str
    default: Any
    help: str = ''
    type: Any = str
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    note: str = ''
    check: Callable[[Opt], str | None] | None = None
    needs: Needs | None = None

    def refuse_wrong_value(self, opt: Opt) -> None:
        """Raises UsageError if the value of this option cannot work; an absent option passes."""
        if self.name in opt:
            way_out = self._way_out(opt[self.name], opt)
            if way_out:
                raise refused(self.name, opt[self.name], way_out)

    def refuse_without_effect(self, opt: Opt) -> None:
        """Raises UsageError if this command gave the option where it would do nothing."""
        value = given(opt).get(self.name)
        if self.needs and value is not None and not _same(value, self.default) and not self.needs.met(opt):
            raise refused(self.name, value, self.needs.way_out)

    def _way_out(self, value: Any, opt: Opt) -> str | None:
        if value is None and self.default is None:
            return None
        if self.choices and value not in self.choices:
            return f'choose from {", ".join(self.choices)}'
        if not self._within_limits(value):
            note = f' ({self.note})' if self.note else ''
            return f'give {self._limits_in_words()}{note}{", or leave it out" if self.default is None else ""}'
        return self.check(opt) if self.check else None

    def _within_limits(self, value: Any) -> bool:
        if self.at_least is self.above is self.at_most is self.below is None:
            return True
        return (
            is_number(value)
            and (self.type is not int or isinstance(value, int))
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def _limits_in_words(self) -> str:
        kind = 'a whole number' if self.type is int else 'a number'
        if self.at_least is not None and self.at_most is not None:
            return f'{kind} between {self.at_least:g} and {self.at_most:g}'
        limits = {'of at least': self.at_least, 'above': self.above, 'of at most': self.at_most, 'below': self.below}
        return f'{kind} ' + ' and '.join(f'{words} {limit:g}' for words, limit in limits.items() if limit is not None)


@dataclass(frozen=True)
class OptionGroup:
    """Options that belong together, under one title in `--help`."""

    title: str
    options: tuple[Option, ...]

    def add_to(self, parser) -> None:
        """Add to a ParlAI parser the options that it does not have yet (scripts have a `--seed` of their own)."""
        new = [option for option in self.options if flag(option.name) not in parser._option_string_actions]
        if not new:
            return
        group = parser.add_argument_group(self.title)
        group.of_this_package = True  # `parlai_hooks.command_line` shows it first
        for option in new:
            choices = {'choices': list(option.choices)} if option.choices else {}
            group.add_argument(flag(option.name), type=option.type, default=option.default, help=option.help, **choices)

    def check(self, opt: Opt) -> None:
        """Raises UsageError for the first option that cannot work, or that was given and would do nothing."""
        for option in self.options:
            option.refuse_wrong_value(opt)
            option.refuse_without_effect(opt)


def options_of(declared: type) -> tuple[Option, ...]:
    """The fields of a dataclass as options. A field's metadata holds its help and further arguments of `Option`."""
    arguments = {field.name for field in fields(Option)}
    return tuple(
        Option(
            name=field.name,
            default=field.default,
            type=type(field.default),
            **{name: value for name, value in field.metadata.items() if name in arguments},
        )
        for field in fields(declared)
    )


def token_count(name: str, all_of: str) -> Callable[[Opt], str | None]:
    """The check of an option that is a number of tokens, or -1, which stands for `all_of`."""

    def check(opt: Opt) -> str | None:
        value = opt[name]
        works = isinstance(value, int) and not isinstance(value, bool) and (value > 0 or value == -1)
        return None if works else f'give a number of tokens, or -1 for {all_of}'

    return check


def given(opt: Opt) -> dict[str, Any]:
    """The options that this command was given, without those that are None."""
    return {name: value for name, value in (opt.get('override') or {}).items() if value is not None}


def is_number(value: Any) -> bool:
    """Whether this is a finite number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _same(value: Any, default: Any) -> bool:
    """Whether a value is the default. Tuples may come as lists or as text, their numbers as text, escapes unread."""
    if isinstance(default, (tuple, list)):
        if isinstance(value, str):
            value = value.strip('()[] ').split(',')
        try:
            return tuple(map(float, value)) == tuple(default)
        except (TypeError, ValueError):
            return False
    if isinstance(default, str) and isinstance(value, str):
        return value.encode().decode('unicode_escape') == default
    return value == default
