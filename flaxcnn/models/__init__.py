"""One paper family per file; the registry discovers the files by their rows."""
