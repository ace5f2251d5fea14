"""From a .tflite file to C sources that explain themselves."""
