"""What a run optimises and measures."""
