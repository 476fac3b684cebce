"""What a step costs: gradients, memory, seconds, the size of the program."""
