"""What each stage does: it reads the folders of stages before it, writes its own, and says what is worth logging."""
