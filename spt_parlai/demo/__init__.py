"""The embedded demo: a small LM, its preset, and the run of `spt demo`."""
