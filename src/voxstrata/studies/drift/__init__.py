"""What cheaper contexts cost."""
