"""One HTML page of all results below a folder."""
