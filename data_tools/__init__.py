"""Conversations in, tokens out: the offline half of shardtune. Never imports torch at module level."""
