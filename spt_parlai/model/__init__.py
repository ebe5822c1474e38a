"""The causal LM, the soft prompts, the retriever, and the model that joins them. No file here depends on a loss."""

import parlai  # noqa: F401  this installs the hooks, before a file of this room imports more of ParlAI
