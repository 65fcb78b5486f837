"""The parts of the model, one idea per file."""
