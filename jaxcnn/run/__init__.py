"""What a run keeps on disk and says of itself."""
