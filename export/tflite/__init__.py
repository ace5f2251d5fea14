"""The bytes of a .tflite file: its parts, sizes, seal, and joining."""
