"""Will an LLM fit, and how long will an epoch take? `spt plan` answers from the LLM's configuration alone."""
