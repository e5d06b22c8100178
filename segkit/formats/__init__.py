"""What a mask means (`MaskFormat`) and how files hold it (codecs). Import from the modules."""
