"""From a trained model to mask files and scores. Import from the modules."""
