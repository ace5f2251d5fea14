"""What is in a .tflite file: its parts, its weights, its seal."""
