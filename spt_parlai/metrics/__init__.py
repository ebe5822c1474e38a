"""The metrics that this package adds to ParlAI's reports, and the registry of all metrics."""
