"""From files that say when each word or phone was spoken to a store of their states."""
