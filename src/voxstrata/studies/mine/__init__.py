"""Mined pairs: likely translations among all pairs of two sets, and how many of them are."""
