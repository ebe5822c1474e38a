"""`python -m spt_parlai` is the `spt` command."""

from spt_parlai.cli import main

main()
