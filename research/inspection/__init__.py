"""Examples as the model sees them, and what all of them are like."""
