"""A small HTTP server for one model: images in, masks out."""
