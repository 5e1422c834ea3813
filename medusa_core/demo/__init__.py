"""The demo model: a few million parameters that learnt Python's standard library, and the recipe that made them."""
