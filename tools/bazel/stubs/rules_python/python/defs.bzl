"""The rules that BUILD loads, as an old Bazel builds them in."""

py_binary = native.py_binary
py_library = native.py_library
py_test = native.py_test
