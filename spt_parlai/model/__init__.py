"""The causal LM, the soft prompts, the retriever, and the model that joins them. No file here depends on a loss."""
