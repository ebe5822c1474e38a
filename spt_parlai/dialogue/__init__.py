"""From ParlAI messages to persona and turns, and from these to token ids. No file here depends on a model or a loss."""

import parlai  # noqa: F401  this installs the hooks, before a file of this room imports more of ParlAI
