"""The page with its style, scripts and data in one text, which loads nothing from elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spt_parlai.dashboard.runs import named, read_replies, read_run

_FILES = Path(__file__).parent / 'page'


def read_runs(model_files: Sequence[Path], titles: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """What the page shows of each run: that of `read_run`, its `name` and `title`; see `page`."""
    return [
        {'name': name, 'title': (titles or {}).get(name, name), **read_run(file)}
        for name, file in zip(named(model_files), model_files, strict=True)
    ]


def page(model_files: Sequence[Path], live: bool, titles: Mapping[str, str] | None = None) -> str:
    """The page of some runs. `#NAME` in its address selects a run.

    :param live: whether it asks its server for `runs.json` from time to time.
    :param titles: run → what the page calls it; by default its name, see `named`.
    """
    replies = {name: read_replies(file) for name, file in zip(named(model_files), model_files, strict=True)}
    data = as_json({'live': live, 'runs': read_runs(model_files, titles), 'replies': replies})
    text = (_FILES / 'dashboard.html').read_text(encoding='utf-8')
    for name in ('dashboard.css', 'echarts.common.min.js', 'dashboard.js'):
        text = text.replace(f'/* {name} */', (_FILES / name).read_text(encoding='utf-8'))
    return text.replace('/* data */', data.replace('<', r'\u003c'), 1)  # no text may end the element


def as_json(value: Any) -> str:
    """JSON as browsers read it: a number that is not finite becomes null."""
    return json.dumps(_finite(value), allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value
