"""Which training dialogue is most like the one at hand: text encoders and an index. Knows no agent."""
