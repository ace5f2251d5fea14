"""The bytes of a .tflite file: its parts, sizes, integrity, and joining files."""
