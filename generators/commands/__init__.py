"""What the generator's commands do, as plain functions that yield lines of progress."""
