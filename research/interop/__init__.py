"""Models of other projects in and out: their folders, files, names and numbers."""
