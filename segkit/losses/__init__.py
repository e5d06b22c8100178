"""Losses written once from the verbs of the mask format. Import from the modules."""
