"""One piece of work on many machines, by an engine that exists: Ray."""
