"""The command `parlai`: ParlAI's own, with this package loaded.

ParlAI imports an agent's package when it has found the agent. Names of trained models (`-mf spt:smollm2`) are looked
up before, so without this they would be files that do not exist. `python -m parlai` is the command without it.
"""

from __future__ import annotations


def main() -> None:
    from parlai.__main__ import main as parlai_main  # with its hooks, because `spt_parlai` is imported already

    parlai_main()
