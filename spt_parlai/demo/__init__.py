"""The embedded demo: a small LM, the preset that suits it, and the run of `spt demo`."""
