"""Training runs that resume exactly and agree over several processes, and their random seeds."""
