"""Pixel counts and the scores made from them. Import from the modules."""
