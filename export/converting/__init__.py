"""From a Keras model to a .tflite file with its attribution on board."""
