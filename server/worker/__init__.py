"""The process that owns the device, the client that talks to it, and the messages between them."""
