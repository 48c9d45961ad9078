"""Loss-spike detection, the recorder in training, and readers of logs."""
