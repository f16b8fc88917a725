"""Checkpoints whose encoder ends after block k: made, transcribed with, scored, chosen between, checked."""
