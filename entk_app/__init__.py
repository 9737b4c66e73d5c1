"""Deep-learning-driven adaptive protein folding on RADICAL-EnTK."""

__version__ = "0.1.0"
