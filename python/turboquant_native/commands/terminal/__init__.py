"""What the commands share at a terminal: output, input, answers as they come, the conversation."""
