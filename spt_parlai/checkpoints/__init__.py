"""Trained prompts from and to other software: the authors' checkpoints, PEFT adapters. Nothing here uses the network."""
