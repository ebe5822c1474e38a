"""A page with the curves, prompts and replies of training runs: live while they train, or as one file."""
