"""ParlAI messages → persona and turns → token pieces. Knows no model and no loss."""
