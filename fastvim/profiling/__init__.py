"""What the models cost in time and memory: the paper's resolution study."""
