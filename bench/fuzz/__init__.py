"""Differential fuzzing: interpreter = compiled O0 = compiled O3 = kernel."""
