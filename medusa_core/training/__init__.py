"""Draft heads for a new model: its own answers as data, Medusa-1 training, calibration."""
