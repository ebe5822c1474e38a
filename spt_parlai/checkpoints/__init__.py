"""Checkpoints: ours, those of the paper's authors, and PEFT adapters. Nothing here uses the network."""
