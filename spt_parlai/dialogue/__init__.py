"""From ParlAI messages to persona and turns, and from these to token ids. No file here depends on a model or a loss."""
