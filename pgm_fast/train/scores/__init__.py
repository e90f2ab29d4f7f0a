"""What predictions are worth, and what the gates did for them."""
