"""The questions asked of a store or a model, a folder each: `measure` finds, `result` holds, shows and saves it."""
