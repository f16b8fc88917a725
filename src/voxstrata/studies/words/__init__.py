"""Synonyms against near-homophones, word by word."""
