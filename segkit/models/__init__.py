"""Networks that return logits, and the bundles that hold them. Import from the modules."""
