"""Normalization, Derived: the layers of the book, and what its chapters use."""
