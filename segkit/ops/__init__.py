"""Numeric kernels on bare tensors. Import from the modules."""
