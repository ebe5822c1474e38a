"""The metrics that this package adds to ParlAI's reports, and the registry of all metrics."""

import parlai  # noqa: F401  this installs the hooks, before a file of this room imports more of ParlAI
