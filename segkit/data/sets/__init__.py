"""Data sets as their authors hand them out: where images and masks lie, and what the masks mean."""
