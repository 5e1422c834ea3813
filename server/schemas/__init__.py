"""What clients send and what they get back, field by field."""
