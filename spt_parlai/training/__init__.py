"""Training runs that resume exactly and agree over several processes, and their random seeds."""

import parlai  # noqa: F401  this installs the hooks, before a file of this room imports more of ParlAI
