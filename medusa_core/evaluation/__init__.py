"""What speculation is worth and whether it changes anything, measured through the engine on real prompts."""
