"""Operators: one folder each, holding every form of the operator."""
