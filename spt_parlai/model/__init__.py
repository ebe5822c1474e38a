"""The frozen LM, the soft prompt group, the retriever, and the ParlAI model that joins them. Knows no loss."""
