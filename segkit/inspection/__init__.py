"""What a data set holds, what is wrong with it and which output layer fits it. Import from the modules."""
