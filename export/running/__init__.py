"""Running a .tflite file: runtimes, processes of their own, memory, cost."""
