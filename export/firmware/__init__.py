"""C files for microcontrollers."""
