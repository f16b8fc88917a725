"""The whole way once, on a small corpus that espeak-ng speaks."""
