"""Command-line options: declared, checked, and what of ParlAI's own works with the agents."""
