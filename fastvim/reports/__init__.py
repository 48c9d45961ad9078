"""Tables, plots, the HTML page and TensorBoard."""
