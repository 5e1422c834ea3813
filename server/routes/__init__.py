"""The HTTP endpoints, one file each; server.app puts them together."""
