"""Making a .tflite file from a model."""
