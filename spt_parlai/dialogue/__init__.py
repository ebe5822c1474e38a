"""From ParlAI messages to persona and turns, and from these to token ids. Knows no model and no loss."""
