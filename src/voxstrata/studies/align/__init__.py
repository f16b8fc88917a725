"""What is left of retrieval once sound, duration, speaker and language cannot help."""
