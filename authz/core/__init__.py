"""Every decision, pure: values in, values out. Nothing here waits, reads a clock, logs or opens a file."""
