"""The Lightning module, its callbacks, and `fit`. Import from the modules."""
