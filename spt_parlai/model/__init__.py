"""The causal LM, the soft prompts, the retriever, and the ParlAI model that joins them. Nothing here knows a loss."""
