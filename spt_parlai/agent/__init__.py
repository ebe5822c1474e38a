"""What every agent around a frozen LLM has: its text side, its replies, its checkpoints. Knows no formula."""
