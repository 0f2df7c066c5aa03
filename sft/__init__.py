"""Tokens in, a fine-tuned model out: the training half of shardtune. Never imports Ray or the launcher."""
