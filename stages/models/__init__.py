"""The networks: the teacher (open_clip) and the student, and their files."""
