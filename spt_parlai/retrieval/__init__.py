"""Find the training dialogues that are most similar to a text: text encoders and an index."""
