"""Training that stays finite, continues exactly and agrees over several processes; what a checkpoint holds."""
