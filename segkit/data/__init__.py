"""From files to batches. Import from the modules."""
