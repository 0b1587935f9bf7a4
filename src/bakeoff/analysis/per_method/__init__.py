"""What the report says of each method: one aspect a file."""
