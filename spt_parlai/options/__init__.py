"""Command-line options: declared, checked, and what of ParlAI's own works with the agents."""

import parlai  # noqa: F401  this installs the hooks, before a file of this room imports more of ParlAI
