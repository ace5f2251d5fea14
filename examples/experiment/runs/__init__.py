"""One run: a teacher, a compressed student, its scores."""
