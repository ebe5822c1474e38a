"""ParlAI tasks that ship inside the package."""
