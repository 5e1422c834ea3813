"""Text and JSON over HTTP in front of one worker process; never imports torch."""
