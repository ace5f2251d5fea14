"""Running a .tflite file, safely, and counting what that costs."""
