"""Reading any tensor of any file, and explaining the files of others."""
