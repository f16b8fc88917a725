"""How alike translations sound."""
