"""Run `spt demo` and write what it prints to docs/demo.svg. From the root of the repository:

python docs/render_demo.py
"""

import contextlib
import io
import re
from pathlib import Path

from rich.console import Console

from spt_parlai.demo.run import run_demo


class Recorder(io.StringIO):
    """Passes what ParlAI prints on to the console that records."""

    def write(self, text: str) -> int:
        console.out(text, end='')
        return len(text)


# Not a terminal, so that the progress bar is recorded once, at its end.
console = Console(
    record=True, width=116, file=io.StringIO(), force_terminal=False, color_system='truecolor', highlight=False
)
with contextlib.redirect_stdout(Recorder()):
    run_demo(Path('runs') / 'demo', console=console)
svg = re.sub(r'@font-face \{.*?\}', '', console.export_svg(title='spt demo'), flags=re.DOTALL)  # fonts to download
Path(__file__).with_name('demo.svg').write_text(svg.replace('Fira Code, monospace', 'monospace'), encoding='utf-8')
