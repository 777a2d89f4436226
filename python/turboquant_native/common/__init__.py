"""What every other package may use: errors, progress, resumable work, memory figures."""
