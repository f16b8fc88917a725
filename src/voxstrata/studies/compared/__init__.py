"""Several encoders on one corpus, each against itself, their figures side by side."""
