"""The method's own measurements as ParlAI metrics. Knows no model."""
