"""Find the training dialogues that are most similar to a text: text encoders and an index."""

import parlai  # noqa: F401  this installs the hooks, before a file of this room imports more of ParlAI
