"""What a store holds in the forms that other tools read."""
