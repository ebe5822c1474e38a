"""Run `spt demo` and write what it prints to docs/demo.svg.

python docs/render_demo.py
"""

import contextlib
import io
from pathlib import Path

from rich.console import Console

from spt_parlai.demo.run import run_demo


class Recorder(io.StringIO):
    """Passes what ParlAI prints on to the console that records."""

    def write(self, text: str) -> int:
        console.out(text, end='', highlight=False)
        return len(text)


# Not a terminal, so that the progress bar is recorded once, at its end.
console = Console(record=True, width=132, file=io.StringIO(), force_terminal=False, color_system='truecolor')
with contextlib.redirect_stdout(Recorder()):
    run_demo(Path('runs') / 'demo', console=console)
console.save_svg(str(Path(__file__).with_name('demo.svg')), title='spt demo')
print(console.file.getvalue())
